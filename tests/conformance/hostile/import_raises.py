"""Fails while it is imported."""

raise RuntimeError("CUDA driver is older than this library")
