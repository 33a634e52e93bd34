"""The words that may answer: whole words of one token, and what a model says of them after each labelled text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cuecraft.backbone import AnyBackbone, Renderer
from cuecraft.backbone.readout import class_scores
from cuecraft.backbone.words import next_word_log_probabilities, word_log_probabilities
from cuecraft.method import Labelled, Problem
from cuecraft.predictor import finite
from cuecraft.prompts import HardPrompt
from cuecraft.prompts.calibration import fitted_head
from cuecraft.search.tokens import Tokens
from cuecraft.search.word_choice import WordScores, WordTable, contrast

# To read a vocabulary takes seconds, and a search on every fold asks for it. By tokenizer, then by what stands before
# the answer.
_known: WeakKeyDictionary[Any, dict[str, dict[int, str]]] = WeakKeyDictionary()
_ROWS = 64  # texts whose answers over the whole vocabulary are held at once


@dataclass(frozen=True)
class AnswerWords:
    """The words of a table.

    Args:
        table: the table.
        ids: `[W]` token ids of each word.
        texts: `[W]` each word as text.
    """

    table: WordTable
    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]


def read_words(problem: Problem, data: Labelled, count: int, prompt: HardPrompt) -> AnswerWords:
    """Read the likeliest `count` whole words, and the task's own, at the answer slot behind a prompt, of each example.

    Of words that a model hardly ever says, log-probabilities are mostly noise.

    Raises:
        BackboneError: the model answers with NaN or infinity.
    """
    backbone, renderer = problem.backbone, data.context.renderer
    own = []
    for words, ids in zip(problem.task.verbalizer.words, renderer.label_ids, strict=True):
        # Of words that the tokenizer writes alike the first gives its name.
        named = dict(reversed(list(zip(renderer.answer_ids(words), words, strict=True))))
        own.append({word: named[word] for word in ids})
    own_ids = [ids for words in own for ids in words]
    whole = _whole_words(backbone, renderer)
    taken = {ids[0] for ids in own_ids}  # a word that another begins with could not stand for another class
    names = {word.casefold() for classed in own for word in classed.values()}
    tokens = [token for token, word in whole.items() if token not in taken and word.casefold() not in names]
    columns = torch.tensor([*(ids[0] for ids in own_ids), *tokens], device=backbone.device)
    parts = [next_word_log_probabilities(backbone, part.context, prompt)[:, columns] for part in data.chunks(_ROWS)]
    of_own, log_p = torch.cat(parts).double().cpu().split([len(own_ids), len(tokens)], dim=1)
    if any(len(ids) > 1 for ids in own_ids):
        of_own = word_log_probabilities(backbone, data.context, prompt, own_ids).double().cpu()
    finite(of_own, backbone)
    likely = _likely(log_p, [whole[token].casefold() for token in tokens])[:count]
    bounds = torch.tensor([0, *map(len, own)]).cumsum(0).tolist()
    table = WordTable(
        torch.cat([of_own, log_p[:, likely]], dim=1),
        data.labels.cpu(),
        tuple(tuple(range(start, stop)) for start, stop in pairwise(bounds)),
        tuple(range(bounds[-1], bounds[-1] + len(likely))),
    )
    all_ids = (*own_ids, *((tokens[n],) for n in likely))
    texts = (*(word for classed in own for word in classed.values()), *(whole[tokens[n]] for n in likely))
    return AnswerWords(table, all_ids, texts)


def _whole_words(backbone: AnyBackbone, renderer: Renderer) -> dict[int, str]:
    """Return the words, in letters of any script, that are one token each in the answer slot."""
    known = _known.setdefault(backbone.tokenizer, {})
    if renderer.answer_prefix not in known:
        known[renderer.answer_prefix] = _found_whole(backbone, renderer)
    return known[renderer.answer_prefix]


def _found_whole(backbone: AnyBackbone, renderer: Renderer) -> dict[int, str]:
    tokens = Tokens.of(backbone)
    special = set(backbone.tokenizer.all_special_ids)
    words = {n: tokens.word(n) for n in range(len(tokens.texts)) if n not in special}
    words = {token: word for token, word in words.items() if _is_lettered(word)}
    found = renderer.answer_ids(list(words.values()))
    return {token: word for (token, word), ids in zip(words.items(), found, strict=True) if ids == (token,)}


def _is_lettered(word: str) -> bool:
    """Return whether a word is letters, with the marks that some scripts write between them."""
    return word[:1].isalpha() and all(char.isalpha() or unicodedata.category(char)[0] == "M" for char in word)


def _likely(log_p: Tensor, spellings: Sequence[str]) -> list[int]:
    """Return the columns of the likeliest words, best first, one of each spelling; no label is looked at."""
    order = log_p.logsumexp(0).nan_to_num(nan=-torch.inf).sort(descending=True, stable=True).indices.tolist()
    is_finite = log_p.isfinite().all(0).tolist()
    first: dict[str, int] = {}
    for column in order:
        if is_finite[column]:
            first.setdefault(spellings[column], column)
    return list(first.values())


def contrast_scores(table: WordTable) -> WordScores:
    """Return the scores of `contrast`."""
    return lambda rows: contrast(table.log_p[list(rows)], table.labels[list(rows)], len(table.own))


@torch.no_grad()
def probe_scores(problem: Problem, data: Labelled, vocabulary: AnswerWords, prompt: HardPrompt) -> WordScores:
    """Return AutoPrompt's scores: the log-probability of each class given a word's output embedding.

    Features and embeddings are divided by their root mean square each, so that one logistic regression fits both.
    """
    backbone, classes = problem.backbone, len(vocabulary.table.own)
    features = backbone.features(data.context, prompt)
    features = (features / features.square().mean().sqrt()).cpu()
    weight = backbone.model.get_output_embeddings().weight
    several = torch.tensor([len(ids) > 1 for ids in vocabulary.ids])
    rows = torch.tensor([ids[0] for ids in vocabulary.ids], device=weight.device)
    embeddings = weight[rows].float().cpu()
    embeddings = embeddings / embeddings.square().mean().sqrt()

    def scores(learnt_from: Sequence[int]) -> Tensor:
        labels = vocabulary.table.labels[list(learnt_from)]
        head = fitted_head(features[list(learnt_from)], labels, classes)
        return class_scores(embeddings, head).log_softmax(-1).T.masked_fill(several, torch.nan)

    return scores
