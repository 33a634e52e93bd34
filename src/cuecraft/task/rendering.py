"""From examples to token ids: the pieces before and after the tuned tokens, and the label words' ids."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile
from typing import Any

from cuecraft.core.errors import CuecraftWarning, DataError, PromptError, TemplateError
from cuecraft.task import Example, Field, Literal, MaskSlot, PromptSlot, Shot, Task
from cuecraft.task.alignment import WordReading
from cuecraft.task.answer_ids import AnswerIds
from cuecraft.task.fitting import Fields, LabelIds, are_longer, beyond_slot, cut_longest
from cuecraft.task.frame import Frame
from cuecraft.task.own_options import own_option_ids
from cuecraft.task.token_text import (
    BYTE_SPACE,
    PIECE_SPACE,
    meant_by,
    special_ids,
    text_ids,
)


class HeadKind(StrEnum):
    """How a backbone answers: next word, masked word, or a trained class head."""

    CAUSAL = "causal"
    MASKED = "masked"
    SEQUENCE = "sequence"


@dataclass(frozen=True)
class Pieces:
    """Token ids of one example, without the tuned tokens.

    Args:
        before: ids that stand before the tuned tokens, special tokens included.
        after: ids that stand after them.
        answer: masked LM only: where the mask token stands in ``before + after``.
        words: where the first token of each word stands there, or `UNREAD` or `CUT`; None where words are not read.
        reading: what is read of a word.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    answer: int = 0
    words: tuple[int, ...] | None = None
    reading: WordReading = "word"

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


_Slots = list[Literal | Field | MaskSlot]
BETWEEN_SHOTS = Literal("\n\n")  # behind each example in front of a text


class Renderer:
    """Renders the examples of one task with one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        task: the task.
        head: how the backbone answers.
        max_positions: positions that the backbone has; None for no limit.
        text_tokenizer: a copy of the tokenizer that `reading_texts` made, for the fields; None for a tokenizer that
            has no state.

    Raises:
        TemplateError: the template does not fit the kind of head.
        LabelWordError: a label word cannot be scored, or two classes share one.
    """

    def __init__(
        self, tokenizer: Any, task: Task, head: HeadKind, max_positions: int | None, text_tokenizer: Any = None
    ) -> None:
        self.tokenizer = tokenizer
        self._text_tokenizer = tokenizer if text_tokenizer is None else text_tokenizer
        self.task = task
        self.head = head
        limits = [limit for limit in (max_positions, task.max_tokens) if limit]
        self.max_tokens = min(limits) if limits else None
        # SentencePiece in its older form puts a space before every text by itself; a second one would be a token.
        self._writes_own_space = tokenizer.tokenize("a")[0].startswith("▁")
        self._answers = self._answer_writer()
        self.label_ids: LabelIds = () if head is HeadKind.SEQUENCE else self._answers.of_options(task.answers.options)
        #: How a text is written: behind answered examples, a chat template goes on with the next turn.
        self._template = task.template.behind_examples if task.shots else task.template
        slots = self._slots()
        self._check_template(slots)
        at = next(i for i, piece in enumerate(slots) if isinstance(piece, PromptSlot))
        start, end = special_ids(tokenizer)
        self._start, self._end = start, () if head is HeadKind.CAUSAL else end
        if self._is_chat:  # its literals have all special tokens
            self._start = self._end = ()
        self._before: _Slots = [p for p in slots[:at] if not isinstance(p, PromptSlot)]
        self._after: _Slots = [p for p in slots[at + 1 :] if not isinstance(p, PromptSlot)]
        written = [task.template, self._template, *(task.template.example(n) for n in range(min(2, len(task.shots))))]
        literals = [piece for own in written for piece in own.pieces if isinstance(piece, Literal)]
        first = written[2 if task.shots else 0].pieces[0]
        self._literal_ids = {
            piece.text: self._literal_text_ids(piece.text, piece == first) for piece in (*literals, BETWEEN_SHOTS)
        }
        self._start += self._shot_ids(task.shots if task.nearest is None else ())

    @property
    def _is_chat(self) -> bool:
        return self.task.template.chat is not None

    def _literal_text_ids(self, text: str, is_first: bool) -> tuple[int, ...]:
        """Return the ids of a literal.

        A tokenizer that puts a space before every text by itself does not do so within a conversation.
        """
        alone = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if is_first or not (self._is_chat and self._writes_own_space):
            return alone
        before, whole = (self.tokenizer(own, add_special_tokens=False)["input_ids"] for own in ("a", "a" + text))
        return tuple(whole[len(before) :]) if whole[: len(before)] == before else alone

    def _shot_ids(self, shots: Sequence[Shot]) -> tuple[int, ...]:
        """Return the ids of examples that stand in front of a text, a blank line behind each.

        In a chat template each of them is a round of its own. Their texts are tokenised as all texts are: braces and
        special tokens in them stay text.
        """
        ids = list[int]()
        examples = [shot.example for shot in shots]
        behind = () if self._is_chat else (BETWEEN_SHOTS,)
        for number, (shot, row) in enumerate(zip(shots, self._field_ids(examples), strict=True)):
            texts = iter(row)
            for piece in (*self.task.template.example(number).pieces, *behind):
                if isinstance(piece, Field):
                    ids += next(texts)
                elif isinstance(piece, PromptSlot):
                    ids += self.prompt_ids
                elif isinstance(piece, MaskSlot):
                    ids += self._written(shot)
                else:
                    ids += self._literal(piece)
        return tuple(ids)

    def _written(self, shot: Shot) -> tuple[int, ...]:
        """Return the ids of an example's answer; special tokens stay text in an option that the example brings."""
        word = self.task.answers.written(shot.example, shot.gold)
        if self.shares_options:
            return self.answer_ids([word])[0]
        return text_ids(self._text_tokenizer, [self.answer_prefix + word])[0]

    @property
    def shared_ids(self) -> tuple[int, ...]:
        """Ids with which every text begins: a task's examples with special tokens before them, a chat's system turn.

        () where there is neither.
        """
        if not self._is_chat:
            return self._start if self.task.shots else ()
        ids = self._start
        for piece in takewhile(lambda piece: isinstance(piece, Literal), self._before):
            assert isinstance(piece, Literal)
            ids += self._literal_ids[piece.text]
        return ids

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Ids of the words that the template writes in its prompt slot."""
        text = self.task.template.prompt_text
        return self._slot_ids([text])[0] if text else ()

    @property
    def opening_ids(self) -> tuple[int, ...] | None:
        """Ids that stand before the prompt in every text; None where a field stands there."""
        if any(not isinstance(piece, Literal) for piece in self._before):
            return None
        return self._pieces([()] * len(self._fields())).before

    @property
    def has_tail(self) -> bool:
        """Whether anything stands after the prompt."""
        return bool(self._after or self._end)

    def field_prefix(self, field: Field) -> str:
        """Return what is written in front of a field before it is turned into ids."""
        return "" if self._writes_own_space else field.prefix

    def frame(self) -> Frame:
        """Return what stands around the fields.

        Raises:
            TemplateError: the prompt stands between two fields.
        """
        parts: list[int | Field] = list(self._start)
        at = 0
        for side, slots in enumerate((self._before, self._after)):
            at = len(parts) if side else 0
            for piece in slots:
                if isinstance(piece, Field):
                    parts.append(piece)
                else:
                    parts += self._literal(piece)
        parts += self._end
        fields = [n for n, part in enumerate(parts) if isinstance(part, Field)]
        first, last = fields[0], fields[-1]
        if first < at <= last:
            raise TemplateError(
                f"template {self.task.template.source!r}: the prompt stands between two fields, so it has no fixed "
                "place before or after the text; put {prompt} before the first field or after the last"
            )
        opening, closing = (tuple(n for n in own if isinstance(n, int)) for own in (parts[:first], parts[last + 1 :]))
        is_first = at <= first
        span = tuple(part if isinstance(part, Field) else (part,) for part in parts[first : last + 1])
        return Frame(opening, closing, is_first, at if is_first else at - last - 1, span)

    def gives_back(self, prompts: Sequence[Sequence[int]]) -> list[bool]:
        """Return of each prompt's ids whether its text, written into the template's prompt slot, gives back these.

        What fails: tokens that merge with their neighbours when they are written as text, parts of a character,
        braces, and endings that change what follows: a space, which a template moves on, or a bracket or quotation
        mark, after which a label word has no space.
        """
        texts = self.tokenizer.batch_decode([list(ids) for ids in prompts], clean_up_tokenization_spaces=False)
        found = self._slot_ids([self._slot_text(text) or "" for text in texts])
        return [ids == tuple(prompt) for ids, prompt in zip(found, prompts, strict=True)]

    def _slot_text(self, text: str) -> str | None:
        """Return what the prompt slot holds when a text is written there; None where it cannot or changes the rest."""
        template = self.task.template
        try:
            written = template.with_prompt(text)
        except TemplateError:
            return None
        rest, own = ([p for p in t.pieces if not isinstance(p, PromptSlot)] for t in (written, template))
        return written.prompt_text if rest == own else None

    def _slot_ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the ids of texts that stand in the prompt slot."""
        if not texts:
            return []
        if self._is_chat and self._writes_own_space:
            texts = [text.removeprefix(" ") for text in texts]
        return [tuple(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    @property
    def _reserve(self) -> int:
        """Positions kept free for the prompt: the task's, or as many as the template's own words need."""
        return max(self.task.reserve, len(self.prompt_ids))

    def render(self, examples: Sequence[Example]) -> list[Pieces]:
        """Return the pieces of each example, texts cut at the end where they would not fit.

        Warns:
            CuecraftWarning: how many texts were cut.

        Raises:
            PromptError: the template alone leaves no space for text.
            DataError: a text has no tokens.
        """
        rendered, cut = self.fitted(examples)
        if any(cut):
            warnings.warn(
                f"{sum(cut)} of {len(examples)} texts were cut at the end to fit {self.max_tokens} tokens "
                f"({self._reserve} of them kept for the prompt)",
                CuecraftWarning,
                stacklevel=2,
            )
        return rendered

    def fitted(self, examples: Sequence[Example]) -> tuple[list[Pieces], list[bool]]:
        """Return the pieces of each example, and whether its texts were cut at the end to fit; raises as `render`."""
        capacities = self._capacities(examples)
        rows, rendered = self._field_ids(examples), []
        for number, (own, row, capacity) in enumerate(zip(examples, rows, capacities, strict=True), start=1):
            if not any(row):
                raise DataError(f"text {number} has no tokens in this backbone's tokenizer; fix or remove it")
            rendered.append(self._rendered(own, row if capacity is None else cut_longest(row, capacity)))
        return rendered, are_longer(rows, capacities)

    def _rendered(self, example: Example, fields: Fields) -> Pieces:
        return self._pieces(fields)

    def cuts(self, examples: Sequence[Example]) -> list[bool]:
        """Return of each example whether `fitted` cuts its texts; nothing is rendered; raises as `capacity`."""
        return are_longer(self._field_ids(examples), self._capacities(examples))

    def text_lengths(self, examples: Sequence[Example]) -> list[int]:
        """Return how many tokens all fields of each example have together, before anything is cut."""
        return [sum(map(len, fields)) for fields in self._field_ids(examples)]

    def template_length(self) -> int:
        """Return how many tokens the template takes by itself, without texts and prompt."""
        return len(self._pieces([()] * len(self._fields())))

    def check_length(self, pieces: Sequence[Pieces], cue: int, own: Sequence[LabelIds] | None = None) -> None:
        """Raise PromptError where a cue of so many tokens makes too long an input; `own` are options of each text."""
        answers = [self._answer_length()] * len(pieces) if own is None else map(beyond_slot, own)
        longest = max((len(piece) + more for piece, more in zip(pieces, answers, strict=True)), default=0) + cue
        if self.max_tokens is not None and longest > self.max_tokens:
            raise PromptError(
                f"a prompt of {cue} tokens makes an input of {longest}, but {self.max_tokens} fit; "
                f"shorten the prompt to {max(0, cue - longest + self.max_tokens)} tokens"
            )

    def _slots(self) -> list[Literal | Field | PromptSlot | MaskSlot]:
        """Return the template's pieces, or say why they do not fit the head."""
        template = self._template
        pieces = list(template.pieces)
        if self.head is HeadKind.SEQUENCE:
            if template.has_mask:
                raise TemplateError(
                    f"template {template.source!r} has {{mask}}, but a sequence classification backbone answers "
                    "through its class head; remove {mask}"
                )
            return pieces
        if not template.has_mask:
            raise TemplateError(
                f"template {template.source!r} has no {{mask}}; write where the label word goes, "
                f"for instance {template.source + '{mask}'!r}"
            )
        if self.head is HeadKind.MASKED:
            return pieces
        mask = next(i for i, piece in enumerate(pieces) if isinstance(piece, MaskSlot))
        behind = [p for p in pieces[mask + 1 :] if not (isinstance(p, Literal) and not p.text.strip(" .\n"))]
        if behind:
            raise TemplateError(
                f"template {template.source!r} goes on after {{mask}}, which a causal model never reads; "
                "put {mask} at the end"
            )
        return pieces[:mask]

    def _check_template(self, slots: Sequence[Literal | Field | PromptSlot | MaskSlot]) -> None:
        """Raise TemplateError where words are written as a tokenizer's list prints them."""
        for piece in slots:
            # A chat template's literals hold control tokens, which may be written with such marks.
            if isinstance(piece, Field | MaskSlot) or (self._is_chat and isinstance(piece, Literal)):
                continue
            # Around the prompt, ## may begin a heading.
            may_have = isinstance(piece, PromptSlot) or BYTE_SPACE in piece.text or PIECE_SPACE in piece.text
            meant = meant_by(self.tokenizer, piece.text) if may_have else None
            if meant is not None:
                raise TemplateError(
                    f"template {self.task.template.source!r} has {piece.text.strip()!r}, tokens as a tokenizer's list "
                    f"prints them; write {meant!r}"
                )

    def answer_ids(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the ids of each word as it is written in the answer slot."""
        return self._answers.of(words)

    def _answer_writer(self) -> AnswerIds:
        """Return what writes label words in the answer slot."""
        pieces = self.task.template.pieces
        at = next((n for n, piece in enumerate(pieces) if isinstance(piece, MaskSlot)), len(pieces))
        ending = "".join(piece.text for piece in pieces[at + 1 : at + 2] if isinstance(piece, Literal))
        is_one_token = self.head is HeadKind.MASKED
        return AnswerIds(self.tokenizer, self.answer_prefix, is_one_token, ending, self.task.norm == "siblings")

    @property
    def answer_prefix(self) -> str:
        """What stands between the text before the answer slot and a label word."""
        mask = next((p for p in self.task.template.pieces if isinstance(p, MaskSlot)), MaskSlot())
        return "" if self._writes_own_space else mask.prefix

    @property
    def shares_options(self) -> bool:
        """Whether all texts have the same options, those of `label_ids`."""
        return self.task.answers.size > 0

    def options_of(self, examples: Sequence[Example]) -> list[LabelIds]:
        """Return the ids of the options of each text, option -> word -> token ids; equal ones are one object.

        Raises:
            DataError: a text brings no options that can be chosen among.
            LabelWordError: one of them cannot be scored.
        """
        if self.shares_options:
            return [self.label_ids] * len(examples)
        most = None if self.head is HeadKind.CAUSAL else int(self.head is HeadKind.MASKED)
        return own_option_ids(examples, self.task.answers, self._text_tokenizer, self.answer_prefix, most)

    def _answer_length(self) -> int:
        """Positions that label words need beyond the answer slot."""
        return beyond_slot(self.label_ids)

    def capacity(self) -> int | None:
        """Return how many tokens all fields of one example may have together; None for no limit.

        Raises:
            PromptError: the template alone leaves no space for text.
        """
        capacity = self.free_tokens
        if capacity is not None and capacity < 1:
            fixed = self.template_length() + self._answer_length()
            what = f"the template with {len(self.task.shots)} examples" if self.task.shots else "the template alone"
            fewer = "give fewer examples" if self.task.shots else "shorten the template or the prompt"
            raise PromptError(
                f"{what} takes {fixed} of {self.max_tokens} tokens and {self._reserve} are kept for "
                f"the prompt, which leaves none for text; {fewer}"
            )
        return capacity

    def _capacities(self, examples: Sequence[Example]) -> list[int | None]:
        """Return how many tokens the fields of each example may have: less where it brings long options of its own."""
        capacity = self.capacity()
        if capacity is None or self.shares_options:
            return [capacity] * len(examples)
        return [max(1, capacity - beyond_slot(ids)) for ids in self.options_of(examples)]

    @property
    def free_tokens(self) -> int | None:
        """Tokens that template and prompt leave for all fields of one example, negative for none; None for no limit."""
        if self.max_tokens is None:
            return None
        return self.max_tokens - self.template_length() - self._answer_length() - self._reserve

    def _fields(self) -> list[Field]:
        return [piece for piece in [*self._before, *self._after] if isinstance(piece, Field)]

    def _field_ids(self, examples: Sequence[Example]) -> list[Fields]:
        """Tokenise every field; special tokens written inside a text stay plain text."""
        if not examples:
            return []
        columns = []
        for piece in self._fields():
            texts = [self._field_text(piece, example.fields[piece.name]) for example in examples]
            columns.append(text_ids(self._text_tokenizer, texts))
        return [list(row) for row in zip(*columns, strict=True)]

    def _field_text(self, field: Field, text: str) -> str:
        return self.field_prefix(field) + text.lstrip() if field.prefix else text

    def _pieces(self, fields: Fields) -> Pieces:
        answer = 0
        sides: list[list[int]] = []
        texts = iter(fields)
        for side, slots in enumerate((self._before, self._after)):
            ids = list(self._start) if side == 0 else []
            for piece in slots:
                if isinstance(piece, MaskSlot):
                    answer = len(ids) + (len(sides[0]) if side else 0)
                ids += next(texts) if isinstance(piece, Field) else self._literal(piece)
            sides.append(ids)
        return Pieces(tuple(sides[0]), tuple(sides[1]) + self._end, answer)

    def _literal(self, piece: Literal | MaskSlot) -> tuple[int, ...]:
        """Return the ids of a piece that is the same in every text."""
        return (self.tokenizer.mask_token_id,) if isinstance(piece, MaskSlot) else self._literal_ids[piece.text]
