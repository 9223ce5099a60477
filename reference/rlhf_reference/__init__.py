"""The reference implementation: how the model layer, the advantages and the losses of RLHF can be done.

Read it in this order; every module stands on those before it.

    log_probs      log softmax(z / T) at the label, and the entropy, without a second tensor of the logits' size
    sequences      which tokens of a generated row are attended, and which are actions
    positions      position ids of padded rows and of packs
    packing        several sequences in one row, its labels, its shards
    ragged         a batch without padding, and every layout of it both ways
    inputs         what a model is given, and which positions predict the actions
    actor          the policy (loading, lora: how it gets its weights; sampling: how it chooses a token)
    regression     a backbone and a linear head (checkpoint: where it is found): what reward_model and critic share
    aggregation    from one loss for each token to one number
    policy_loss, value_loss
    kl             how far each token has left the reference model
    token_rewards  from one score for a response to a reward for each token
    advantages     generalized advantages, and returns
    credit         these three in a row
    whitening, group_advantages
                   numbers of a batch, or scores of a group, less their mean and over their deviation
    off_policy_correction
                   weights for actions that another engine sampled
    objective      the losses, the KL and the entropy together: what a step minimises
    trainer        a step: its micro-batches, its gradient, its update

Nothing here writes to its arguments or calls `.cuda()`, and the global random state is touched only to draw what was
asked for: sampled tokens, a new LoRA adapter, a new head. A name is imported when it is first used (PEP 562), so
that importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_reference.actor import Actor as Actor
    from rlhf_reference.advantages import advantages_and_returns as advantages_and_returns
    from rlhf_reference.advantages import discounted_returns as discounted_returns
    from rlhf_reference.aggregation import aggregate as aggregate
    from rlhf_reference.checkpoint import MissingHeadError as MissingHeadError
    from rlhf_reference.credit import credited as credited
    from rlhf_reference.critic import CriticModel as CriticModel
    from rlhf_reference.group_advantages import group_relative_advantages as group_relative_advantages
    from rlhf_reference.kl import token_kl as token_kl
    from rlhf_reference.log_probs import token_entropy as token_entropy
    from rlhf_reference.log_probs import token_log_probs as token_log_probs
    from rlhf_reference.lora import LoraOptions as LoraOptions
    from rlhf_reference.objective import Objective as Objective
    from rlhf_reference.objective import ObjectiveOutput as ObjectiveOutput
    from rlhf_reference.off_policy_correction import off_policy_weights as off_policy_weights
    from rlhf_reference.packing import PackedBatch as PackedBatch
    from rlhf_reference.packing import action_state_positions as action_state_positions
    from rlhf_reference.packing import pack_sequences as pack_sequences
    from rlhf_reference.packing import shard as shard
    from rlhf_reference.packing import unshard as unshard
    from rlhf_reference.policy_loss import PolicyLoss as PolicyLoss
    from rlhf_reference.policy_loss import PolicyLossOutput as PolicyLossOutput
    from rlhf_reference.positions import last_attended as last_attended
    from rlhf_reference.positions import packed_position_ids as packed_position_ids
    from rlhf_reference.positions import position_ids as position_ids
    from rlhf_reference.positions import segment_position_ids as segment_position_ids
    from rlhf_reference.ragged import PaddedBatch as PaddedBatch
    from rlhf_reference.ragged import RaggedBatch as RaggedBatch
    from rlhf_reference.reward_model import RewardModel as RewardModel
    from rlhf_reference.sequences import ProcessedSequences as ProcessedSequences
    from rlhf_reference.sequences import process_sequences as process_sequences
    from rlhf_reference.token_rewards import penalized_scores as penalized_scores
    from rlhf_reference.token_rewards import token_level_rewards as token_level_rewards
    from rlhf_reference.trainer import Sample as Sample
    from rlhf_reference.trainer import StepMetrics as StepMetrics
    from rlhf_reference.trainer import Trainer as Trainer
    from rlhf_reference.trainer import by_rows as by_rows
    from rlhf_reference.trainer import by_tokens as by_tokens
    from rlhf_reference.value_loss import ValueLoss as ValueLoss
    from rlhf_reference.whitening import whiten as whiten

_NAMES = {
    "log_probs": ("token_log_probs", "token_entropy"),
    "sequences": ("ProcessedSequences", "process_sequences"),
    "positions": ("position_ids", "packed_position_ids", "segment_position_ids", "last_attended"),
    "packing": ("PackedBatch", "pack_sequences", "action_state_positions", "shard", "unshard"),
    "ragged": ("RaggedBatch", "PaddedBatch"),
    "actor": ("Actor",),
    "lora": ("LoraOptions",),
    "checkpoint": ("MissingHeadError",),
    "reward_model": ("RewardModel",),
    "critic": ("CriticModel",),
    "aggregation": ("aggregate",),
    "policy_loss": ("PolicyLoss", "PolicyLossOutput"),
    "kl": ("token_kl",),
    "token_rewards": ("token_level_rewards", "penalized_scores"),
    "credit": ("credited",),
    "advantages": ("advantages_and_returns", "discounted_returns"),
    "value_loss": ("ValueLoss",),
    "whitening": ("whiten",),
    "group_advantages": ("group_relative_advantages",),
    "off_policy_correction": ("off_policy_weights",),
    "objective": ("Objective", "ObjectiveOutput"),
    "trainer": ("Sample", "StepMetrics", "Trainer", "by_rows", "by_tokens"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
