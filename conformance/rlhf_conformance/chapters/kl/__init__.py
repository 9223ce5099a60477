"""The chapter kl of the specification: how it is tried, and who must fail it."""
