"""Layers without names in recipes: positions, patches, initialisation, the network. torch and timm's blocks only."""
