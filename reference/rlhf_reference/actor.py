"""The policy: a causal language model that tells the log-probs of its actions, and samples them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rlhf_reference.inputs import ModelInputs, NumActions
from rlhf_reference.loading import LoadOptions, evaluating, load, with_checkpointing, without_dropout
from rlhf_reference.log_probs import token_entropy, token_log_probs
from rlhf_reference.lora import LoraOptions, find_saved, save_weights, with_lora
from rlhf_reference.sampling import choose_tokens


class Actor(nn.Module):
    """A causal LM as a policy. It begins in eval mode.

    The network has no dropout in either mode, whatever its config says, so the ratio is 1 before the first step. Only a
    LoRA adapter may have it (`LoraOptions.dropout`), in train mode: then log-probs of train and eval mode differ, and
    the ratio is 1 before the first step if both of its sides are taken in eval mode.

    source                  folder of a checkpoint, or a transformers module, which is used as it is, not copied: its
                            weights, their dtype and their attention; its dropout is set to 0
    temperature             T of the policy softmax(z / T): of its log-probs, its entropy and its sampling alike
    lora                    a new adapter, or the folder of a saved one
    gradient_checkpointing  in train mode the layers' activations are computed again in the backward pass; answers and
                            gradients are the same
    loading                 how a folder is loaded, as in `LoadOptions`; of a module only `device` can be chosen
    raises                  ValueError as `LoadOptions` and `load` do, and for a module with other options than `device`
    """

    def __init__(
        self,
        source: str | Path | nn.Module,
        *,
        temperature: float = 1.0,
        lora: LoraOptions | str | Path | None = None,
        gradient_checkpointing: bool = False,
        **loading: Any,
    ) -> None:
        super().__init__()
        options = LoadOptions(**loading)
        if not isinstance(source, nn.Module):
            model = load(AutoModelForCausalLM, source, options)
        elif loading.keys() - {"device"}:
            raise ValueError(f"of {sorted(loading)} only device can be chosen for a module; the others need a path")
        else:
            model = source if options.device is None else source.to(options.device)
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
            num_actions = T             (B, T), of the last T tokens of each row; 0 on pads, and at a row's first real
                                        token, which no state predicts
            num_actions = (n_1, ...)    (B, max n), of the last n_i real tokens of row i, from the left; 0 after them
        Pack (input_ids (1, N), no mask, and position_ids that restart or sequence_lengths):
            num_actions = (n_1, ...)    (1, sum n), of the last n_i tokens of each sequence; lengths are needed only
                                        if the padding at the end of the pack goes on counting where the last
                                        sequence stops

        num_actions None: the output of the transformers model itself; its `.logits` are (B, L, V).
        return_entropy, return_output: a tuple, the log-probs first, then the entropy in the same shape, then that
        output, whose logits are the model's own, not divided by the temperature.
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
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float = 1.0,
    ) -> Tensor:
        """Continue left-padded prompts until a stop token or for `max_new_tokens`, in eval mode.

        input_ids, attention_mask  (B, P)
        do_sample                  False: the most probable token; True: drawn from softmax(z / T), whose log-probs
                                   `forward` gives
        temperature                None: the actor's, which is that of its log-probs
        top_k, top_p               as in `choose_tokens`. All three have neutral defaults; with others, tokens are drawn
                                   from another distribution than the one whose log-probs `forward` gives
        returns                    (B, P + T) int64, T <= max_new_tokens: the prompts, the responses with their stop
                                   tokens, then pads
        raises                     ValueError as `choose_tokens` does

        A loop of its own, because `model.generate` also obeys the checkpoint's generation_config.json: a top-k or a
        repetition penalty there would sample from another policy than the one that is trained.
        """
        temperature = self.temperature if temperature is None else temperature
        choose = partial(choose_tokens, do_sample=do_sample, temperature=temperature, top_k=top_k, top_p=top_p)
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
                new_tokens = choose(output.logits[:, -1]).where(~finished, pad_token_id).unsqueeze(1)
                rows = torch.cat([rows, new_tokens], dim=1)
                mask = torch.cat([mask, (~finished).long().unsqueeze(1)], dim=1)
                finished = finished | torch.isin(new_tokens.squeeze(1), stops)
                if finished.all():
                    break
        return rows

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
