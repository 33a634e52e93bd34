"""Many classes: names of classes as further examples, vectors in place of label words, and few folds.

With tens of classes the label words are what takes the time: each pass of a language model reads every place where
words part. So nothing is trained through them: a vector of each class answers (`cuecraft.methods.train.verbalizer`).
Nor are other starting words tried: on BANKING77 two templates differed by .01 after some epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cuecraft.backbone import FeatureScale
from cuecraft.core.errors import CuecraftError
from cuecraft.methods.auto.contenders import ProbedWords, probed
from cuecraft.methods.auto.crossfit import ByHead, Configuration
from cuecraft.methods.auto.starts import BarePrefix, BareWords
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.contrastive import ContrastiveTraining, PromptOf
from cuecraft.methods.held_out import Fold
from cuecraft.methods.problem import CalibrationKind, Labelled, Problem, label_context
from cuecraft.methods.search.space import filled_ids
from cuecraft.methods.train.deep import OffsetTraining
from cuecraft.methods.train.verbalizer import at_names
from cuecraft.task import Example
from cuecraft.task.answers.multilabel import Multilabel
from cuecraft.task.answers.words import default_word

MOST_FEW = 24  # classes up to which there are few
FOLDS = 3
HEADS = (30.0, 100.0, 300.0, 1000.0)  # inverse penalties of class heads on features of unit length
_PREFIX_LENGTH = 8
#: Texts that a training passes over, all epochs of one fold together, about as many as ten minutes allow.
_TEXTS = 4000
_FEWEST_EPOCHS, _MOST_EPOCHS = 2, 6


def has_many(problem: Problem) -> bool:
    """Return whether a problem has so many classes, or so long names of them, that less of each kind is tried."""
    task = problem.task
    # Sets of a model that has only features go the usual way, which trains a prefix contrastively for longer.
    is_meant = task.answers.has_one_class or (isinstance(task.answers, Multilabel) and problem.backbone.has_words)
    return is_meant and (task.norm is not None or task.answers.size > MOST_FEW)


@dataclass(frozen=True)
class Unread(BareWords):
    """Words in the prompt slot; nothing is read by label words, however they are used."""

    def on(self, problem: Problem) -> Candidate:
        """Return the words as training starts from them."""
        return self.candidate(problem)


@dataclass(frozen=True)
class Vectors(Unread):
    """The same with a vector for each class, at the mean of its words' output embeddings."""

    def candidate(self, problem: Problem) -> Candidate:
        """Return the prompt with its vectors, calibrated."""
        return at_names(problem, self.bare(problem), CalibrationKind.FITTED)


@dataclass(frozen=True)
class Lesson:
    """What is learnt from, and the class heads that it leads to.

    Args:
        pool: all labelled examples, and behind them the names of classes where they help.
        folds: which of the examples are held out in turn; names never are.
        heads: over the template's own words.
    """

    pool: Labelled
    folds: Sequence[Fold]
    heads: ProbedWords


def lesson(problem: Problem, pool: Labelled, folds: Sequence[Fold]) -> Lesson:
    """Return what is learnt from: the examples, with names of classes as texts where that lowers the held-out loss.

    Raises:
        MethodError: the features are all zero.
    """
    own = Unread.of("own words", filled_ids(problem, None) if problem.backbone.has_words else problem.initial_ids)

    def taught(data: Labelled, parts: Sequence[Fold], start: BareWords) -> Lesson:
        whole = replace(problem, train=data, dev=None)
        return Lesson(data, parts, probed(whole, start, parts, HEADS, FeatureScale.UNIT))

    plain = taught(pool, folds, own)
    named = _named_examples(problem)
    if named is None:
        return plain
    rows = list(range(len(pool), len(pool) + len(named)))
    parts = [Fold([*fold.train, *rows], fold.held_out) for fold in folds]
    with_names = taught(pool.joined(named), parts, replace(own, name=f"{own.name}, names as texts"))
    return min((plain, with_names), key=lambda found: found.heads.held_out.score.loss)


def _named_examples(problem: Problem) -> Labelled | None:
    """Return each class's name as a text of that class, or of the set of it alone; None where that cannot be."""
    task = problem.task
    fields = task.template.field_names
    if len(fields) != 1:
        return None
    golds = [n if task.answers.has_one_class else (n,) for n in range(task.answers.size)]
    names = map(default_word, task.answers.options)
    texts = [Example({fields[0]: name}, gold) for name, gold in zip(names, golds, strict=True)]
    try:
        return label_context(problem.backbone, task, texts)
    except CuecraftError:  # such as a name without tokens
        return None


def trainings(problem: Problem, texts: int) -> list[Configuration]:
    """Return what is trained: vectors of names with a prompt, or of a model without words a prefix contrastively.

    With a class head, cross-entropy made prompts no better on MiniLM than the head alone: a logistic regression leaves
    no loss on its training texts, and from prototypes of classes on they came to the same accuracy.

    Args:
        problem: the problem.
        texts: that are learnt from.
    """
    epochs = min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, round(_TEXTS / texts)))
    if problem.backbone.has_words:
        deep = OffsetTraining(learning_rate=0.1, epochs=epochs, schedule="linear")
        return [Configuration((Vectors.of("own words, vectors of names", filled_ids(problem, None)),), deep)]
    prefix = BarePrefix.of("prefix", filled_ids(problem, _PREFIX_LENGTH))
    contrast = ContrastiveTraining(of=PromptOf.PREFIX, learning_rate=0.05, epochs=epochs + 2)
    return [Configuration((prefix,), contrast, ByHead(HEADS[1:]))]
