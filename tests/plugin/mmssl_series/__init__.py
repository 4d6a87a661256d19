"""Time series for mmssl: the modality `series`, the loss `loss/log_cosh` and the recipe `series/mae`."""
