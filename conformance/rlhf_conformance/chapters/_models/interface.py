"""What an adapter says of its models, whichever they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rlhf_conformance.chapters._models.lora import merged
from rlhf_conformance.judging.wiring import Cells, Either, Model, Named
from rlhf_conformance.methods import SomeOf, method
from rlhf_conformance.oracle.batch import PACKS, RECTANGLES

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from rlhf_conformance.oracle.probes import Checkpoint

LAYOUTS = (*RECTANGLES, *PACKS)
LOADED_BY_MOST = ("llama", "gpt2", "qwen2", "mistral", "gemma3_text", "granite", "phi")
ARCHITECTURES = (*LOADED_BY_MOST, "gemma2")
SCORES_OR_HIDDEN_STATES = Either((Cells(), Cells((None,))), "a score or a hidden state for every position")


class Models:
    """Layouts, backbones, heads; saving and restoring."""

    layouts: Annotated[
        Sequence[str],
        SomeOf(LAYOUTS),
        'how model batches may be presented: "padded" (prompts padded left, responses right), "left", "right", '
        '"packed", "packed-tail" (a pack with padding at its end), "sharded", "segments" (a pack whose attention mask '
        "numbers its sequences from 1)",
    ] = ("padded",)
    turns: Annotated[
        bool,
        "True if a response may have several turns with observations between them, which are attended and are no "
        "actions: tokens of the response where the action mask is 0 and the attention mask is not",
    ] = False
    packs_internally: Annotated[
        bool, "True if a padded batch is packed inside: the packing clauses then run on padded batches"
    ] = False
    takes_attention_mask: Annotated[
        bool,
        "False if the trainer infers the mask from the pad id: the pad id is then kept out of prompts and responses, "
        "except in the clauses that are about just that",
    ] = True
    architectures: Annotated[
        Sequence[str],
        SomeOf(ARCHITECTURES),
        'probe backbones that it can load, by the `model_type` of their config: most clauses draw "llama" (rotary) and '
        '"gpt2" (learned positions), `actor.backbones`, `reward.backbones` and `critic.backbones` all that are named. '
        '"gemma2" caps its attention scores, for which torch has no kernel: it is asked about only where it is named',
    ] = LOADED_BY_MOST
    head_architectures: Annotated[
        Sequence[str],
        SomeOf(ARCHITECTURES),
        "those of `architectures` on which its reward model and its critic can stand",
    ] = ARCHITECTURES
    head_names: Annotated[Sequence[str], SomeOf(), "names under which a checkpoint may hold the scalar head"] = (
        "score",
    )
    head_bias: Annotated[
        bool, "True if the scalar head of a checkpoint may have a bias, `<head_name>.bias`; if not, none has one"
    ] = False

    @method(prepares=True)
    def save(self, model: Any, folder: Path) -> None:
        """Write the checkpoint that the trainer would write of `model` into the existing, empty `folder`."""
        raise NotImplementedError

    @method(Model(), loads=True, prepares=True)
    def restore(self, kind: str, checkpoint: Checkpoint, folder: Path) -> Any:
        """Load again what `save` wrote. `kind` is "actor", "reward" or "critic"; `checkpoint` is what the model was
        first loaded from (a LoRA adapter needs its base)."""
        raise NotImplementedError

    @method(Named(), optional=True)
    def parameters(self, model: Any) -> Mapping[str, Parameter]:
        """Parameters by name. The default looks at the model, its `.model`, its `.module` or its `.actor`."""
        for candidate in (model, *(getattr(model, name, None) for name in ("model", "module", "actor"))):
            if candidate is not None and hasattr(candidate, "named_parameters"):
                return dict(candidate.named_parameters())
        raise TypeError(f"{type(model).__name__} has no named_parameters(): override Adapter.parameters")

    @method(Named(), optional=True)
    def checkpoint_weights(self, model: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The checkpoint's weights by its names, made of `tensors`, which lie like `parameters(model)`, by operations
        that have a gradient: rows put back in order, a fused weight split, what an adapter adds. Names only have to
        end as in the checkpoint. The default leaves them as they are, and adds LoRA's products as peft scales them."""
        return merged(model, self.parameters(model), tensors)

    @method(prepares=True, optional=True)
    def weights_moved(self, model: Any) -> None:
        """Called after the parameters were changed in place, as by a step of the optimizer: what the trainer does then
        for whoever keeps a copy of them, such as a generation engine. The default does nothing."""

    @method(prepares=True, optional=True)
    def set_training(self, model: Any, training: bool) -> None:
        """Switch between train and eval mode. The default switches the model; one without modes stays as it is."""
        if hasattr(model, "train"):
            model.train(training)
