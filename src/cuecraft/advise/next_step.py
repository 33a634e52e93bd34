"""Command lines over the same data and model, ready to be run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from string import ascii_lowercase
from typing import Any

from cuecraft.advise.request import AdviseRequest
from cuecraft.advise.rules import Fit, Worth
from cuecraft.advise.survey import Survey
from cuecraft.task.chat import ChatChoice


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
        return command_line(replace(request, model="demo:smollm2-135m", head=None), ("advise",))
    first = fits[0].command
    if beginnings is not None:
        request, first = replace(request, label_words=beginnings), ("words",)
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
    line = ["cuecraft", verb, data, *more, "--model", request.model]
    for column in request.text_columns if request.text_columns != ("text",) else ():
        line += ["--text-column", column]
    if request.label_column is not None and uses_labels:
        line += ["--label-column", request.label_column]
    if not (is_tuning and uses_labels) and request.classes is not None:
        line += ["--classes", ",".join(request.classes)]
    if request.template is not None:
        line += ["--template", _on_one_line(request.template)]
    line += _chat(request.chat)
    for label, own in (request.label_words or {}).items():
        line += ["--label-words", f"{label}={','.join(own)}"]
    for name in ("head", "max_tokens"):
        if getattr(request, name) is not None and (verb, name) != ("words", "max_tokens"):
            line += [f"--{name.replace('_', '-')}", str(getattr(request, name))]
    for name in ("device", "dtype"):
        if getattr(request, name) != "auto":
            line += [f"--{name}", getattr(request, name)]
    line += ["--local-files-only"] if request.local_files_only else []
    return shlex.join(line)
