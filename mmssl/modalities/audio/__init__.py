"""Audio: recordings of any rate, any number of channels and any length."""
