"""Label words searched: which words of the vocabulary stand for the classes best.

Two ways to shortlist words. `contrast` needs no gradient and no training (LM-BFF, Gao et al., ACL 2021, arXiv
2012.15723, section 5.1, adapted): words that are likelier at the answer slot after texts of one class than after those
of the others. `probe` is AutoPrompt's (Shin et al., EMNLP 2020, arXiv 2010.15980, section 2.3): a logistic regression
on the features at the answer slot is asked what it would say of each word's own output embedding.

All labelled examples serve, the dev set too. What is found must beat the words that the task has already, on folds that
the choice has not seen; else these stay.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cuecraft.artifact import HardPrompt
from cuecraft.backbone import AnyBackbone, Context
from cuecraft.backbone.hooks import training
from cuecraft.core.errors import MethodError
from cuecraft.core.events import Progress
from cuecraft.core.options import Options
from cuecraft.core.seeding import numpy_generator
from cuecraft.methods.evidence import Evidence, compare_paired, strength_of
from cuecraft.methods.held_out import stratified_folds, texts_of
from cuecraft.methods.problem import Labelled, Problem
from cuecraft.methods.search.halving import halving_rounds
from cuecraft.methods.search.word_choice import (
    Columns,
    TableWords,
    WordScores,
    WordTable,
    choose,
    class_log_probabilities,
    contrast_scores,
    held_out_answers,
    probe_scores,
    read_words,
    shortlist,
)
from cuecraft.task import Task
from cuecraft.task.answers.words import WordChoice

PHASE = "label-words"
_FOLDS = 4  # on which the choice is checked
_CLEAR = 0.05  # p-value below which a difference is clear


@dataclass(frozen=True)
class RankedWord:
    """A line of the shortlist.

    Args:
        label: the class.
        word: the word.
        score: by `contrast` nats, by `probe` the log-probability (nats) of the class; None for current words that the
            probe cannot rate, having several tokens.
        is_current: whether the task had the word before.
        is_chosen: whether it is among the words that were found.
    """

    label: str
    word: str
    score: float | None
    is_current: bool
    is_chosen: bool


@dataclass(frozen=True)
class FoundWords:
    """What a search for label words found.

    Args:
        words: class -> words to use: the best that were found, or the current ones where those are not clearly better.
        best: class -> best words that were found.
        table: shortlist of each class, best first, after the current words.
        reason: why these words, in one sentence.
        evidence: how the found words ("tuned") and the current ones ("untuned") compare on held-out examples; None
            where there are too few.
        way: how words were shortlisted.
    """

    words: Mapping[str, tuple[str, ...]]
    best: Mapping[str, tuple[str, ...]]
    table: tuple[RankedWord, ...]
    reason: str
    evidence: Evidence | None
    way: str

    @property
    def arguments(self) -> list[str]:
        """The words as arguments for the command line, one for each class, quoted for a shell."""
        return ["--label-words " + shlex.quote(f"{label}={','.join(words)}") for label, words in self.words.items()]

    def document(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        evidence = self.evidence and asdict(self.evidence) | {"strength": strength_of(self.evidence.p_loss)}
        return {
            "way": self.way,
            "words": {label: list(words) for label, words in self.words.items()},
            "best": {label: list(words) for label, words in self.best.items()},
            "reason": self.reason,
            "evidence": evidence,
            "table": [dict(vars(row)) for row in self.table],
            "arguments": self.arguments,
        }


class LabelWordSearch(Options):
    """A search for label words."""

    name: ClassVar[str] = "label-words"

    way: Literal["contrast", "probe"] = Field(
        "contrast", description="`contrast` compares likelihoods after texts of the classes; `probe` is AutoPrompt's"
    )
    words: int = Field(8, ge=1, description="words that a class may get, at most")
    candidates: int = Field(200, ge=1, description="words that compete: the likeliest at the answer slot")
    examples: int = Field(256, ge=2, description="labelled examples that are read, at most, classes in turn")

    @training()
    def search(self, problem: Problem, token_ids: tuple[int, ...] | None = None) -> FoundWords:
        """Find label words; the current ones stay where the found ones are not clearly better.

        Each example is read once, training and dev examples alike. Where time runs out the current words stay.

        Args:
            problem: the problem.
            token_ids: the prompt that they are to stand behind; None for the template's own words.

        Raises:
            MethodError: the backbone has no language head.
            BackboneError: the model answers with NaN or infinity.
        """
        if not problem.backbone.has_words:
            raise MethodError(
                f"label words are searched for with a causal or masked language model, but {problem.backbone.name} "
                "has only features; its methods fit a class head and need no label words"
            )
        data = _sampled(problem, self.examples)
        prompt = HardPrompt(problem.initial_ids if token_ids is None else token_ids)
        vocabulary = read_words(problem, data, self.candidates, prompt)
        table = vocabulary.table
        scores = probe_scores(problem, data, vocabulary, prompt) if self.way == "probe" else contrast_scores(table)
        best = self._choose(table, table.rows, scores, problem.seed)
        current = problem.task.verbalizer.words
        evidence = None
        if best != table.own:
            evidence = self._evidence(problem, data, table, scores)
        is_clear = evidence is not None and _is_clear(evidence)
        found = [
            words if columns == own else tuple(vocabulary.texts[column] for column in columns)
            for columns, own, words in zip(best, table.own, current, strict=True)
        ]
        labels = problem.task.verbalizer.labels
        return FoundWords(
            dict(zip(labels, found if is_clear else current, strict=True)),
            dict(zip(labels, found, strict=True)),
            _ranked(vocabulary, scores(table.rows), best, labels, self.words),
            _reason(best == table.own, is_clear, evidence),
            evidence,
            self.way,
        )

    def _choose(self, table: WordTable, rows: Sequence[int], scores: WordScores, seed: int) -> tuple[Columns, ...]:
        return choose(table, rows, scores, self.words, seed)

    def _evidence(self, problem: Problem, data: Labelled, table: WordTable, scores: WordScores) -> Evidence | None:
        """Compare found and current words on folds that the choice has not seen; None where that cannot be done."""
        folds = stratified_folds(table.labels, _FOLDS, problem.seed, texts_of(data.context.examples))
        found, current = (torch.empty(len(table.labels), len(table.own), dtype=table.log_p.dtype) for _ in range(2))
        for step, fold in enumerate(folds, start=1):
            if problem.out_of_time():
                return None
            words = self._choose(table, fold[0], scores, problem.seed)
            found[fold[1]] = held_out_answers(class_log_probabilities(table, words), table.labels, fold)
            current[fold[1]] = held_out_answers(class_log_probabilities(table, table.own), table.labels, fold)
            problem.report(Progress(PHASE, step, len(folds)))
        if not folds:
            return None
        golds = replace(data.golds, device=found.device)
        return compare_paired(golds.scores(found), golds.scores(current), problem.seed)


def _is_clear(evidence: Evidence) -> bool:
    """Return whether found words are better, and clearly so by log-loss or by accuracy."""
    return evidence.is_better and min(evidence.p_loss, evidence.p_accuracy) < _CLEAR


def with_label_words(problem: Problem, words: WordChoice) -> Problem:
    """Return the same problem with other label words; what was read of the texts stays, and nothing is read again.

    Where the new words have another number of tokens and texts were cut to make space for them, those texts are read
    again.

    Args:
        problem: the problem.
        words: class -> word or words.

    Raises:
        LabelWordError: a class is left out, or a word cannot be scored by the backbone.
    """
    task = replace(problem.task, answers=problem.task.verbalizer.with_words(words))
    train, dev = (
        part and replace(part, context=_with_words(problem.backbone, part.context, task))
        for part in (problem.train, problem.dev)
    )
    assert train is not None
    return replace(problem, task=task, train=train, dev=dev)


def _with_words(backbone: AnyBackbone, context: Context, task: Task) -> Context:
    renderer = backbone.renderer(task)
    capacities = {renderer.capacity(), context.renderer.capacity()}
    if len(capacities) > 1 and max(renderer.text_lengths(context.examples)) > min(filter(None, capacities)):
        return backbone.context(context.examples, task)
    return replace(context, renderer=renderer)


def _sampled(problem: Problem, size: int) -> Labelled:
    """Return the labelled examples, or one sample of them in which classes take turns."""
    pool = problem.pool
    size = max(size, 2 * problem.task.verbalizer.num_classes)  # no class may be missing
    if len(pool) <= size:
        return pool
    rounds = halving_rounds(pool.golds.strata, numpy_generator(problem.seed, "label-word-examples"))
    return pool.select(sorted([row for rows in rounds for row in rows][:size]))


def _ranked(
    vocabulary: TableWords, scores: Tensor, best: Sequence[Columns], labels: Sequence[str], count: int
) -> tuple[RankedWord, ...]:
    """Return the shortlist of each class, its current words first."""
    table = vocabulary.table
    rows = []
    for c, (own, listed) in enumerate(zip(table.own, shortlist(scores, table, count), strict=True)):
        for column in (*own, *listed):
            value = float(scores[c, column])
            score = value if value == value else None
            rows.append(RankedWord(labels[c], vocabulary.texts[column], score, column in own, column in best[c]))
    return tuple(rows)


def _reason(is_current: bool, is_clear: bool, evidence: Evidence | None) -> str:
    if is_current:
        return "no other words have less log-loss than the current ones, so these stay"
    if evidence is None:
        return "too few examples, or too little time, to check the found words, so the current ones stay"
    found = (
        f"on {evidence.rows} held-out examples log-loss {evidence.untuned_loss:.3f} -> {evidence.loss:.3f} "
        f"(paired test, p = {evidence.p_loss:.2g}), accuracy {evidence.untuned_accuracy:.3f} -> "
        f"{evidence.accuracy:.3f} (p = {evidence.p_accuracy:.2g})"
    )
    return found if is_clear else f"{found}: not clearly better, so the current words stay"
