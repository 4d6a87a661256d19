"""Time series: several channels sampled at equal steps."""
