"""Labelled words that the tests of spans and tags share: texts, their spans, a task, and values that lead to them."""

import torch

from cuecraft.data import Record
from cuecraft.methods.objectives import Golds, objective_of
from cuecraft.methods.prepare import make_problem
from cuecraft.task import Task, Template
from cuecraft.task.alignment import words_of
from cuecraft.task.answers.tokens import TokenLabels

SPACE = TokenLabels(("film", "mood"))
#: Texts of the tiny tokenizers' words, and spans (label, first word, last word).
LABELLED = [
    ("a joy from start to finish", [("mood", 1, 1)]),
    ("the film is a bore", [("film", 0, 1), ("mood", 4, 4)]),
    ("the story of love and war is warm, bright and good", [("film", 0, 5), ("mood", 7, 7), ("mood", 9, 9)]),
    ("again and again", []),
    ("great actors in a dull plot!", [("mood", 0, 0), ("mood", 4, 4), ("film", 5, 5)]),
    ("start to finish", []),
    ("the plot", [("film", 0, 1)]),
    ("it was never good; this story was cold", [("mood", 3, 3), ("film", 5, 6), ("mood", 8, 8)]),
]


def spans_of(text, labelled):
    words = words_of(text)
    return tuple((label, words[first][0], words[last][1]) for label, first, last in labelled)


def rows_of(labelled=LABELLED):
    return [Record({"text": text}, spans_of(text, own)) for text, own in labelled]


TASK = Task(Template("{prompt}{text}"), SPACE)


def problem_of(backbone, task=TASK, **options):
    rows = rows_of()
    return make_problem(backbone, task, rows, rows, **options)


def values_of(labelled, seed=0, noise=3.0):
    """Values of texts whose likeliest tags are mostly the right ones."""
    golds = [SPACE.gold(row) for row in rows_of(labelled)]
    width = max(len(gold.tags) for gold in golds)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(golds), width, SPACE.head_rows, generator=generator, dtype=torch.float64)
    for row, gold in enumerate(golds):
        for word, tag in enumerate(gold.tags):
            values[row, word, tag] += noise
        values[row, len(gold.tags) :] = -torch.inf
    return Golds(objective_of(SPACE), tuple(golds)), values.flatten(1)
