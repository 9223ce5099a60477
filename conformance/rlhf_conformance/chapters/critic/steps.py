"""How the answers of the critic are shown step by step."""

from rlhf_conformance.chapters._models import steps as steps
