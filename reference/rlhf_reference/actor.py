"""The policy: a causal language model that tells the log-probs of its actions, and samples them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rlhf_reference.inputs import ModelInputs, NumActions
from rlhf_reference.loading import evaluating, load, with_checkpointing, without_dropout
from rlhf_reference.log_probs import token_entropy, token_log_probs
from rlhf_reference.lora import LoraOptions, find_saved, save_weights, with_lora


class Actor(nn.Module):
    """A causal LM as a policy. It begins in eval mode and never has dropout, so the ratio is 1 before the first step.

    source               folder of a checkpoint, or a transformers module, which is used as it is but for its dropout
    dtype                of the weights of a path; a module keeps its own
    attn_implementation  of a path: "sdpa", "eager" or what else transformers has
    device               None: the CPU for a path, where it is for a module
    temperature          T of the policy softmax(z / T): of its log-probs, its entropy and its sampling alike
    lora                 a new adapter, or the folder of a saved one
    load_in_4bit         NF4 weights through bitsandbytes; ImportError where it is missing, ValueError for a module
    gradient_checkpointing  in train mode the layers' activations are computed again in the backward pass; the answers
                         and the gradients are the same with and without, and in train and eval mode
    """

    def __init__(
        self,
        source: str | Path | nn.Module,
        *,
        dtype: torch.dtype = torch.float32,
        attn_implementation: str = "sdpa",
        device: torch.device | str | None = None,
        temperature: float = 1.0,
        lora: LoraOptions | str | Path | None = None,
        load_in_4bit: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(source, nn.Module):
            if load_in_4bit:
                raise ValueError("load_in_4bit quantises while loading, so it takes a path and not a module")
            model = source if device is None else source.to(device)
        else:
            model = load(
                AutoModelForCausalLM,
                source,
                dtype=dtype,
                attn_implementation=attn_implementation,
                device=device,
                load_in_4bit=load_in_4bit,
            )
        self.model: Any = with_lora(with_checkpointing(without_dropout(model), gradient_checkpointing), lora)
        self.temperature = temperature
        self.eval()

    def forward(
        self,
        input_ids: Tensor,
        num_actions: NumActions | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        sequence_lengths: Sequence[int] | None = None,
        return_entropy: bool = False,
        return_output: bool = False,
    ) -> Any:
        """Log-probs of the actions, in nats, fp32 or better, with a graph.

        Padded rows (input_ids and attention_mask (B, L); position_ids follow from the mask):
            num_actions = T             (B, T), of the last T tokens of each row; 0 on pads
            num_actions = (n_1, ...)    (B, max n), of the last n_i real tokens of row i, from the left; 0 after them
        Pack (input_ids (1, N), no mask, and position_ids that restart or sequence_lengths):
            num_actions = (n_1, ...)    (1, sum n), of the last n_i tokens of each sequence; lengths are needed only
                                        if the padding at the end of the pack goes on counting where the last
                                        sequence stops

        num_actions None: the output of the transformers model itself; its `.logits` are (B, L, V).
        return_entropy, return_output: a tuple, the log-probs first, then the entropy in the same shape, then that
        output.
        raises: ValueError as `ModelInputs` does, if the arguments do not fit each other.
        """
        inputs = ModelInputs.of(input_ids, attention_mask, position_ids, sequence_lengths)
        output = self.model(**inputs.for_model(self.model))
        if num_actions is None:
            return output
        log_probs = token_log_probs(output.logits, inputs.next_tokens(), temperature=self.temperature)
        results = [inputs.at_actions(log_probs, num_actions)]
        if return_entropy:
            entropy = token_entropy(output.logits, temperature=self.temperature)
            results.append(inputs.at_actions(entropy, num_actions))
        if return_output:
            results.append(output)
        return tuple(results) if len(results) > 1 else results[0]

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        max_new_tokens: int,
        stop_token_ids: Sequence[int],
        pad_token_id: int,
        do_sample: bool = False,
    ) -> Tensor:
        """Continue left-padded prompts until a stop token or for `max_new_tokens`.

        input_ids, attention_mask  (B, P)
        do_sample                  False: the most probable token; True: drawn from softmax(z / T), whose log-probs
                                   `forward` gives
        returns                    (B, P + T) int64, T <= max_new_tokens: the prompts, the responses with their stop
                                   tokens, then pads

        A loop of its own, because `model.generate` also obeys the checkpoint's generation_config.json: a top-k or a
        repetition penalty there would sample from another policy than the one that is trained.
        """
        stops = torch.tensor(list(stop_token_ids), dtype=input_ids.dtype, device=input_ids.device)
        finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        rows, mask, new_tokens, cache = input_ids, attention_mask.long(), input_ids, None
        with evaluating(self):  # in train mode checkpointing has no cache, and LoRA may have dropout
            for _ in range(max_new_tokens):
                inputs = ModelInputs.of(rows, mask)
                output = self.model(
                    input_ids=new_tokens,
                    attention_mask=inputs.mask_for(self.model) if cache is None else mask,
                    position_ids=inputs.position_ids[:, -new_tokens.shape[1] :],
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = output.past_key_values
                new_tokens = self._choose(output.logits[:, -1], do_sample).where(~finished, pad_token_id).unsqueeze(1)
                rows = torch.cat([rows, new_tokens], dim=1)
                mask = torch.cat([mask, (~finished).long().unsqueeze(1)], dim=1)
                finished = finished | torch.isin(new_tokens.squeeze(1), stops)
                if finished.all():
                    break
        return rows

    def _choose(self, logits: Tensor, do_sample: bool) -> Tensor:
        """(B, V) logits to (B,) tokens."""
        if not do_sample:
            return logits.argmax(-1)
        return torch.multinomial((logits.float() / self.temperature).softmax(-1), 1).squeeze(1)

    def save(self, folder: str | Path) -> None:
        """Write the weights, in transformers' form; with LoRA the adapter alone, in peft's."""
        save_weights(self.model, folder)

    @classmethod
    def load(cls, folder: str | Path, *, base: str | Path | nn.Module | None = None, **options: Any) -> Actor:
        """Restore what `save` wrote; options as for a new Actor.

        base    the model under a saved adapter, by default the path it was trained on
        raises  FileNotFoundError if nothing was saved there; ValueError if an adapter's base is not known
        """
        source, adapter = find_saved(folder, base)
        return cls(source, lora=adapter, **options)
