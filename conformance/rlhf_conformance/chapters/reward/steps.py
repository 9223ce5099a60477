"""How the answers of the reward model are shown step by step."""

from rlhf_conformance.chapters._models import steps as steps
