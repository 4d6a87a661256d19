"""Encoders in the formats of other libraries, each loaded back by that library and compared."""
