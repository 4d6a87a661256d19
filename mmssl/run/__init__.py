"""A run: its directory, its trainer, what watches it, and what is written at its end."""
