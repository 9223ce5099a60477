"""Adapters that misbehave, each in the way of its docstring; `test_hostile_adapters.py` says what must follow."""
