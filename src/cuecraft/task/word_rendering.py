"""Texts that are read at each of their words: where the first token of each stands among a text's ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cuecraft.core.errors import BackboneError
from cuecraft.task import Example, Field, Task
from cuecraft.task.alignment import CUT, UNREAD, Place, first_tokens, words_of
from cuecraft.task.fitting import Fields
from cuecraft.task.rendering import HeadKind, Pieces, Renderer
from cuecraft.task.token_text import text_places


class WordRenderer(Renderer):
    """Renders texts as `Renderer` does, and finds their words.

    Args:
        tokenizer, task, head, max_positions, text_tokenizer: as for `Renderer`.

    Raises:
        BackboneError: the backbone is a language model, or the tokenizer does not say where its tokens stand in a text.
        DataError: the template names several fields, and none is the one whose words are labelled.
    """

    def __init__(
        self, tokenizer: Any, task: Task, head: HeadKind, max_positions: int | None, text_tokenizer: Any = None
    ) -> None:
        if head is not HeadKind.SEQUENCE:
            raise BackboneError(
                f"labels of words need an encoder's own features, and this is used as a {head} language model; use an "
                "encoder, with head=sequence (a causal model has not read what stands behind a word)"
            )
        if not getattr(tokenizer, "is_fast", False):
            raise BackboneError(
                f"{type(tokenizer).__name__} does not say where its tokens stand in a text, and labels of words need "
                "that; use a model with a fast tokenizer (tokenizer.json)"
            )
        super().__init__(tokenizer, task, head, max_positions, text_tokenizer)
        name = self.task.answers.field_of(self.task.template.field_names)
        slots = self._fields()
        self._number = next(n for n, slot in enumerate(slots) if slot.name == name)
        self._slot = slots[self._number]

    @property
    def shares_options(self) -> bool:
        """Always: a class head answers, with the same classes at each word."""
        return True

    def _rendered(self, example: Example, fields: Fields) -> Pieces:
        text = example.fields[self._slot.name]
        first = self._first_place(fields)
        count = len(fields[self._number])  # a text that was cut has fewer than it has by itself
        tokens = first_tokens(words_of(text), self._places(text))
        end = next((word for word, own in enumerate(tokens) if own >= count), len(tokens))
        words = tuple(UNREAD if own == UNREAD else first + own for own in tokens[:end]) + (CUT,) * (len(tokens) - end)
        return replace(self._pieces(fields), words=words, reading=self.task.answers.reading)

    def _places(self, text: str) -> Sequence[Place]:
        """Return where each token of the field stands in its text."""
        written = self._field_text(self._slot, text)
        moved = len(text) - len(text.lstrip()) - len(self.field_prefix(self._slot)) if self._slot.prefix else 0
        return [(start + moved, stop + moved) for start, stop in text_places(self._text_tokenizer, written)]

    def _first_place(self, fields: Fields) -> int:
        """Return the place of the field's first token among a text's ids, those before and after the prompt."""
        number, place = 0, len(self._start)
        for piece in (*self._before, *self._after):
            if not isinstance(piece, Field):
                place += len(self._literal(piece))
                continue
            if number == self._number:
                break
            place += len(fields[number])
            number += 1
        return place
