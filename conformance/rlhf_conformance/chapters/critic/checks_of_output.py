"""The checks of values that come with the whole output beside them."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.chapters._models import templates
from rlhf_conformance.chapters._models.output import scores_or_hidden_states, with_output
from rlhf_conformance.chapters._models.roles import CRITIC
from rlhf_conformance.judging.checks import use

WITH_OUTPUT = replace(CRITIC, ask_method="action_values_with_output")

use("critic.with-output", with_output(WITH_OUTPUT, scores_or_hidden_states))
use("critic.with-output-gradient", templates.gradient(WITH_OUTPUT, effort=10))
