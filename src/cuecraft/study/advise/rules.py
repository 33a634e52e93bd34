"""What `advise` recommends: two tables of thresholds and reasons, the only place of decision; and the next command.

`FITS` says which methods fit, by the labels of each class; of those that fit, the first is the one to try. `CHECKS`
says what to look at: each is a figure, the value from which on it matters, and what to say then. A threshold is a
judgement unless its reason names a measurement.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from cuecraft.data.readers import AS_USUAL, Reading
from cuecraft.study.advise.measure import EPOCHS, MethodWork
from cuecraft.study.advise.survey import Survey
from cuecraft.task.chat import ChatChoice
from cuecraft.task.rendering import HeadKind
from cuecraft.task.sections import ModelSection, WritingSection

WORDS = (HeadKind.CAUSAL, HeadKind.MASKED)
ANY = tuple(HeadKind)


@dataclass(frozen=True)
class Fit:
    """A method and the data that it fits.

    Args:
        name: as shown.
        least: labels of each class from which on it fits.
        below: labels of each class from which on it fits no more.
        heads: kinds of backbone that it works with.
        work: what it does with the model.
        command: words of its command, without data and model.
        why: the reason, in one line.
        epochs: of a training.
        time_limit: seconds that it is given.
    """

    name: str
    least: float
    below: float
    heads: tuple[HeadKind, ...]
    work: MethodWork
    command: tuple[str, ...]
    why: str
    epochs: int = EPOCHS
    time_limit: int | None = None

    def holds(self, labels_per_class: float, head: HeadKind) -> bool:
        """Return whether it fits so many labels of each class and a kind of backbone."""
        return self.least <= labels_per_class < self.below and head in self.heads


def _tune(method: str, *more: str) -> tuple[str, ...]:
    return ("tune", "--method", method, *more)


# Labels of each class where one kind of advice ends and the next begins.
FEW, MANY, THOUSANDS = 9, 100, 1000

FITS = (
    Fit(
        *("label-free", 0, 1, WORDS, MethodWork.POOL, ("tune", "--unlabeled")),
        "a class has no label, so nothing can be trained: prompts of a pool are chosen by how they answer your texts. "
        f"That can be worse than your own words; label {FEW} of each class if you can",
    ),
    Fit(
        *("calibration", 1, FEW, WORDS, MethodWork.READ, _tune("zero-shot", "--option", "calibration=fitted")),
        f"under {FEW} labels a class a trained prompt mostly fits noise; one offset for each class can be fitted",
    ),
    Fit(
        *("label words", 1, FEW, WORDS, MethodWork.READ, ("words",)),
        "other words for the classes often matter more than other prompts, and cost one reading of the texts",
    ),
    Fit(
        *("auto", FEW, MANY, ANY, MethodWork.SEARCH),
        _tune("auto", "--preset", "good", "--time-limit", "600"),
        "tries calibration, words and cue tuning on held-out folds, and keeps the untuned prompt if none wins",
        time_limit=600,
    ),
    Fit(
        *("auto, longer", MANY, THOUSANDS, ANY, MethodWork.SEARCH),
        _tune("auto", "--preset", "best", "--time-limit", "3600"),
        "hundreds of labels carry a longer search: more settings can be compared on held-out folds",
        time_limit=3600,
    ),
    Fit(
        *("deep-cue", FEW, THOUSANDS, ANY, MethodWork.CUE, _tune("deep-cue")),
        "trains the cue on every layer and no weights: enough for tens to hundreds of labels; fast on causal models",
    ),
    Fit(
        *("linear-probe", 1, THOUSANDS, (HeadKind.SEQUENCE,), MethodWork.READ, _tune("linear-probe")),
        "a class head on frozen features: this backbone has no words to answer with",
    ),
    Fit(
        *("lora", MANY, math.inf, ANY, MethodWork.ADAPTER, _tune("lora", "--option", "epochs=3")),
        "with many labels trained weights can overtake a prompt, at the cost of reading every text in every epoch",
        epochs=3,
    ),
    Fit(
        *("full", THOUSANDS, math.inf, ANY, MethodWork.WEIGHTS, _tune("full", "--option", "epochs=3")),
        "with thousands of labels all weights can be trained; it needs the most memory, and a copy of the model",
        epochs=3,
    ),
)


def fitting(labels_per_class: float, head: HeadKind) -> list[Fit]:
    """Return the methods that fit, the one to try first in front."""
    return [fit for fit in FITS if fit.holds(labels_per_class, head)]


@dataclass(frozen=True)
class Facts:
    """The figures that checks look at; None where one is not known.

    Args:
        cut_share: share of the texts that are longer than what fits.
        capacity: tokens of text that fit.
        duplicate_share: share of the rows whose text stood in an earlier row.
        contradictions: texts that stand under several labels.
        imbalance: labelled rows of the largest class over those of the smallest that has any.
        missing_classes: classes without a label.
        scarce_classes: classes with 1 to 3 labels, where others have more.
        partly_unlabelled: rows without a label, where others have one.
        long_words: classes whose label words take several tokens.
        unusable_words: 1 where label words cannot be scored at all.
        numbered_classes: 1 where all classes are named by numbers.
        below_majority: accuracy of always naming the largest class, minus the upper end of zero-shot's interval.
        calibration_gain: by how much the cross-validated calibrated accuracy is above zero-shot's interval, or its own
            interval above the largest class, whichever is less.
        endpoint_lead: lower end of the endpoint's interval, minus the upper end of the calibrated one here.
    """

    cut_share: float | None = None
    capacity: float | None = None
    duplicate_share: float | None = None
    contradictions: float | None = None
    imbalance: float | None = None
    missing_classes: float | None = None
    scarce_classes: float | None = None
    partly_unlabelled: float | None = None
    long_words: float | None = None
    unusable_words: float | None = None
    numbered_classes: float | None = None
    below_majority: float | None = None
    calibration_gain: float | None = None
    endpoint_lead: float | None = None


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Args:
        figure: a field of `Facts`.
        least: the value from which on it matters.
        says: what to say then; names of `Facts` in braces.
    """

    figure: str
    least: float
    says: str


CHECKS = (
    Check(
        *("cut_share", 0.05),
        "{cut_share:.0%} of the texts are longer than the {capacity:.0f} tokens that fit and would lose their end; "
        "shorten them, or take a model with more positions",
    ),
    Check(
        *("duplicate_share", 0.02),
        "{duplicate_share:.0%} of the rows repeat a text; copies on both sides of a split make a score look better "
        "than it is, so remove them",
    ),
    Check(
        *("contradictions", 1),
        "{contradictions:.0f} texts stand under several labels; fix them, as no prompt can be right on both",
    ),
    Check(
        *("imbalance", 4),
        "the largest class has {imbalance:.0f} times the labels of the smallest: judge by macro-F1, not by accuracy",
    ),
    Check(*("missing_classes", 1), "{missing_classes:.0f} of the classes have no label; label a few texts of each"),
    Check(
        *("scarce_classes", 1),
        "{scarce_classes:.0f} of the classes have under 4 labels and hold the rest back; label more of these first",
    ),
    Check(
        *("partly_unlabelled", 1),
        "{partly_unlabelled:.0f} rows have no label, and tuning on labels refuses such rows; keep the labelled rows in "
        "a file of their own, or use all rows without labels",
    ),
    Check(
        *("long_words", 1),
        "{long_words:.0f} of the classes are named by words of several tokens; shorter ones are often better known to "
        "the model: cuecraft words",
    ),
    Check(
        *("unusable_words", 1),
        "the label words cannot be scored with this model, so nothing was measured; look for others: cuecraft words",
    ),
    Check(
        *("numbered_classes", 1),
        "the classes are named by numbers, which say nothing to a language model; give it words (--label-words)",
    ),
    Check(
        *("below_majority", 0),
        "the prompt as written is no better than always naming the largest class; words, template or calibration "
        "matter more here than tuning",
    ),
    Check(
        *("calibration_gain", 0),
        "calibration alone helps beyond chance; compare whatever is tuned with the calibrated prompt",
    ),
    Check(
        *("endpoint_lead", 0),
        "the endpoint's model is better than this one untuned, beyond chance; it shows what can be reached",
    ),
)


def findings(facts: Facts) -> list[dict[str, str]]:
    """Return what is to be looked at: the figure's name and what to say."""
    known = {field.name: getattr(facts, field.name) for field in fields(facts)}
    return [
        {"figure": check.figure, "says": check.says.format_map(known)}
        for check in CHECKS
        if (value := known[check.figure]) is not None and value >= check.least
    ]


class Worth(StrEnum):
    """Whether tuning is likely to be worth it."""

    UNKNOWN = "unknown"
    UNLIKELY = "unlikely"
    UNCLEAR = "unclear"
    LIKELY = "likely"


GOOD = 0.10  # errors left of those that always naming the largest class makes: tuning rarely leaves much fewer
NEAR = 0.20  # how many more of them the interval may reach down to for the prompt still to count as near that
WIDE = 0.25  # an interval this wide says little either way


def worth(interval: Sequence[float] | None, majority: float, ceiling: float) -> tuple[Worth, str]:
    """Judge whether tuning is likely to be worth it, with the reason.

    What counts as good goes by the errors of always naming the largest class, as 0.95 is good where classes are two
    and alike and nothing where one has that share of the rows.

    Args:
        interval: 95% interval of the better one of the untuned and the calibrated accuracy; None where not measured.
        majority: accuracy of always naming the largest class.
        ceiling: the highest accuracy that the labels allow.
    """
    if interval is None:
        return Worth.UNKNOWN, "no labelled text was measured"
    low, high = interval
    good = min(1 - GOOD * (1 - majority), ceiling)
    if high >= good and low >= good - NEAR * (1 - majority):
        return Worth.UNLIKELY, f"the untuned prompt ({low:.2f} to {high:.2f}) is within noise of a good {good:.2f}"
    if high - low > WIDE:
        return Worth.UNCLEAR, f"the untuned accuracy lies anywhere in {low:.2f} to {high:.2f}; label more texts to tell"
    return Worth.LIKELY, f"the untuned prompt ({low:.2f} to {high:.2f}) is below a good {good:.2f}"


@dataclass(frozen=True)
class AdviseRequest:
    """What `cuecraft advise` was asked for; see its help for each."""

    data: str
    model: ModelSection
    task: WritingSection
    text_columns: Sequence[str] = ("text",)
    label_column: str | None = None
    classes: tuple[str, ...] | None = None
    seed: int = 0
    time_limit: float = 60.0
    endpoint: str | None = None
    endpoint_model: str | None = None
    endpoint_key_env: str | None = None
    labelled_out: Path | None = None
    reading: Reading = AS_USUAL


def next_command(
    request: AdviseRequest,
    found: Survey,
    fits: Sequence[Fit],
    verdict: Worth,
    beginnings: Mapping[str, Sequence[str]] | None,
) -> str:
    """Return the command to run next.

    Args:
        request: what was asked for.
        found: what the rows show.
        fits: methods that fit, the one to try first in front.
        verdict: whether tuning is worth it.
        beginnings: where the label words cannot be scored, words that a search for others can begin with.
    """
    if not fits:  # features alone, and no labels to fit a head to
        model = request.model.model_copy(update={"name": "demo:smollm2-135m", "head": None})
        return command_line(replace(request, model=model), ("advise",))
    first = fits[0].command
    if beginnings is not None:
        task = request.task.model_copy(update={"label_words": beginnings})
        request, first = replace(request, task=task), ("words",)
    elif verdict is Worth.UNLIKELY:
        first = ("tune", "--method", "zero-shot", "--option", "calibration=fitted")
    if "--unlabeled" not in first and found.unlabelled and request.labelled_out is None:
        return command_line(request, ("advise", "--labelled-out", "labelled.jsonl"))
    return command_line(request, first)


def beginning_words(tokenizer: Any, labels: Sequence[str]) -> dict[str, list[str]]:
    """Return a word of one token for each class: of its name, or else a letter that stands for nothing."""
    chosen: dict[str, list[str]] = {}
    for label in labels:
        for word in (*re.findall(r"[^\W_]+", label.casefold()), *ascii_lowercase):
            if [word] not in chosen.values() and _is_one_token(tokenizer, word):
                chosen[label] = [word]
                break
    return chosen


def _is_one_token(tokenizer: Any, word: str) -> bool:
    written = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (word, f" {word}")]
    unknown = getattr(tokenizer, "unk_token_id", None)
    return all(len(ids) == 1 and ids[0] != unknown for ids in written)


def _chat(choice: ChatChoice | None) -> list[str]:
    """Return the arguments of a chat."""
    if isinstance(choice, Mapping):  # the command line gives the system's turn alone
        return ["--chat", "--system", _on_one_line(choice["system"])]
    return [] if choice is None else ["--chat" if choice else "--no-chat"]


def _on_one_line(text: str) -> str:
    return text.replace("\n", "\\n").replace("\t", "\\t")


def command_line(request: AdviseRequest, words: Sequence[str]) -> str:
    """Return a command line over the request's data and model, with the further options of the request."""
    verb, *more = words
    uses_labels = "--unlabeled" not in more
    is_tuning = verb != "advise"
    data = str(request.labelled_out) if is_tuning and uses_labels and request.labelled_out else request.data
    line = ["cuecraft", verb, data, *more, "--model", request.model.name]
    for column in request.text_columns if list(request.text_columns) != ["text"] else ():
        line += ["--text-column", column]
    if request.label_column is not None and uses_labels:
        line += ["--label-column", request.label_column]
    if not (is_tuning and uses_labels) and request.classes is not None:
        line += ["--classes", ",".join(request.classes)]
    task, model = request.task, request.model
    if task.template is not None:
        line += ["--template", _on_one_line(task.template)]
    line += _chat(task.choice)
    for label, own in (task.label_words or {}).items():
        line += ["--label-words", f"{label}={','.join(own)}"]
    if model.head is not None:
        line += ["--head", model.head]
    if task.max_tokens is not None and verb != "words":
        line += ["--max-tokens", str(task.max_tokens)]
    for name, value in (("device", model.device), ("dtype", model.dtype)):
        if value != "auto":
            line += [f"--{name}", value]
    line += ["--local-files-only"] if model.local_files_only else []
    return shlex.join(line)
