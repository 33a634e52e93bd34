"""Any word as an answer: how likely right answers are in the whole vocabulary, and which words are the likeliest.

A vocabulary is read at the answer slot of each text once, and no more of it is kept than is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cuecraft.backbone.prompt import Prompt
from cuecraft.backbone.query import VOCABULARY, Context, Query, Targets
from cuecraft.core.errors import DataError
from cuecraft.task.rendering import HeadKind, Pieces, Renderer
from cuecraft.task.right_answers import answer_tokens
from cuecraft.task.words import AnswerWords

if TYPE_CHECKING:
    from cuecraft.backbone.base import Backbone

Ids = tuple[int, ...]
_BEAM = 16  # beginnings of words of one text that are read further at a time


@dataclass(frozen=True, eq=False)
class OpenVocabulary:
    """The words that a model can write in an answer slot.

    Args:
        words: as its tokenizer writes them.
        size: rows of the output embedding, V.
    """

    words: AnswerWords
    size: int

    @classmethod
    def of(cls, model: Any, renderer: Renderer) -> OpenVocabulary:
        """Return the words of a model with an output embedding."""
        size = len(model.get_output_embeddings().weight)
        return cls(AnswerWords(renderer.tokenizer, size, renderer.answer_ids), size)

    @cached_property
    def whole(self) -> Tensor:
        """Ids `[W]` of tokens that are a whole word."""
        return torch.tensor(list(self.words.whole))

    @cached_property
    def starts(self) -> Tensor:
        """Ids of tokens with which a word may begin."""
        return torch.tensor(self.words.starts)

    @cached_property
    def goes_on(self) -> Tensor:
        """Ids of tokens that continue a word."""
        return torch.tensor(self.words.goes_on)

    def firsts(self, head: HeadKind) -> Tensor:
        """Return `[V]` bool: tokens that may stand at the answer slot; a mask holds whole words alone."""
        found = torch.zeros(self.size, dtype=torch.bool)
        found[self.whole if head is HeadKind.MASKED else self.starts] = True
        return found


def right_answers(context: Context, firsts: Tensor, read: Callable[[Context, Query], Tensor]) -> Tensor:
    """Return of each text what its right answers have over the whole vocabulary `[T, B, 3]` (nats), differentiable.

    They are the log of the summed probabilities of all right answers; the log-probability of the likeliest first token
    of a right answer; and that of the likeliest other token that may stand there, which has no gradient of its own.

    An answer of several tokens has the product of theirs, each given those before it: texts are read once more with
    the beginnings of such answers behind them.

    Args:
        context: the texts, whose right answers are known.
        firsts: `[V]` bool, tokens that may stand at the answer slot.
        read: returns what a query reads `[T, b, X]` of some texts.

    Raises:
        DataError: a text has no right answer, or none that this model can give.
    """
    golds = [example.gold for example in context.examples]
    if None in golds:
        raise DataError(
            f"text {golds.index(None) + 1} has no right answer, and where any word may be one, texts are scored by "
            "theirs; give candidates"
        )
    answers = answer_tokens(context.renderer, golds)  # type: ignore[arg-type]  # tuples of strings
    flat = [(row, ids) for row, own in enumerate(answers) for ids in own]

    def step(size: int) -> tuple[Tensor, Tensor]:
        """Return what is read behind `size` tokens of answers, and the logs `[T, F]` of the tokens that follow."""
        longer = [n for n, (_, ids) in enumerate(flat) if len(ids) > size]
        slots: dict[tuple[int, Ids], dict[int, int]] = {}  # what follows the same tokens is read there together
        for row, ids in (flat[n] for n in longer):
            columns = slots.setdefault((row, ids[:size]), {})
            columns.setdefault(ids[size], len(columns))
        targets = Targets(_padded([list(columns) for columns in slots.values()]), None if size else firsts)
        found = read(_behind(context, list(slots)) if size else context, Query("targets", targets=targets))
        places = {slot: place for place, slot in enumerate(slots)}
        keys = [((row, ids[:size]), ids[size]) for row, ids in (flat[n] for n in longer)]
        own = found[:, [places[slot] for slot, _ in keys], [slots[slot][token] for slot, token in keys]]
        return found, own.new_zeros(len(own), len(flat)).index_add(1, torch.tensor(longer, device=own.device), own)

    begun, total = step(0)
    for size in range(1, max(len(ids) for _, ids in flat)):
        total = total + step(size)[1]
    return torch.stack([_joined(total, answers), begun[..., :-1].amax(-1), begun[..., -1]], dim=-1)


def _joined(values: Tensor, answers: Sequence[Sequence[Ids]]) -> Tensor:
    """Return the log of the summed probabilities `[T, B]` of each text's answers, whose logs are `[T, F]`."""
    numbers = iter(range(values.shape[1]))
    rows = [[next(numbers) for _ in own] for own in answers]
    most = max(map(len, rows))
    places = torch.tensor([own + [values.shape[1]] * (most - len(own)) for own in rows], device=values.device)
    none = values.new_full((len(values), 1), -torch.inf)
    return torch.cat([values, none], dim=1)[:, places].logsumexp(-1)


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return ids `[B, M]`; rows that have fewer repeat their first."""
    most = max(map(len, rows))
    return torch.tensor([[*row, *[row[0]] * (most - len(row))] for row in rows])


def _behind(context: Context, slots: Sequence[tuple[int, Ids]]) -> Context:
    """Return some texts, each with ids behind it: the number of a text, and the ids."""
    found = context.select([row for row, _ in slots])
    pieces = [
        Pieces(own.before, own.after + ids, own.answer) for own, (_, ids) in zip(found.pieces, slots, strict=True)
    ]
    return replace(found, pieces=tuple(pieces))


@dataclass(frozen=True, eq=False)
class PromptTexts:
    """Texts that one of several prompts answers.

    Args:
        backbone: what reads the texts.
        prompt: the prompt.
        context: the texts.
        share: of its probabilities in the mean; those of all prompts add up to 1.
    """

    backbone: Backbone
    prompt: Prompt
    context: Context
    share: float

    def words(self, slots: Sequence[tuple[int, Ids]] = ()) -> Tensor:
        """Return log-probabilities (nats) of the whole vocabulary `[b, V]` behind each text, or behind beginnings."""
        texts = _behind(self.context, slots) if slots else self.context
        return self.backbone.read_prompts(texts, [self.prompt], VOCABULARY)[0]


@torch.no_grad()
def likeliest_words(asked: Sequence[PromptTexts], count: int, tokens: int) -> list[list[tuple[Ids, str, float]]]:
    """Return the likeliest words at the answer slot of each text: ids, word, and its mean probability, best first.

    Of a masked model, and where words have one token, these are the whole words of the vocabulary
    (`AnswerWords.whole`). Elsewhere a beam search goes on from the likeliest beginnings: a word's probability is the
    product of those of the tokens that the tokenizer writes it as, times that of a next token which does not continue
    it. Words of more tokens are not found, nor are those whose beginnings are not among the 16 likeliest.

    Args:
        asked: the prompts that answer together.
        count: words of each text, at most.
        tokens: of a word, at most.
    """
    renderer = asked[0].context.renderer
    vocabulary = asked[0].backbone.vocabulary(renderer)
    search = _Beam(asked, vocabulary, count, tokens)
    logs = torch.stack([own.words() for own in asked])
    if renderer.head is HeadKind.MASKED or tokens == 1:
        shares, ids = search.mean(logs), vocabulary.whole.to(logs.device)
        best = shares[:, ids].topk(min(count, len(ids)))
        return [
            [((token,), vocabulary.words.whole[token], share) for token, share in zip(own, row, strict=True)]
            for own, row in zip(ids[best.indices].tolist(), best.values.tolist(), strict=True)
        ]
    return search.found(logs)


@dataclass(frozen=True, eq=False)
class _Beam:
    """A search for words of several tokens; arguments as for `likeliest_words`."""

    asked: Sequence[PromptTexts]
    vocabulary: OpenVocabulary
    count: int
    tokens: int

    def found(self, logs: Tensor) -> list[list[tuple[Ids, str, float]]]:
        """Return the words of each text, given the log-probabilities `[T, B, V]` at the answer slot."""
        words: list[list[tuple[Ids, str, float]]] = [[] for _ in range(logs.shape[1])]
        slots, sums = self._longer([(row, ()) for row in range(logs.shape[1])], logs, self.vocabulary.starts, words)
        for size in range(1, self.tokens + 1):
            if not slots:
                break
            logs = torch.stack([own.words(slots) for own in self.asked])
            goes_on = self.vocabulary.goes_on.to(logs.device)
            ends = sums + torch.log1p(-logs[..., goes_on].logsumexp(-1).exp().clamp(max=1.0))
            names = self.vocabulary.words.named([ids for _, ids in slots])
            for (row, ids), name, share in zip(slots, names, self.mean(ends).tolist(), strict=True):
                if name:
                    words[row].append((ids, name, share))
            if size < self.tokens:
                slots, sums = self._longer(slots, logs + sums[..., None], self.vocabulary.goes_on, words)
        return [sorted(own, key=lambda item: -item[2])[: self.count] for own in words]

    def _longer(
        self,
        slots: Sequence[tuple[int, Ids]],
        logs: Tensor,
        tokens: Tensor,
        words: Sequence[Sequence[tuple[Ids, str, float]]],
    ) -> tuple[list[tuple[int, Ids]], Tensor]:
        """Return the likeliest beginnings that are one token longer, and their log-probabilities `[T, F]`.

        Args:
            slots: the number of a text, and ids behind it.
            logs: `[T, b, V]` log-probabilities of these with each token behind them.
            tokens: those that may come next.
            words: found so far; a beginning that is no likelier than the last of them leads to none.
        """
        own = tokens.to(logs.device)
        best = self.mean(logs[..., own]).topk(min(_BEAM, len(own)))
        ranked: dict[int, list[tuple[float, int, int]]] = {}
        for place, (row, _) in enumerate(slots):
            pairs = zip(best.values[place].tolist(), own[best.indices[place]].tolist(), strict=True)
            ranked.setdefault(row, []).extend((share, place, token) for share, token in pairs)
        kept: list[tuple[int, int]] = []
        for row, beginnings in ranked.items():
            shares = sorted((share for _, _, share in words[row]), reverse=True)
            least = shares[self.count - 1] if len(shares) >= self.count else 0.0
            beginnings.sort(key=lambda own: -own[0])
            kept += [(place, token) for share, place, token in beginnings[:_BEAM] if share > least]
        places, following = ([pair[n] for pair in kept] for n in (0, 1))
        return [(slots[p][0], (*slots[p][1], t)) for p, t in kept], logs[:, places, following]

    def mean(self, logs: Tensor) -> Tensor:
        """Return the mean probabilities `[...]` of the prompts' log-probabilities `[T, ...]`."""
        shares = logs.new_tensor([own.share for own in self.asked])
        found: Tensor = torch.tensordot(shares, logs.exp(), dims=1)
        return found
