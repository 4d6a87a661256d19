"""Modalities of this package, one folder each."""
