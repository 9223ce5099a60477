"""Advantages, in a chapter small enough to be read at once."""
