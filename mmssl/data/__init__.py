"""Reading data: sources, order, loaders. Knows modalities only through their adapter."""
