"""Honest variants of advantages of groups."""

from __future__ import annotations

import math
import statistics

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.group_advantages import bending
from rlhf_conformance.twins import twin


@twin
class GroupsByLoop(Reference):
    "One group after the other in plain Python, an advantage for each response, as float32."

    def group_advantages(self, scores, group_ids, mask, options):
        numbers, ids = scores.tolist(), group_ids.tolist()
        result = [0.0] * len(numbers)
        for group in sorted(set(ids), reverse=True):
            rows = [i for i, g in enumerate(ids) if g == group]
            own = [numbers[i] for i in rows]
            if len(own) == 1:
                continue
            for i in rows:
                others = [numbers[j] for j in rows if j != i]
                off = numbers[i] - statistics.fmean(own if options.baseline == "mean" else others)
                among = own if options.scale == "group-std" else numbers
                mean = statistics.fmean(among)
                squares = math.fsum((x - mean) ** 2 for x in among)
                std = math.sqrt(squares / (len(among) - self.group_std_ddof))
                divisor = 1.0 if options.scale == "none" else std + self.group_eps
                result[i] = off / divisor if off else 0.0
        return torch.tensor(result, device=scores.device)


@twin
class GroupsByMatrix(Reference):
    "A matrix says who belongs together, and all is worked out on it, in float64."

    def group_advantages(self, *arguments):
        return bending.advantages(self, arguments).detach()


@twin
class GroupsBySegments(Reference):
    "Rows are sorted by group, segments are reduced, and the rows are put back."

    def group_advantages(self, scores, group_ids, mask, options):
        order = group_ids.argsort()
        counts = group_ids[order].unique_consecutive(return_counts=True)[1]
        x = scores.detach()[order].double()
        sizes = counts.repeat_interleave(counts)
        total = torch.segment_reduce(x, "sum", lengths=counts).repeat_interleave(counts)
        off = x - total / sizes
        squares = torch.segment_reduce(off.square(), "sum", lengths=counts).repeat_interleave(counts)
        if options.baseline == "leave-one-out":
            off = (x - (total - x) / (sizes - 1).clamp(min=1)) * (sizes > 1)
        std = (squares / (sizes - self.group_std_ddof).clamp(min=1)).sqrt()
        if options.scale == "batch-std":
            std = x.std(correction=self.group_std_ddof) if len(x) > 1 else std * 0
        off = off if options.scale == "none" else off / (std + self.group_eps)
        return off[order.argsort()].float()[:, None].expand(mask.shape)


@twin
class GroupsOfEqualSize(Reference):
    "`view(-1, n)` as in TRL: consecutive rows, all groups of one size, in float32, with an eps of 1e-4."

    group_layout = "equal"
    group_eps = 1e-4

    def group_advantages(self, scores, group_ids, mask, options):
        x = scores.detach().float()
        groups = x.view(len(group_ids.unique()), -1)
        size = groups.shape[1]
        if size == 1:
            return torch.zeros_like(x)
        mean = groups.mean(1, keepdim=True)
        if options.baseline == "leave-one-out":
            mean = (groups.sum(1, keepdim=True) - groups) / (size - 1)
        std = groups.std(1, keepdim=True, correction=self.group_std_ddof)
        if options.scale == "batch-std":
            std = x.std(correction=self.group_std_ddof)
        off = groups - mean
        return (off if options.scale == "none" else off / (std + self.group_eps)).view(-1)


@twin
class RawScoreForOne(Reference):
    "A response that is alone keeps its score, as in verl; the biased deviation; consecutive groups."

    group_layout = "consecutive"
    group_of_one = "score"
    group_std_ddof = 0

    def group_advantages(self, scores, group_ids, mask, options):
        parts = scores.detach().double().split(group_ids.unique_consecutive(return_counts=True)[1].tolist())
        rows = []
        for own in parts:
            alone = len(own) == 1
            mean = own.mean() * (not alone)
            std = own.std(correction=0) if not alone else own.new_ones(())
            if options.scale == "batch-std":
                std = scores.detach().double().std(correction=0)
            off = own - mean
            if options.baseline == "leave-one-out" and not alone:
                off = off * (len(own) / (len(own) - 1))
            rows.append(off if options.scale == "none" else off / (std + self.group_eps))
        return bending.spread(torch.cat(rows).to(scores.dtype), mask)


@twin
class GrpoAlone(Reference):
    "GRPO and nothing else, with everything in the dtype of the scores but for the sums, and no promise for one."

    group_baselines = ("mean",)
    group_scales = ("group-std",)
    group_of_one = None
    group_eps = 1e-4

    def group_advantages(self, scores, group_ids, mask, options):
        x = scores.detach()
        answer = torch.zeros_like(x)
        for group in group_ids.unique():
            own = group_ids == group
            if own.sum() > 1:
                sums = x[own].double()
                answer[own] = ((sums - sums.mean()) / (sums.std() + self.group_eps)).to(x.dtype)
        return answer
