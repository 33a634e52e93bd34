"""Ids of texts and of what a tokenizer puts around them; special tokens inside a text stay text. No torch here."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from cuecraft.errors import BackboneError


def reading_texts(tokenizer: Any) -> Any:
    """Return a copy of a tokenizer for `text_ids` alone.

    Whether special tokens written in a text stay text is state of a Hugging Face tokenizer, which each call sets.
    Threads that share a tokenizer would set it for each other. So the literals of a template and the texts have one
    each.
    """
    own = copied_tokenizer(tokenizer)
    if control := control_tokens(own):
        own.backend_tokenizer.add_special_tokens(control)
    text_ids(own, ["a"])  # sets the state before a second thread can call
    return own


def control_tokens(tokenizer: Any) -> list[Any]:
    """Return, as special ones, the added tokens that a chat template writes and that are not special, as ``<think>``.

    A text that holds one must not speak for the template.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template or not hasattr(tokenizer, "backend_tokenizer"):
        return []
    found, written = [], f"{template}</think>"  # of a template that only opens thinking, we write the end
    for token in getattr(tokenizer, "added_tokens_decoder", {}).values():
        if not token.special and token.content.strip() and token.content in written:
            control = copy.copy(token)
            control.special = True
            found.append(control)
    return found


def copied_tokenizer(tokenizer: Any) -> Any:
    """Return a copy of a tokenizer, which no call to the other changes.

    Raises:
        BackboneError: it holds what cannot be copied.
    """
    try:
        return copy.deepcopy(tokenizer)
    except Exception as error:  # parts written in Python, locks and open files each refuse in their own way
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(
            f"{type(tokenizer).__name__} in memory cannot be copied, which reading texts needs ({reason}); give one "
            "without parts written in Python, locks or open files"
        ) from error


def text_ids(tokenizer: Any, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the ids of texts without special tokens; those written inside a text stay plain text."""
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
    return [tuple(ids) for ids in encoded["input_ids"]]


def special_ids(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that a tokenizer puts before and after a text, such as ([CLS], [SEP]) or (<s>, ())."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start]), tuple(full[start + len(plain) :])
    return (), ()
