"""Encoders: tokens in, tokens out. They know no masks, only which tokens are valid."""
