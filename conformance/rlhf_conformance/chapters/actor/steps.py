"""How the answers of the actor are shown step by step."""

from rlhf_conformance.chapters._models import steps as steps
