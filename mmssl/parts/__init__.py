"""What a recipe can name, for every modality."""
