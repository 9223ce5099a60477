"""The chapter corrected-loss of the specification: how it is tried, and who must fail it."""
