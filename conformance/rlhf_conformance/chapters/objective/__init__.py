"""The objective: policy loss, value loss, KL and entropy as one number."""
