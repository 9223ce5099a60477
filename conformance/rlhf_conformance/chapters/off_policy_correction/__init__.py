"""The chapter off-policy-correction of the specification: how it is tried, and who must fail it."""
