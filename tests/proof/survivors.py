"""Why a mutant that no test sees is harmless, or that it is not: one row for each edit, or for a class of them.

The first row that fits an edit is its reason; `python -m tests.proof pages` stops at an edit without one.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

KINDS = {
    "equivalent": "does the same with everything that is allowed to come",
    "CPU": "says on which device a tensor is made; without a GPU there is only one, `nox -s cuda` is where it counts",
    "message": "what an error says to people; its class is the promise",
    "beyond": "shows only in what is promised to nobody: what comes of a wrong argument, how much memory is taken",
    "open": "a slip that a test ought to see, and none does",
}


@dataclass(frozen=True)
class Reason:
    """
    where   patterns of functions, the package left out
    edit    regular expression that is found in "old -> new"
    shown   whether the page shows the edits, or only counts them
    """

    where: str
    edit: str
    kind: str
    why: str
    shown: bool = True


DEVICE = (
    r"^(.*?),? ?device=[\w.\[\]]+(.*) -> \1,? ?(device=None)?\2$"
    r"|^device=\S+ -> $"
    r"|^(.*_chunks\(.*), [\w.]+device(.*) -> \4, (None)?\5$"
)
MESSAGE = (
    r'^(raise|f").* -> (raise \w+\((None|"XX.*XX")\)|None,?|f".*\w\(None\).*|)$'
    r'|^(?i:raise (\w+\("[^"]*"\)) -> raise \4)$'
)
STRICT = r"^(.*), strict=(True|False)(\).*) -> \1, (strict=(None|False))?\3$"

REASONS = (
    # --- anywhere
    Reason("*", DEVICE, "CPU", "the device of a new tensor", shown=False),
    Reason("*", MESSAGE, "message", "another text, or none; the error stays", shown=False),
    Reason(
        "*",
        STRICT,
        "beyond",
        "the lists are of one length, or need not be; `strict` is for who calls wrongly",
        shown=False,
    ),
    Reason(
        "aggregation.aggregate actor.Actor._choose log_probs.* positions.* truth._log_probs",
        r"[([]-1\b.* -> .*[([]\+1\b",
        "equivalent",
        "of two axes the second is the last",
    ),
    # --- the reference
    Reason(
        "aggregation.aggregate",
        r"count > 0, 1\) -> .*count > 1, 1\)",
        "equivalent",
        "counts are whole numbers, and a count of 1 is exchanged for 1",
    ),
    Reason(
        "aggregation.aggregate",
        r"count > 0, 1\) -> .*count > 0, 2\)",
        "equivalent",
        "where the count is 0 the total is 0, whatever divides it",
    ),
    Reason("actor.Actor.__init__", r"source\.to\(", "CPU", "where a module is that is used as it came"),
    Reason(
        "log_probs._kept",
        r"where\(kept, [01]\)",
        "equivalent",
        "where a label is ignored any word will do: the result is 0",
    ),
    Reason(
        "log_probs.token_*", r"chunk_size: int = 1024.*chunk_size: int = 1025", "beyond", "how much memory is taken"
    ),
    Reason(
        "*_loss.*",
        r"where\(mask, 0\.0\).* -> .*where\(mask, 1\.0\)",
        "equivalent",
        "what is put under the mask is left out of every mean",
    ),
    Reason(
        "inputs.ModelInputs.for_model",
        r'^"attention_mask"',
        "equivalent",
        "without a mask transformers 5 begins a sequence wherever a position does not follow, and pads have position 0",
    ),
    Reason(
        "inputs.ModelInputs.mask_for",
        r"float64 or model.* -> .*float64 and model",
        "equivalent",
        "the mask that only eager attention in float64 needs says the same to the others",
    ),
    Reason(
        "inputs.ModelInputs._last_columns",
        r"states\] >= 0",
        "beyond",
        "a first token counted as an action, which has no state before it",
    ),
    Reason(
        "inputs.ModelInputs.next_tokens",
        r"value=IGNORED_LABEL",
        "equivalent",
        "no action is read at the last position, so its label is never used",
    ),
    Reason(
        "inputs.ModelInputs._last_of_each_row",
        r"where\(real, [01]\)",
        "equivalent",
        "which column is read where there is no action: the 0 that is put there hides it",
    ),
    Reason(
        "sequences.process_sequences",
        r"dtype=response\.dtype",
        "equivalent",
        "ids are compared by value, whatever the width of the integers",
    ),
    Reason(
        "regression.RegressionModel.save",
        r"copy\.deepcopy.* -> .*copy\.copy",
        "equivalent",
        "only attributes of the copy itself are set",
    ),
    Reason(
        "loading._nf4",
        r"load_in_4bit=True,? ?(.*) -> .*(BitsAndBytesConfig\(bnb|load_in_4bit=False)",
        "equivalent",
        "transformers takes 4 bits where 8 are not asked for",
    ),
    Reason(
        "lora.save_weights",
        r"save_embedding_layers|\*\*options",
        "beyond",
        "peft then finds out by itself that embeddings are not trained, from the base's files if it has them",
    ),
    Reason(
        "inputs.ModelInputs._last_of_each_row",
        r"^raise .*mask\.sum\(None\)",
        "message",
        "how many tokens the rows have is told as a sum",
    ),
    Reason("checkpoint.find_head", r"^(asked|found) = ", "message", "what a missing head is called", shown=False),
    Reason("loading.load", r"^return model if", "CPU", "where a model is put"),
    Reason("lora.with_lora", r'"ALL-LINEAR"', "equivalent", "peft reads it in any case"),
    Reason("loading.load", r'"device_map": \{"XXXX"', "CPU", "which device a 4-bit model is put on"),
    Reason("regression.RegressionModel._find_head", r"hidden_size, None\)", "equivalent", "float32 is torch's default"),
    Reason("regression.RegressionModel.__init__", r"bias=None", "equivalent", "None is as false"),
    Reason("regression.RegressionModel.__init__", r'"normalize_reward", None', "equivalent", "None is as false"),
    # --- the suite
    Reason(
        "results.Report.command",
        r", None\)|\(\"(command|report)\", \)",
        "equivalent",
        "nothing stands for no command, and no path",
    ),
    Reason("truth.Truth.alone", "None", "equivalent", "no more plain than False; the model is loaded a second time"),
    Reason(
        "budgets.model_output", r"temperature: float = 2\.0", "equivalent", "a temperature above 1 counts as 1 here"
    ),
    Reason("judge.Judge.close", r"ratio > self.margin", "equivalent", "the larger of two equal numbers is either"),
    Reason("judge._gather", r"torch\.bool", "equivalent", "as a float64, too, true is 1"),
    Reason("judge._gather", r"is float", "equivalent", "the short way for what the long way gives as well"),
    Reason("layouts.present", r"temperature, None\)", "CPU", "the device of the batch"),
    Reason("batch.Batch.actions_to_ragged", r"\.to\(None\)", "CPU", "where an answer is"),
    Reason("truth.Alone.load", r"dtype=None", "equivalent", "the module is brought to its dtype afterwards"),
    Reason("truth.Alone.load truth.Truth._model", r"fork_rng|device", "CPU", "where the oracle runs"),
    Reason(
        "truth.Alone.__call__",
        r"positions? = |position_ids=|use_cache=",
        "equivalent",
        "without positions transformers counts from 0, and a cache is not used again",
    ),
    Reason("truth.Truth.reward", r"\[1\] .*\[2\] ", "equivalent", "a mask marks with whatever is not 0"),
    Reason(
        "truth.Truth.gradients",
        r"set_to_none=",
        "equivalent",
        "every parameter takes part in each answer, so none keeps a 0 of the time before",
    ),
)


def find(function: str, edit: str) -> Reason | None:
    """The first row that fits, if any does."""
    name = function.partition(".")[2]
    for row in REASONS:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in row.where.split()) and re.search(row.edit, edit):
            return row
    return None


def reason(function: str, edit: str) -> Reason:
    """Raises LookupError if no row fits."""
    found = find(function, edit)
    if found is None:
        raise LookupError(f"{function}: {edit}")
    return found
