r"""Templates: text with `{field}` slots, one `{prompt}` slot and one `{mask}` answer slot.

``"Review: {text}{prompt}\nSentiment:{mask}"`` leaves space for tuned tokens after the text;
``"Review: {text}{prompt:\nSentiment:}{mask}"`` names the words that tuning starts from. ``{{`` and ``}}`` stand
for braces.

Rendering is exact: every piece is tokenised alone and the pieces' ids are joined, never re-tokenised across a
seam, so that a text's tokens do not depend on the prompt next to it. A single space at the end of a piece moves to
the front of the next one, because byte-level tokenizers write a word together with the space before it.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass

from cuecraft.core.errors import TemplateError

PROMPT = "prompt"
MASK = "mask"
FIELD_NAME = re.compile(r"[^\W\d][\w .-]*")


@dataclass(frozen=True)
class Literal:
    """Text written in the template, the same for every example."""

    text: str


@dataclass(frozen=True)
class Field:
    """Where a field of the example stands; `prefix` is the space (or nothing) in front of it."""

    name: str
    prefix: str = ""


@dataclass(frozen=True)
class PromptSlot:
    """Where tuned tokens stand, and the words they start from ("" for none)."""

    text: str = ""


@dataclass(frozen=True)
class MaskSlot:
    """The answer slot; `prefix` is what stands between the text before it and a label word."""

    prefix: str = " "


Piece = Literal | Field | PromptSlot | MaskSlot

#: After these a label word stands without a space; at the beginning of a turn also after the end of a control token.
_OPENS = ("\n", "\t", "(", "[", '"', "“")
_CONTROL_ENDS = (">", "]")


@dataclass(frozen=True)
class Conversation:
    """The turns that a template was written from, and how the tokenizer's chat template writes several rounds.

    Args:
        system: the system's turn as given; None for what the chat template says without one.
        user: the user's turn as given.
        assistant: the beginning of the assistant's turn as given.
        first: template of the first answered example in front of a text, up to its answer.
        later: of each further answered example, from the end of the answer before it on.
        last: of the text behind answered examples, from the end of the last answer on.
    """

    system: str | None
    user: str
    assistant: str
    first: str
    later: str
    last: str

    @property
    def turns(self) -> dict[str, str]:
        """The turns as given, by name."""
        given = {"system": self.system, "user": self.user, "assistant": self.assistant}
        return {name: turn for name, turn in given.items() if turn is not None}

    @property
    def system_slots(self) -> tuple[str, ...]:
        """Names of the slots in the system's turn."""
        return tuple(name for _, name, _, _ in string.Formatter().parse(self.system or "") if name is not None)

    @property
    def answers_at_once(self) -> bool:
        """Whether the assistant's turn begins with the answer: no words stand before it in the turn."""
        for literal, name, words, _ in string.Formatter().parse(self.assistant):
            if literal or words or name != PROMPT:
                return not literal and name == MASK
        return False


@dataclass(frozen=True)
class Template:
    """A parsed template.

    Args:
        source: the template as written.
        chat: where the source was written by a tokenizer's chat template, the turns of that conversation. All special
            tokens stand in the source then, and none is put around it.

    Raises:
        TemplateError: unbalanced braces, no field, not exactly one `{prompt}`, more than one `{mask}`, or a slot
            with a conversion or format that means nothing here.
    """

    source: str
    chat: Conversation | None = None

    def __post_init__(self) -> None:
        self._parsed()

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The template's pieces in order, spaces moved across the seams."""
        return tuple(self._parsed())

    @property
    def field_names(self) -> tuple[str, ...]:
        """Names of the fields, in order of first use."""
        return tuple(dict.fromkeys(p.name for p in self.pieces if isinstance(p, Field)))

    @property
    def prompt_text(self) -> str:
        """The words that the template writes in its prompt slot ("" for none)."""
        return next(p.text for p in self.pieces if isinstance(p, PromptSlot))

    @property
    def has_mask(self) -> bool:
        """Whether the template has an answer slot."""
        return any(isinstance(p, MaskSlot) for p in self.pieces)

    @property
    def begins_turn(self) -> bool:
        """Whether the prompt slot begins a turn of a conversation, so that no space belongs in front of its words."""
        pieces = self.pieces
        at = next(n for n, piece in enumerate(pieces) if isinstance(piece, PromptSlot))
        return self.chat is not None and (at == 0 or isinstance(pieces[at - 1], Literal))

    def with_prompt(self, text: str) -> Template:
        """Return the template with other words written in its prompt slot.

        Raises:
            TemplateError: the words have braces, which nothing in the slot can stand for.
        """
        if "{" in text or "}" in text:
            raise TemplateError(f"prompt {text!r} has braces, which a template cannot hold; use other words")
        chat = self.chat
        if chat is not None:
            sources = {name: own and _with_prompt(own, text) for name, own in vars(chat).items()}
            chat = Conversation(**sources)
        return Template(_with_prompt(self.source, text), chat)

    def example(self, number: int) -> Template:
        """Return how the `number`-th answered example (from 0) in front of a text is written, up to its answer."""
        if self.chat is None:
            return self
        return Template(self.chat.later if number else self.chat.first, self.chat)

    @property
    def behind_examples(self) -> Template:
        """How a text behind answered examples is written."""
        return self if self.chat is None else Template(self.chat.last, self.chat)

    def _parsed(self) -> list[Piece]:
        pieces = list(_join_spaces(list(self._raw_pieces()), self.chat is not None and self.chat.answers_at_once))
        count = {kind: sum(isinstance(p, kind) for p in pieces) for kind in (Field, PromptSlot, MaskSlot)}
        if count[PromptSlot] != 1:
            raise self._error(f"has {count[PromptSlot]} {{prompt}} slots; write exactly one")
        if count[MaskSlot] > 1:
            raise self._error(f"has {count[MaskSlot]} {{mask}} slots; write one")
        if count[Field] == 0:
            raise self._error("has no field; write where the text goes, for instance {text}")
        return pieces

    def _raw_pieces(self) -> Iterator[Piece]:
        try:
            parsed = list(string.Formatter().parse(self.source))
        except ValueError as error:
            raise self._error(f"does not parse ({error}); write {{{{ and }}}} for braces") from error
        text = ""
        for literal, name, spec, conversion in parsed:
            text += literal
            if name is None:
                continue
            if text:
                yield Literal(text)
                text = ""
            yield self._slot(name, spec or "", conversion)
        if text:
            yield Literal(text)

    def _slot(self, name: str, spec: str, conversion: str | None) -> Piece:
        if conversion:
            raise self._error(f"has a conversion in {{{name}!{conversion}}}; write {{{name}}}")
        if name == PROMPT:
            if "{" in spec:
                raise self._error("has a slot inside {prompt:...}; only plain words can stand there")
            return PromptSlot(spec)
        if spec:
            raise self._error(f"has a format in {{{name}:{spec}}}; only {{prompt:...}} takes one")
        if name == MASK:
            return MaskSlot()
        if not FIELD_NAME.fullmatch(name):
            raise self._error(f"has a slot {{{name}}}; name a field, {{prompt}} or {{mask}}")
        return Field(name)

    def _error(self, what: str) -> TemplateError:
        return TemplateError(f"template {self.source!r} {what}")


def escaped(text: str) -> str:
    """Return text as a template writes it: braces doubled."""
    return text.replace("{", "{{").replace("}", "}}")


def slot(name: str, spec: str | None) -> str:
    """Return a slot as a template writes it, with the words in it."""
    return f"{{{name}:{spec}}}" if spec else f"{{{name}}}"


def _with_prompt(source: str, text: str) -> str:
    """Return a source with other words in its prompt slot, if it has one."""
    parts = []
    for literal, name, spec, _ in string.Formatter().parse(source):
        parts.append(escaped(literal))
        if name == PROMPT:
            parts.append(f"{{{PROMPT}:{text}}}")
        elif name is not None:
            parts.append(slot(name, spec))
    return "".join(parts)


def _join_spaces(pieces: list[Piece], opens_turn: bool) -> Iterator[Piece]:
    """Move one trailing space of a literal to the piece after it, and give the answer slot what precedes it.

    `opens_turn` is whether the answer slot stands behind the control tokens that begin a turn.
    """
    space = ""
    before = ""
    is_spaced = False  # whether a space stands behind `before`
    for index, piece in enumerate(pieces):
        if isinstance(piece, Literal):
            text = space + piece.text
            followed = index + 1 < len(pieces)
            space = " " if followed and text.endswith(" ") else ""
            text = text[: len(text) - len(space)]
            before = text or before
            is_spaced = bool(space)
            if text:
                yield Literal(text)
            continue
        if isinstance(piece, Field):
            piece = Field(piece.name, space)
            before = "x"
        elif isinstance(piece, PromptSlot):
            text = piece.text
            if space and text and not text.startswith(" "):
                text = space + text
            space = " " if text.endswith(" ") and index + 1 < len(pieces) else ""
            text = text[: len(text) - len(space)]
            before = text or before
            is_spaced = bool(space) if text else is_spaced
            yield PromptSlot(text)
            continue
        else:
            # A label word opens a line or stands after a bracket without a space, else with one.
            opens = _OPENS + (_CONTROL_ENDS if opens_turn and not is_spaced else ())
            piece = MaskSlot("" if before.endswith(opens) or not before else " ")
            before = "x"
        space, is_spaced = "", False
        yield piece
