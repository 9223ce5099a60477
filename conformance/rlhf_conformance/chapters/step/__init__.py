"""One optimizer step, however it is cut."""
