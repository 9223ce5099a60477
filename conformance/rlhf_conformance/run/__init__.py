"""A run: what is asked for, in which processes, and what the user has accepted beforehand."""
