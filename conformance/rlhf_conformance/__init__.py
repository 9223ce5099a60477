"""rlhf-conformance: is your RLHF trainer right?

    from rlhf_conformance import Adapter, check, conformance_suite

Write an adapter (`Adapter`), then run `rlhf-conformance check`, `check(adapter)`, or put
`test_conformance = conformance_suite(MyTrainer())` into a test file. Importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_conformance.adapter import Adapter as Adapter
    from rlhf_conformance.chapters.advantages.interface import AdvantageOptions as AdvantageOptions
    from rlhf_conformance.chapters.advantages.interface import AdvantagesResult as AdvantagesResult
    from rlhf_conformance.chapters.credit.interface import CreditOptions as CreditOptions
    from rlhf_conformance.chapters.kl.interface import KlOptions as KlOptions
    from rlhf_conformance.chapters.objective.interface import ObjectiveOptions as ObjectiveOptions
    from rlhf_conformance.chapters.objective.interface import ObjectiveResult as ObjectiveResult
    from rlhf_conformance.chapters.packing.interface import PackedSequences as PackedSequences
    from rlhf_conformance.chapters.policy_loss.interface import PolicyLossOptions as PolicyLossOptions
    from rlhf_conformance.chapters.policy_loss.interface import PolicyLossResult as PolicyLossResult
    from rlhf_conformance.chapters.sequences.interface import ProcessedSequences as ProcessedSequences
    from rlhf_conformance.chapters.step.interface import StepOptions as StepOptions
    from rlhf_conformance.chapters.step.interface import StepResult as StepResult
    from rlhf_conformance.chapters.token_rewards.interface import TokenRewardOptions as TokenRewardOptions
    from rlhf_conformance.chapters.value_loss.interface import ValueLossOptions as ValueLossOptions
    from rlhf_conformance.oracle.batch import Batch as Batch
    from rlhf_conformance.oracle.batch import Prompts as Prompts
    from rlhf_conformance.oracle.batch import StepSample as StepSample
    from rlhf_conformance.oracle.probes import Checkpoint as Checkpoint
    from rlhf_conformance.results import Report as Report
    from rlhf_conformance.run.command import check as check
    from rlhf_conformance.run.loading import LoadError as LoadError
    from rlhf_conformance.run.loading import UsageError as UsageError
    from rlhf_conformance.run.suite import conformance_suite as conformance_suite

_HOME_OF = {
    "Adapter": "adapter",
    "AdvantageOptions": "chapters.advantages.interface",
    "AdvantagesResult": "chapters.advantages.interface",
    "Batch": "oracle.batch",
    "Checkpoint": "oracle.probes",
    "CreditOptions": "chapters.credit.interface",
    "KlOptions": "chapters.kl.interface",
    "LoadError": "run.loading",
    "ObjectiveOptions": "chapters.objective.interface",
    "ObjectiveResult": "chapters.objective.interface",
    "PackedSequences": "chapters.packing.interface",
    "PolicyLossOptions": "chapters.policy_loss.interface",
    "PolicyLossResult": "chapters.policy_loss.interface",
    "ProcessedSequences": "chapters.sequences.interface",
    "Prompts": "oracle.batch",
    "Report": "results",
    "StepOptions": "chapters.step.interface",
    "StepResult": "chapters.step.interface",
    "StepSample": "oracle.batch",
    "TokenRewardOptions": "chapters.token_rewards.interface",
    "UsageError": "run.loading",
    "ValueLossOptions": "chapters.value_loss.interface",
    "check": "run.command",
    "conformance_suite": "run.suite",
}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
