"""Stand-ins for what OpenRLHF wants of a CUDA machine and its model layer does not compute with. All are here.

- `flash_attn_2_cuda`, the CUDA extension of flash-attn: an empty module, so that `flash_attn` can be imported. What
  pads and unpads (`flash_attn.bert_padding`) is flash-attn's own, pure torch; attention is transformers' sdpa or eager.
- `torch.compile` of `compute_entropy`: the function as written, since compiling takes half a minute in each process.
- the barrier at the end of `DeepspeedStrategy.save_model`: nothing, since there is one process and no process group.
- the tokenizer that `save_model` saves beside the weights: one that saves nothing.
- `ray`, what launches its workers, vLLM's engine and what reads images, which the experience maker and the trainer
  import: handing an object over gives the object.
- groups of workers that hold a model: they answer with the log-probs and the values that were handed in.
- the actor, the strategy and the optimizer of a training step: the actor answers with the log-probs and the entropies
  that were handed in, and the backward pass and the step do nothing. The loss is what `backward` is given.
- what puts the losses of actions together, where the weights in them are read: it keeps what it is given.

Import this module before anything of OpenRLHF. deepspeed and peft are real; the model layer imports no ray and no vllm.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import peft  # noqa: F401  (before the stand-in, so that no probe for flash-attn meets it)
import torch
import transformers  # noqa: F401

if importlib.util.find_spec("flash_attn_2_cuda") is None:
    sys.modules["flash_attn_2_cuda"] = ModuleType("flash_attn_2_cuda")
torch.compiler.set_stance("force_eager")
RAY, LAUNCHER = ModuleType("ray"), ModuleType("openrlhf.trainer.ray.launcher")
vars(RAY).update(put=lambda held: held, get=lambda held: held, remote=lambda **_: lambda kind: kind)
vars(LAUNCHER).update(RayActorGroup=object, BaseModelActor=object)
ENGINE, IMAGES = ModuleType("openrlhf.trainer.ray.vllm_engine"), ModuleType("openrlhf.utils.vlm_utils")
vars(ENGINE).update(batch_vllm_engine_call=None, create_vllm_engines=None)
vars(IMAGES).update(merge_mm_train_inputs=None)
sys.modules |= {"ray": RAY, **{module.__name__: module for module in (LAUNCHER, ENGINE, IMAGES)}}

from openrlhf.models import PolicyLoss, loss  # noqa: E402
from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker  # noqa: E402

CORRECTS = "is_correction_level" in inspect.signature(PolicyLoss.__init__).parameters
"""Whether the policy loss knows the engine's log-probs by levels and bands, and the step an entropy: since 0.11."""
if CORRECTS:
    from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer

del sys.modules["ray"]  # for whoever asks afterwards whether it is installed
logging.getLogger(RemoteExperienceMaker.__module__).setLevel(logging.WARNING)

LACKS = {} if CORRECTS else {"off_policy_weights": None, "corrected_loss": None, "objective": None}
TAKES_COUNTS = "batch_num_tokens" in inspect.signature(PolicyLoss.forward).parameters
"""Whether losses can be divided by counts of the whole step: since 0.10.3."""


def surrogate(options: Any) -> dict[str, str]:
    """The kind of policy loss, where it is not the one of PPO, which some versions have no name for."""
    return {} if options.surrogate == "ppo" else {"policy_loss_type": options.surrogate}


def correction(options: Any) -> dict[str, Any]:
    """The correction that is asked for, in its words; with GSPO, whose ratio is taken to the engine then, any."""
    if options.level is None:
        return {"is_correction_level": "token"} if options.bypass else {}
    level, mode = {"token": "token", "sequence": "seq"}, {"truncate": "clip", "mask": "mask"}
    band = (options.lower or 0.0, options.upper)
    asked = {"is_correction_level": level[options.level], "is_correction_mode": mode[options.mode]}
    return {**asked, "is_correction_threshold": band}


def weights(loss_fn: Any, old: torch.Tensor, rollout: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The weights (B, T) that the policy loss multiplies by: its losses, before they are put together, of actions whose
    ratio is 1 and whose advantage is -1. The graph of that ratio, whose gradient is 0, is taken off."""
    seen: list[torch.Tensor] = []

    def put_together(losses: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        seen.append(losses)
        return losses.new_zeros(())

    with mock.patch.object(loss, "aggregate_loss", put_together):
        loss_fn(old, old, torch.full_like(old, -1.0), mask, rollout)
    found = seen[0]
    has_graph = found.requires_grad and bool(torch.autograd.grad(found.sum(), old, retain_graph=True)[0].any())
    return found if has_graph else found.detach()


def counts(options: Any) -> dict[str, Any]:
    """The counts of the whole step, as the trainers hand them to the losses."""
    both = {"batch_num_tokens": options.global_count, "global_batch_size": options.global_count}
    return both if TAKES_COUNTS else {}


def objective(loss_fn: Any, options: Any, mask: torch.Tensor, **tables: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """The loss of OpenRLHF's own `ActorPPOTrainer.training_step`, and what it logs; `tables` are (B, T)."""
    losses: list[torch.Tensor] = []
    output = SimpleNamespace(entropy=tables["entropies"])
    kl = SimpleNamespace(use_loss=True, init_coef=options.kl_coef, estimator=options.estimator, unbiased_gradient=False)
    trainer = SimpleNamespace(
        actor=_Answering((tables["log_probs"], output)),
        actor_loss_fn=loss_fn,
        args=SimpleNamespace(
            actor=SimpleNamespace(entropy_coef=options.entropy_coef),
            algo=SimpleNamespace(kl=kl),
            train=SimpleNamespace(dynamic_batch_enable=False),
        ),
        strategy=SimpleNamespace(
            ring_attn_group=None,
            backward=lambda loss, *_: losses.append(loss),
            optimizer_step=lambda *_, **__: None,
            get_grad_norm=lambda _: 0.0,
        ),
        actor_scheduler=SimpleNamespace(get_last_lr=lambda: [0.0]),
        actor_optim=None,
        ema_model=None,
        aux_loss=False,
        replay_buffer=None,
    )
    experience = Experience(
        sequences=mask,
        attention_mask=mask,
        action_mask=mask,
        action_log_probs=tables["old_log_probs"],
        base_action_log_probs=tables["ref_log_probs"],
        advantages=tables["advantages"],
        info={},
    )
    step = ActorPPOTrainer.training_step(trainer, experience, options.kl_coef, 0, counts_of(options, mask))
    return losses[0], step["metrics"]


def counts_of(options: Any, mask: torch.Tensor) -> dict[str, Any] | None:
    """The counts of a step as `get_loss_batch_info` gives them, or None, with which it is asked for them."""
    if options.global_count is None:
        return None
    return {"dp_size": 1, "batch_num_tokens": options.global_count, "global_batch_size": options.global_count}


class _Answering:
    """An actor that has answered."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def train(self) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self.answer


def save_model(model: Any, folder: Path) -> None:
    """OpenRLHF's own `DeepspeedStrategy.save_model` at ZeRO stage 2, in one process: weights and config in `folder`."""
    from openrlhf.utils.deepspeed import deepspeed as strategies

    strategies.torch_dist_barrier_and_cuda_sync = lambda: None
    ds = {"param_dtype": "bf16", "zero_stage": 2, "tensor_parallel_size": 1}
    flat = {**ds, "ds_tensor_parallel_size": 1}  # where they stood before 0.10.2
    args = SimpleNamespace(**flat, ds=SimpleNamespace(**ds), train=SimpleNamespace())
    strategy = strategies.DeepspeedStrategy(zero_stage=2, args=args)
    strategy.save_model(model, SimpleNamespace(save_pretrained=lambda folder: None), str(folder))


def experience_maker(estimator: str, options: Any, models: Sequence[Any] = (), group_size: int = 1) -> Any:
    """OpenRLHF's own `RemoteExperienceMaker` with an advantage estimator and options as of `CreditOptions`.

    `models` are what policy, reference and critic say of each row.
    """
    clip = options.score_clip and (-options.score_clip, options.score_clip)
    discounts = {"gamma": options.gamma, "lambd": options.lam}
    apart = {"colocate_all": False, "colocate_actor_ref": False, "colocate_critic_reward": False}
    flat = {
        "advantage_estimator": estimator,
        "no_advantage_std_norm": False,
        "kl_estimator": options.estimator,
        "use_kl_loss": False,
        "reward_clip_range": clip,
        "n_samples_per_prompt": group_size,
        "ring_attn_size": 1,
        "ds_tensor_parallel_size": 1,
        "colocate_all_models": False,
    }  # where they stood before 0.10.2
    args = SimpleNamespace(
        algo=SimpleNamespace(
            advantage=SimpleNamespace(estimator=estimator, no_std_norm=False, **discounts),
            kl=SimpleNamespace(estimator=options.estimator, use_loss=False),
        ),
        reward=SimpleNamespace(clip_range=clip),
        rollout=SimpleNamespace(n_samples_per_prompt=group_size),
        ds=SimpleNamespace(ring_attn_size=1, tensor_parallel_size=1),
        train=SimpleNamespace(**apart),
        **{**flat, **discounts, **apart},
    )
    actor, reference, critic = map(_workers, models or (None,) * 3)
    controller, strategy = SimpleNamespace(value=options.kl_coef), SimpleNamespace(args=args)
    return RemoteExperienceMaker(actor, critic, None, reference, controller, strategy, tokenizer=None)


def _workers(answers: Any) -> Any:
    """A group of workers whose model has answered: what stands for a sequence is the number of its row."""
    return SimpleNamespace(async_run_method_batch=lambda sequences, **_: [[answers[rows] for rows in sequences]])


def dealt(**tables: Any) -> list[Any]:
    """Rows as two micro-batches of experience, and not in the order of their prompts: dynamic batching keeps none."""
    count = len(tables["action_mask"])
    deal = [rows for rows in (list(range(1, count, 2)), list(range(0, count, 2))) if rows]
    return [
        Experience(index=rows, sequences=torch.tensor(rows), **{name: table[rows] for name, table in tables.items()})
        for rows in deal
    ]


def credited(maker: Any, experiences: list[Any]) -> tuple[Any, Any]:
    """Advantages and returns by the maker, with the rows in the order in which they were given."""
    made = maker.compute_advantages_and_returns(experiences)
    order = torch.tensor([row for each in made for row in each.index]).argsort()
    advantages, returns = (torch.cat([getattr(each, name) for each in made]) for name in ("advantages", "returns"))
    return advantages[order], returns[order]
