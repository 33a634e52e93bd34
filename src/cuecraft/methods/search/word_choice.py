"""Label words: what a model says of each word after each labelled text, and the choice among words on that table.

The table of log-probabilities is read once; the choice takes no pass of the model. A class may keep its current words,
take the first few of a shortlist that some score ranks, or have both. Combinations of such choices, one for each class,
are compared by the log-loss that they give on held-out folds: neither shortlist nor calibration has seen what it is
judged by. To choose among the single words of one shortlist instead, judged by the examples that made it, was tried and
is much worse: with 16 examples of a class some words always fit those 16.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.artifact import Prompt, calibration
from cuecraft.artifact.calibration import fitted_head
from cuecraft.artifact.predictor import finite
from cuecraft.backbone import AnyBackbone
from cuecraft.backbone.columns import class_scores
from cuecraft.backbone.likelihood import next_word_log_probabilities, word_log_probabilities
from cuecraft.methods.held_out import Fold, stratified_folds
from cuecraft.methods.problem import Labelled, Problem
from cuecraft.methods.search.vocabulary import Tokens
from cuecraft.task.rendering import Renderer

Columns = tuple[int, ...]  # words of one class, by their columns

_FOLDS = 4  # in which combinations are compared
_TIE = 0.01  # nats of held-out loss that are no reason to leave the current words
_GAIN = 0.05  # nats of held-out loss for which one class may choose otherwise than the rest
# To read a vocabulary takes seconds, and a search on every fold asks for it. By tokenizer, then by what stands before
# the answer.
_known: WeakKeyDictionary[Any, dict[str, dict[int, str]]] = WeakKeyDictionary()
_ROWS = 64  # texts whose answers over the whole vocabulary are held at once


@dataclass(frozen=True)
class WordTable:
    """What a model says of some words after each labelled text.

    Args:
        log_p: `[N, W]` log-probabilities (nats) at the answer slot, float64.
        labels: `[N]` class numbers.
        own: `[C]` columns of each class's current words.
        free: columns of the words that any class may take.
    """

    log_p: Tensor
    labels: Tensor
    own: tuple[Columns, ...]
    free: Columns

    @property
    def rows(self) -> list[int]:
        """All rows."""
        return list(range(len(self.labels)))


WordScores = Callable[[Sequence[int]], Tensor]  # rows to learn from -> [C, W], the higher the better


def contrast(log_p: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return how much likelier words are after texts of a class than after those of the others `[C, W]`, in nats.

    ``mean over x of class c of log p(w | x)``, less the mean of that over the other classes. LM-BFF takes the first
    part alone (Gao et al., ACL 2021, arXiv 2012.15723, section 5.1), which ranks words high that follow any text.

    Args:
        log_p: `[N, W]`.
        labels: `[N]`, each class at least once.
        classes: C, two or more.
    """
    means = torch.stack([log_p[labels == c].mean(0) for c in range(classes)])
    return means - (means.sum(0) - means) / (classes - 1)


def shortlist(scores: Tensor, table: WordTable, count: int) -> list[Columns]:
    """Return each class's `count` best free words, best first.

    A word is on the list of one class alone: where its score is highest above the median that free words have there.
    """
    free = torch.tensor(table.free, dtype=torch.long)
    if not len(free):
        return [()] * len(scores)
    of_free = scores[:, free]
    owner = (of_free - of_free.median(1, keepdim=True).values).argmax(0)
    lists = []
    for c, own in enumerate(of_free):
        mine = (owner == c).nonzero().flatten()
        best = mine[own[mine].sort(descending=True, stable=True).indices[:count]]
        lists.append(tuple(free[best].tolist()))
    return lists


def choices(own: Columns, listed: Columns, most: int) -> list[Columns]:
    """Return what a class may have: its own words, the first 1, 2, 4 .. `most` that are listed, or these and its own.

    There are as many choices whatever the list, so that the same one can be made on every fold; of a list that is too
    short, all is taken, and of an empty one the class's own words.
    """
    sizes = sorted({min(2**power, most) for power in range(most.bit_length() + 1)})
    return [own, *(listed[:size] or own for size in sizes), *((*own, *listed[:size]) for size in sizes)]


def class_log_probabilities(table: WordTable, words: Sequence[Columns]) -> Tensor:
    """Return the log of each class's summed probabilities `[N, C]`."""
    return torch.stack([table.log_p[:, list(columns)].logsumexp(-1) for columns in words], dim=-1)


def held_out_answers(scores: Tensor, labels: Tensor, fold: Fold) -> Tensor:
    """Return log-probabilities `[n, C]` of a fold's held-out rows; the calibration is fitted to the others."""
    learnt, held = fold
    return calibration.fitted(scores[learnt], labels[learnt]).apply(scores[held]).log_softmax(-1)


def best_combination(classes: int, count: int, loss: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """Return a combination `[C]` of choices, numbers below `count`, of little loss.

    The best of those in which all classes choose alike, all 0 unless another gains something. From there coordinate
    descent: one class at a time is changed to its best next to the others', as long as that gains clearly. To try
    all combinations finds what fits the luck of the folds: on film reviews that was worse on other examples.
    """
    loss = cache(loss)
    best = _better((0,) * classes, ((n,) * classes for n in range(count)), loss, _TIE)
    changed = True
    while changed:
        before = best
        for c in range(classes):
            best = _better(best, ((*best[:c], n, *best[c + 1 :]) for n in range(count)), loss, _GAIN)
        changed = best != before
    return best


def _better(
    start: tuple[int, ...],
    others: Iterable[tuple[int, ...]],
    loss: Callable[[tuple[int, ...]], float],
    gain: float,
) -> tuple[int, ...]:
    """Return the best of some others where it gains enough on where it started, else that."""
    best = min(others, key=loss)
    return best if loss(best) < loss(start) - gain else start


def choose(table: WordTable, rows: Sequence[int], word_scores: WordScores, most: int, seed: int) -> tuple[Columns, ...]:
    """Return the words `[C]` that some rows choose.

    Args:
        table: the words.
        rows: what is learnt from.
        word_scores: ranks words for each class.
        most: listed words that one class may have.
        seed: of the folds.
    """
    rows = list(rows)
    folds = [
        Fold([rows[n] for n in learnt], [rows[n] for n in held])
        for learnt, held in stratified_folds(table.labels[rows], _FOLDS, seed)
    ]
    if not folds:
        return table.own
    offered = [_offered(table, learnt, word_scores, most) for learnt, _ in folds]
    by_class = [
        [class_log_probabilities(table, sets) for sets in on_fold] for on_fold in offered
    ]  # folds x C of [N, choices]
    held_out = [row for _, held in folds for row in held]

    def loss(numbers: tuple[int, ...]) -> float:
        answers = []
        for fold, on_fold in zip(folds, by_class, strict=True):
            scores = torch.stack([part[:, n] for part, n in zip(on_fold, numbers, strict=True)], dim=-1)
            answers.append(held_out_answers(scores, table.labels, fold))
        return float(functional.nll_loss(torch.cat(answers), table.labels[held_out]))

    final = _offered(table, rows, word_scores, most)
    best = best_combination(len(final), len(final[0]), loss)
    return tuple(sets[n] for sets, n in zip(final, best, strict=True))


def _offered(table: WordTable, rows: Sequence[int], word_scores: WordScores, most: int) -> list[list[Columns]]:
    listed = shortlist(word_scores(rows), table, most)
    return [choices(own, words, most) for own, words in zip(table.own, listed, strict=True)]


@dataclass(frozen=True)
class TableWords:
    """The words of a table.

    Args:
        table: the table.
        ids: `[W]` token ids of each word.
        texts: `[W]` each word as text.
    """

    table: WordTable
    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]


def read_words(problem: Problem, data: Labelled, count: int, prompt: Prompt) -> TableWords:
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
    return TableWords(table, all_ids, texts)


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
def probe_scores(problem: Problem, data: Labelled, vocabulary: TableWords, prompt: Prompt) -> WordScores:
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
