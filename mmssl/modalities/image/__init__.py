"""Images: any number of channels, any size."""
