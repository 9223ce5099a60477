"""Liars about generation: what the model sees while it goes on, which token it takes, and the rows that come back."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import first_where, positions_of
from rlhf_conformance.faults import fault


@fault("actor.generate", bug="forward-without-mask", also=("actor.",))
class GenerateWithoutMask(Reference):
    """Generation gets the padded prompts without their mask."""

    def generate(self, actor, prompts):
        return super().generate(actor, replace(prompts, attention_mask=torch.ones_like(prompts.attention_mask)))


@fault("actor.generate", bug="positions-ignore-left-pad")
class GeneratePositionsByColumn(Reference):
    """Generation masks the pads but counts them in the positions."""

    def generate(self, actor, prompts):
        rows, mask = prompts.input_ids, prompts.attention_mask
        for _ in range(prompts.max_new_tokens):
            positions = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
            new = actor(rows, attention_mask=mask, position_ids=positions).logits[:, -1:].argmax(-1)
            rows, mask = torch.cat([rows, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
        return rows


class _OwnLoop(Reference):
    """Rows grow by one token after the other, each the highest of `scores`; without stops."""

    def positions(self, prompts, mask):
        return positions_of(mask)

    def scores(self, actor, logits, rows, prompts):
        return logits

    def generate(self, actor, prompts):
        rows, mask = prompts.input_ids, prompts.attention_mask
        for _ in range(prompts.max_new_tokens):
            with torch.no_grad():
                out = actor(rows, attention_mask=mask, position_ids=self.positions(prompts, mask)).logits[:, -1]
            new = self.scores(actor, out, rows, prompts).argmax(-1, keepdim=True)
            rows, mask = torch.cat([rows, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
        width = prompts.input_ids.shape[1]
        stops = torch.isin(rows[:, width:], torch.tensor(prompts.stop_token_ids, dtype=torch.long)).long()
        over = stops.cumsum(-1) - stops > 0
        longest = int((~over).sum(-1).max())
        return torch.cat([rows[:, :width], rows[:, width:].masked_fill(over, prompts.pad_token_id)], 1)[
            :, : width + longest
        ]


@fault("actor.generate", bug="one-position-counter")
class GenerateOneCounterForAllRows(_OwnLoop):
    """Prompts are read at the right positions, and continued in all rows at those of the longest."""

    def positions(self, prompts, mask):
        width = prompts.input_ids.shape[1]
        right = positions_of(mask)
        return torch.cat([right[:, :width], right[:, width:].amax(0).expand(len(mask), -1)], 1)


@fault("actor.generate", also=("actor.",))
class GenerateSharesPenalties(_OwnLoop):
    """What stands in one row is not chosen in any other."""

    def scores(self, actor, logits, rows, prompts):
        return logits.index_fill(1, rows[:1].unique(), -torch.inf) if len(rows) > 1 else logits


@fault("actor.generate")
class GenerateLosesTheRest(Reference):
    """Prompts are continued eight at a time; those behind the last whole eight are filled with the pad id."""

    def generate(self, actor, prompts):
        answer, width = super().generate(actor, prompts), prompts.input_ids.shape[1]
        whole = len(answer) // 8 * 8 or len(answer)
        answer[whole:, width:] = prompts.pad_token_id
        return answer


@fault("actor.generate-greedy")
class GenerateTakesTheSecond(_OwnLoop):
    """The second of the tokens is taken where the first is ahead by little."""

    def scores(self, actor, logits, rows, prompts):
        first, second = logits.topk(2).values.unbind(-1)
        taken = logits.scatter(1, logits.argmax(-1, keepdim=True), -torch.inf)
        return torch.where((first - second < 0.3)[:, None], taken, logits)


@fault("actor.generate-greedy", bug="rollout-of-other-weights")
class GenerateFromOtherWeights(Reference):
    """The engine that generates holds other weights than the policy."""

    def generate(self, actor, prompts):
        weight = actor.model.get_output_embeddings().weight
        with torch.no_grad():
            kept = weight.clone()
            weight.mul_(torch.linspace(0.5, 1.5, len(weight))[:, None])
            rows = super().generate(actor, prompts)
            weight.copy_(kept)
        return rows


class _ConfigObeyed(Reference):
    """model.generate of transformers, with what `kept` names of the checkpoint's generation_config.json."""

    kept: tuple[str, ...] = ()

    def generate(self, actor, prompts):
        said = actor.model.generation_config
        config = type(said)(**{name: getattr(said, name) for name in self.kept})
        actor.model.generation_config = type(said)()
        try:
            return actor.model.generate(
                prompts.input_ids,
                attention_mask=prompts.attention_mask,
                generation_config=config,
                max_new_tokens=prompts.max_new_tokens,
                eos_token_id=list(prompts.stop_token_ids) or None,
                pad_token_id=prompts.pad_token_id,
            )
        finally:
            actor.model.generation_config = said


@fault("actor.generate-config", bug="sampling-options-of-the-checkpoint")
class RepetitionPenaltyOfTheCheckpoint(_ConfigObeyed):
    """The checkpoint's repetition penalty is applied."""

    kept = ("repetition_penalty",)


@fault("actor.generate-config", bug="sampling-options-of-the-checkpoint")
class SamplesAsTheCheckpointSays(_ConfigObeyed):
    """do_sample, temperature and cuts are those of the checkpoint."""

    kept = ("do_sample", "temperature", "top_k", "top_p")


@fault("actor.generate-config")
class SuppressedWordsOfTheCheckpoint(_ConfigObeyed):
    """Tokens that the checkpoint suppresses are never taken."""

    kept = ("suppress_tokens",)


@fault("actor.generate-config")
class LeastLengthOfTheCheckpoint(_ConfigObeyed):
    """The checkpoint's least length withholds the stop token."""

    kept = ("min_new_tokens",)


@fault("actor.generate-config")
class BeamsOfTheCheckpoint(_ConfigObeyed):
    """Beam search, since the checkpoint asks for it."""

    kept = ("num_beams", "length_penalty")


@fault("actor.generate-greedy")
class GenerateSamples(Reference):
    """Tokens are drawn where greedy ones were asked for."""

    def generate(self, actor, prompts):
        return actor.generate(
            prompts.input_ids,
            prompts.attention_mask,
            max_new_tokens=prompts.max_new_tokens,
            stop_token_ids=prompts.stop_token_ids,
            pad_token_id=prompts.pad_token_id,
            do_sample=True,
        )


@fault("actor.generate-greedy")
class GenerateNeverRepeats(Reference):
    """A token that stands in the row already is not chosen again, as generation_config.json may ask."""

    def generate(self, actor, prompts):
        rows, mask = prompts.input_ids, prompts.attention_mask
        for _ in range(prompts.max_new_tokens):
            last = actor(rows, attention_mask=mask).logits[:, -1]
            new = last.scatter(1, rows, -torch.inf).argmax(-1, keepdim=True)
            rows, mask = torch.cat([rows, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
        return rows


@fault("actor.generate-greedy")
class GenerateForgetsFirstPromptToken(Reference):
    """The first real token of each prompt is masked out."""

    def generate(self, actor, prompts):
        mask = prompts.attention_mask
        late = mask.scatter(1, first_where(mask > 0)[:, None], 0)
        return super().generate(actor, replace(prompts, attention_mask=torch.where(late.sum(-1, True) > 0, late, mask)))


@fault("actor.generate-layout")
class GenerateStopsWithFirstRow(Reference):
    """The whole batch stops when its first row does."""

    def generate(self, actor, prompts):
        rows, width = super().generate(actor, prompts), prompts.input_ids.shape[1]
        stopped = torch.isin(rows[:, width:], torch.tensor(prompts.stop_token_ids)).any(0)
        return rows[:, : width + int(stopped.long().argmax()) + 1] if stopped.any() else rows


@fault("actor.generate-layout")
class GenerateRunsOnAfterStop(Reference):
    """A row that has stopped goes on with text."""

    def generate(self, actor, prompts):
        return super().generate(actor, replace(prompts, stop_token_ids=()))


@fault("actor.generate-layout", bug="one-eos-id")
class GenerateKnowsOneStop(Reference):
    """Only the first id of the stop set ends a row."""

    def generate(self, actor, prompts):
        return super().generate(actor, replace(prompts, stop_token_ids=prompts.stop_token_ids[:1]))


@fault("actor.generate-greedy")
class GenerateOverwritesStop(Reference):
    """The stop token is replaced by the pad id."""

    def generate(self, actor, prompts):
        rows, width = super().generate(actor, prompts), prompts.input_ids.shape[1]
        response = rows[:, width:]
        stops = torch.isin(response, torch.tensor(prompts.stop_token_ids, dtype=torch.long))
        return torch.cat([rows[:, :width], response.masked_fill(stops, prompts.pad_token_id)], 1)


@fault("actor.generate-greedy", bug="eos-overwrites-truncated")
class GenerateEndsInStop(Reference):
    """A row that reached max_new_tokens gets a stop token for its last one."""

    def generate(self, actor, prompts):
        rows = super().generate(actor, prompts)
        if not prompts.stop_token_ids or rows.shape[1] - prompts.input_ids.shape[1] < prompts.max_new_tokens:
            return rows
        stop = torch.full_like(rows[:, -1:], prompts.stop_token_ids[0])
        open_end = ~torch.isin(rows[:, prompts.input_ids.shape[1] :], torch.tensor(prompts.stop_token_ids)).any(1)
        return torch.cat([rows[:, :-1], stop.where(open_end[:, None], rows[:, -1:])], 1)


@fault("actor.generate-layout")
class GenerateOneTokenTooMany(Reference):
    """max_new_tokens + 1 tokens."""

    def generate(self, actor, prompts):
        return super().generate(actor, replace(prompts, max_new_tokens=prompts.max_new_tokens + 1))


@fault("actor.generate-layout")
class GenerateOneTokenTooFew(Reference):
    """max_new_tokens - 1 tokens, as where the limit counts the step that is never taken."""

    def generate(self, actor, prompts):
        return super().generate(actor, replace(prompts, max_new_tokens=max(1, prompts.max_new_tokens - 1)))


@fault("actor.generate-layout")
class GenerateFillsWithStop(Reference):
    """A finished row repeats its stop token."""

    def generate(self, actor, prompts):
        rows, width = super().generate(actor, prompts).clone(), prompts.input_ids.shape[1]
        for row in rows:
            stops = torch.isin(row[width:], torch.tensor(prompts.stop_token_ids, dtype=torch.long)).nonzero()
            if len(stops):
                row[width + int(stops[0]) :] = row[width + int(stops[0])].clone()
        return rows


@fault("actor.generate-layout")
class GenerateFillsWithZero(Reference):
    """A finished row is filled with id 0, whatever the pad id."""

    def generate(self, actor, prompts):
        return super().generate(actor, replace(prompts, pad_token_id=0))


@fault("actor.generate-layout")
class GenerateMovesPrompts(Reference):
    """Left pads are taken out and put at the end of the row."""

    def generate(self, actor, prompts):
        rows = super().generate(actor, prompts)
        pads = (prompts.attention_mask == 0).sum(-1).tolist()
        return torch.stack([row.roll(-pad) for row, pad in zip(rows, pads, strict=True)])


@fault("actor.generate-greedy")
class GenerateOnePositionAhead(_OwnLoop):
    """Prompts are read at the right positions, and what was generated one position too far."""

    def positions(self, prompts, mask):
        new = torch.arange(mask.shape[1], device=mask.device) >= prompts.input_ids.shape[1]
        return positions_of(mask) + new


@fault("actor.generate-layout")
class GenerateStopsAtEosAnyway(Reference):
    """The EOS of the checkpoint ends a row, whether it is among the stops or not."""

    def generate(self, actor, prompts):
        said = actor.model.config.eos_token_id
        own = said if isinstance(said, list) else [said]
        return super().generate(actor, replace(prompts, stop_token_ids=(*prompts.stop_token_ids, *own)))


@fault("actor.generate-layout")
class GeneratePadsLikeTheCheckpoint(Reference):
    """Rows that have ended are filled with the pad id of the checkpoint, whichever was asked for."""

    def generate(self, actor, prompts):
        rows, width = super().generate(actor, prompts), prompts.input_ids.shape[1]
        stops = torch.isin(rows[:, width:], torch.tensor(prompts.stop_token_ids, dtype=torch.long)).long()
        ended = stops.cumsum(-1) - stops > 0
        return torch.cat([rows[:, :width], rows[:, width:].masked_fill(ended, actor.model.config.pad_token_id)], 1)


@fault("actor.side-effects")
class GenerateLeavesLayersInEvalMode(Reference):
    """Generation leaves the layers in eval mode."""

    def generate(self, actor, prompts):
        actor.model.eval()  # the actor itself says train mode
        return super().generate(actor, prompts)
