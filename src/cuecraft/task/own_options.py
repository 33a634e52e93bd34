"""Options that texts bring, as token ids: written in the answer slot as they are, and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cuecraft.core.errors import CuecraftError, LabelWordError
from cuecraft.task.answers import AnswerSpace
from cuecraft.task.example import Example
from cuecraft.task.fitting import LabelIds
from cuecraft.task.token_text import text_ids

Ids = tuple[int, ...]


def own_option_ids(
    examples: Sequence[Example], answers: AnswerSpace, tokenizer: Any, prefix: str, most: int | None
) -> list[LabelIds]:
    """Return the ids of the options of each text, option -> word -> token ids; equal ones are one object.

    One option may begin another. They are texts: special tokens in them stay text, and they may look like a token as a
    tokenizer's list prints it.

    Args:
        examples: the texts.
        answers: what says which options each has.
        tokenizer: that reads texts.
        prefix: what stands between the text before the answer slot and an option.
        most: tokens that the slot holds; None for any number, 0 where nothing is answered in words.

    Raises:
        DataError: a text brings no options that can be chosen among.
        LabelWordError: one of them cannot be scored, or two are written alike.
    """
    if most == 0:
        raise LabelWordError(
            f"answers of kind {answers.kind} are words of each text, and this model has no language head; use a causal "
            "language model"
        )
    options = []
    for number, example in enumerate(examples, start=1):
        with _at(number):
            options.append(answers.options_of(example))
    words = [prefix + word for own in options for several in own.values() for word in several]
    written = iter(text_ids(tokenizer, words))
    made: dict[LabelIds, LabelIds] = {}
    found = []
    for number, own in enumerate(options, start=1):
        ids = tuple(tuple(next(written) for _ in several) for several in own.values())
        with _at(number):
            _check(own, ids, tokenizer, most)
        found.append(made.setdefault(ids, ids))
    return found


@contextmanager
def _at(number: int) -> Iterator[None]:
    """Let errors say which text they are of."""
    try:
        yield
    except CuecraftError as error:
        raise type(error)(f"text {number}: {error}") from None


def _check(options: Mapping[str, Sequence[str]], ids: LabelIds, tokenizer: Any, most: int | None) -> None:
    """Raise LabelWordError where an option cannot be scored, or is written as another one is."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    owners: dict[Ids, str] = {}
    for name, words in zip(options, ids, strict=True):
        for own in words:
            shown = _short(name)
            if not own or set(own) == {unknown}:
                raise LabelWordError(f"option {shown} has no token of this tokenizer's vocabulary; use another")
            if most is not None and len(own) > most:
                tokens = " ".join(tokenizer.convert_ids_to_tokens(list(own[:8])))
                raise LabelWordError(
                    f"option {shown} is {len(own)} tokens ({tokens}), but a masked LM fills one {{mask}}; give options "
                    "of one token, or use a causal model"
                )
            if owners.setdefault(own, name) != name:
                raise LabelWordError(
                    f"options {_short(owners[own])} and {shown} are written alike by this tokenizer; change one"
                )


def _short(name: str) -> str:
    shown = repr(name)
    return shown if len(shown) <= 60 else shown[:57] + "..."
