"""The chapter token-rewards of the specification: how it is tried, and who must fail it."""
