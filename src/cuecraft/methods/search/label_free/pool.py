r"""The pool: cues written by hand for each type of task, and variants of them.

A cue is the words in the template's prompt slot; the template stays. So all prompts of a pool share what was read of
the texts. The cues are in ``cues.json``. ``[a|b]`` in a cue are synonyms, of which the first is the cue as written by
hand. ``{labels}`` and ``{either}`` stand for the label words, ``a, b, c`` and ``a, b or c``.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from cuecraft.core.errors import DataError
from cuecraft.core.seeding import numpy_generator
from cuecraft.task import Verbalizer
from cuecraft.task.token_text import meant_by

_SYNONYMS = re.compile(r"\[([^\[\]]+)\]")


class TaskType(StrEnum):
    """What kind of question the classes answer; `auto` guesses it from the label words."""

    AUTO = "auto"
    GENERAL = "general"
    SENTIMENT = "sentiment"
    TOPIC = "topic"
    QUESTION = "question"
    INTENT = "intent"
    SAFETY = "safety"
    LOG = "log"


@cache
def _shipped() -> dict[str, dict[str, list[str]]]:
    text = resources.files(__package__).joinpath("cues.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, list[str]]] = json.loads(text)
    return found


def guess_task_type(verbalizer: Verbalizer) -> TaskType:
    """Return the type that most classes' names and label words are typical of; `general` for less than half of them."""
    classes = [
        {part for name in (label, *words) for part in re.split(r"[\W_]+", name.casefold())} | {label.casefold()}
        for label, words in zip(verbalizer.labels, verbalizer.words, strict=True)
    ]
    counts = {
        kind: sum(bool(names & set(entry["label_words"])) for names in classes) for kind, entry in _shipped().items()
    }
    best = max(counts, key=lambda kind: counts[kind])  # of equals, the first in the file
    return TaskType(best) if 2 * counts[best] >= len(classes) else TaskType.GENERAL


def shipped_cues(task_type: TaskType, verbalizer: Verbalizer, variants: int, seed: int) -> list[str]:
    """Return the cues for a type of task, the general ones among them, and variants of them.

    Args:
        task_type: the type, not `auto`.
        verbalizer: gives the label words, for the cues that list them.
        variants: paraphrases and edits to draw, at most.
        seed: of that draw.
    """
    # Of a type that is not known, a topic is the likeliest.
    kinds = (TaskType.TOPIC if task_type is TaskType.GENERAL else task_type, TaskType.GENERAL)
    written = [cue for kind in kinds for cue in _shipped()[kind]["cues"]]
    spoken = [list(_expanded(cue, verbalizer)) for cue in written]
    cues = list(dict.fromkeys(first for first, *_ in spoken))
    others = [cue for paraphrases in spoken for cue in paraphrases[1:]]
    others += [edit for cue in cues for edit in _edits(cue)]
    others = [cue for cue in dict.fromkeys(others) if cue not in cues]
    drawn = numpy_generator(seed, "cue-variants").permutation(len(others))[:variants]
    return cues + [others[n] for n in drawn]


def _expanded(cue: str, verbalizer: Verbalizer) -> Iterator[str]:
    """Yield a cue with every choice of synonyms, the first ones first."""
    parts = _SYNONYMS.split(cue)  # text, synonyms, text, ...
    choices = [part.split("|") if n % 2 else [part] for n, part in enumerate(parts)]
    *words, last = [words[0] for words in verbalizer.words]
    listed = {"{labels}": ", ".join([*words, last]), "{either}": f"{', '.join(words)} or {last}"}
    for chosen in itertools.product(*choices):
        text = "".join(chosen)
        for slot, value in listed.items():
            text = text.replace(slot, value)
        yield text


def _edits(cue: str) -> Iterator[str]:
    """Yield a cue with another beginning, and one that is no question with another ending."""
    yield from (f"{start}{cue.lstrip()}" for start in ("\n", " ", "\n\n"))
    if "?" not in cue:
        yield f"{cue[:-1]} is" if cue.endswith(":") else f"{cue}:"


def read_cues(path: Path) -> list[str]:
    r"""Return the cues of a file, one a line; `\n` and `\t` are written as in a shell.

    A cue that does not begin with white space gets a space in front, so that it does not stick to the text.

    Raises:
        DataError: no such file, not UTF-8 text, or no cue in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path of the cues") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: not readable as UTF-8 text ({error})") from error
    cues = [line.rstrip().replace("\\n", "\n").replace("\\t", "\t").rstrip(" \t") for line in lines if line.strip()]
    if not cues:
        raise DataError(f"{path}: holds no cue; write at least one, one a line")
    return [cue if cue[:1].isspace() else f" {cue}" for cue in cues]


def refuse_printed_tokens(tokenizer: Any, cues: Sequence[str]) -> None:
    """Raise DataError where a user's cue is written as a tokenizer's list prints tokens."""
    for cue in cues:
        meant = meant_by(tokenizer, cue)
        if meant is not None:
            raise DataError(f"cue {cue.strip()!r} is tokens as a tokenizer's list prints them; write {meant!r}")


def tokenised(tokenizer: Any, cues: Sequence[str]) -> dict[tuple[int, ...], str]:
    """Return the cues by their token ids, in order; of cues that a tokenizer writes alike, the first."""
    found: dict[tuple[int, ...], str] = {}
    for cue in cues:
        found.setdefault(tuple(tokenizer(cue, add_special_tokens=False)["input_ids"]), cue)
    return found
