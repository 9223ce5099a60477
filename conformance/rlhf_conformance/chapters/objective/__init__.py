"""The chapter objective of the specification: how it is tried, and who must fail it."""
