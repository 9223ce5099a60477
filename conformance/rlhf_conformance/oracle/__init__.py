"""What is right: the truth of each sequence alone, how batches are laid out, and how far an honest answer may lie off.

Nothing in here imports the reference, which is one of the subjects.
"""
