"""Asking an adapter and judging its answers: calls in isolation, wiring, comparisons, and the trying of one check."""
