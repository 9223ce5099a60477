"""Cases: what Hypothesis draws for the checks, as frozen values that print, compare and shrink well.

Bugs hide in square batches, full rows, single samples, equal lengths, advantages of one, greedy tokens: every
strategy leaves these often, and `tests/conformance/test_discovery.py` measures how often.
"""
