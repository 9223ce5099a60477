"""A backbone and a linear head: one score at every position. What the reward model and the critic share."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from rlhf_reference.checkpoint import HEAD_FILE, Head, MissingHeadError, find_head, new_head
from rlhf_reference.inputs import ModelInputs
from rlhf_reference.loading import LoadOptions, load, with_checkpointing, without_dropout
from rlhf_reference.lora import LoraOptions, find_saved, save_weights, with_lora

Model = TypeVar("Model", bound="RegressionModel")


class RegressionModel(nn.Module):
    """A transformers backbone and a linear head. It begins in eval mode; its dropout is that of `Actor`.

    path                    folder with config.json and safetensors: the backbone under transformers' names, the head as
                            `<head_name>.weight` (1, hidden) and, if it has a bias, `<head_name>.bias` (1,)
    head_name               None: found in the checkpoint
    normalize               scores are (score - mean) / std; when, the subclass says
    mean, std               numbers. These three, if None, are what config.json says under `normalize_reward`, `mean`,
                            `std` (OpenRLHF's names), else False, 0 and 1
    lora                    a new adapter on the backbone, or the folder of a saved one with its head; the head is
                            trained as well
    init_head               draw a head if the checkpoint has none of any name; one that is there is never drawn anew
    gradient_checkpointing  as for `Actor`
    loading                 as in `LoadOptions`; the head has the backbone's dtype, and is never quantized
    raises                  MissingHeadError without init_head; ValueError if std is not positive, and as `LoadOptions`
                            and `load` do
    """

    def __init__(
        self,
        path: str | Path,
        *,
        head_name: str | None = None,
        normalize: bool | None = None,
        mean: float | None = None,
        std: float | None = None,
        lora: LoraOptions | str | Path | None = None,
        init_head: bool = False,
        gradient_checkpointing: bool = False,
        **loading: Any,
    ) -> None:
        super().__init__()
        options = LoadOptions(**loading)
        saved = path if lora is None or isinstance(lora, LoraOptions) else lora
        backbone = load(AutoModel, path, options)
        self.prefix: str = backbone.base_model_prefix
        head = self._find_head(saved, backbone, head_name, init_head)
        self.head_name = head.name
        self.head = nn.Linear(head.weight.shape[1], 1, head.bias is not None, backbone.device, backbone.dtype)
        self.backbone: Any = with_lora(with_checkpointing(without_dropout(backbone), gradient_checkpointing), lora)
        with torch.no_grad():
            self.head.weight.copy_(head.weight)
            if head.bias is not None:
                self.head.bias.copy_(head.bias)

        # Numbers and not buffers: a buffer that is not in the checkpoint comes out of loading with anything in it.
        config = AutoConfig.from_pretrained(saved, trust_remote_code=options.trust_remote_code)
        self.normalize = bool(getattr(config, "normalize_reward", False) if normalize is None else normalize)
        self.mean = float(getattr(config, "mean", 0.0) if mean is None else mean)
        self.std = float(getattr(config, "std", 1.0) if std is None else std)
        if not self.std > 0:
            raise ValueError(f"std is {self.std}; it must be positive")
        self.eval()

    @staticmethod
    def _find_head(folder: str | Path, backbone: Any, head_name: str | None, init: bool) -> Head:
        keys = list(backbone.state_dict())
        known = {*keys, *(f"{backbone.base_model_prefix}.{key}" for key in keys)}
        hidden_size = backbone.config.hidden_size
        try:
            return find_head(folder, hidden_size, backbone_keys=known, head_name=head_name)
        except MissingHeadError as error:
            if not init or error.found:
                raise
            return Head(head_name or "score", new_head(hidden_size, torch.float32))

    def run(self, inputs: ModelInputs) -> Any:
        """The backbone's output, with last_hidden_state (B, L, hidden) in the dtype of the weights."""
        return self.backbone(**inputs.for_model(self.backbone))

    def scores(self, output: Any) -> Tensor:
        """What the head says at each position, pads included: (B, L), fp32 or better, not normalized."""
        weight = self.head.weight.to(torch.promote_types(self.head.weight.dtype, torch.float32))
        bias = None if self.head.bias is None else self.head.bias.to(weight)
        return nn.functional.linear(output.last_hidden_state.to(weight), weight, bias).squeeze(-1)

    def normalized(self, scores: Tensor) -> Tensor:
        """(score - mean) / std."""
        return (scores - self.mean) / self.std

    def named_checkpoint_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters under the names that they have on disk. With LoRA the backbone's names are peft's."""
        backbone = {f"{self.prefix}.{name}": value for name, value in self.backbone.named_parameters()}
        return backbone | {f"{self.head_name}.{name}": value for name, value in self.head.named_parameters()}

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors, head included; with LoRA head.safetensors and the adapter."""
        folder = Path(folder)
        head = {f"{self.head_name}.{name}": value.contiguous() for name, value in self.head.state_dict().items()}
        config = copy.deepcopy(self.backbone.config)
        config.update({"normalize_reward": self.normalize, "mean": self.mean, "std": self.std, "num_labels": 1})
        config.save_pretrained(folder)
        if hasattr(self.backbone, "peft_config"):
            save_weights(self.backbone, folder)
            save_file(head, folder / HEAD_FILE)
        else:
            backbone = {
                f"{self.prefix}.{name}": value.contiguous() for name, value in self.backbone.state_dict().items()
            }
            save_file(backbone | head, folder / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(cls: type[Model], folder: str | Path, *, base: str | Path | None = None, **options: Any) -> Model:
        """Restore what `save` wrote, the head included; options as for a new model.

        base    the model under a saved adapter, by default the path it was trained on
        raises  FileNotFoundError if nothing was saved there
        """
        path, adapter = find_saved(folder, base)
        return cls(path, lora=adapter, **options)
