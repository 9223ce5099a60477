"""A plug-in with one chapter, as somebody else would write it: `tests/conformance/test_toy_chapter.py` runs it."""
