"""Soft verbalizers: one trained vector for each class, in place of label words.

WARP (Hambardzumyan et al., ACL 2021, arXiv 2101.00121, section 3): a class's logit is the product of its vector and the
hidden state that the output embedding reads, which is what a language model does for a word. Vectors start at the means
of the output embedding's rows of the class's words, or at a logistic regression; they are trained with the prompt. One
slot is read of each text, however many classes there are and however long their names.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from cuecraft.artifact import Prompt
from cuecraft.backbone import AnyBackbone, ClassHead
from cuecraft.backbone.columns import class_scores
from cuecraft.core.errors import MethodError
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.held_out import Fold, stratified_folds, texts_of
from cuecraft.methods.problem import CalibrationKind, Problem
from cuecraft.methods.train.probe import STRENGTHS, scaled_head
from cuecraft.methods.untuned import calibrate, calibrated
from cuecraft.task.rendering import Renderer

_FOLDS = 4  # of the training examples, where there is no dev set


class VerbalizerKind(StrEnum):
    """What answers for a class."""

    WORDS = "words"  # its label words
    NAMES = "names"  # a vector that starts at the mean of its words' output embeddings
    FITTED = "fitted"  # a vector that starts at a logistic regression
    SOFT = "soft"  # a vector trained from each of both starts, where a dev set can choose


#: The option of methods that train a prompt.
Verbalized = Annotated[
    VerbalizerKind,
    Field(
        description="what answers for a class: its `words`, or a trained vector that starts at the mean of their "
        "output embeddings (`names`), at a logistic regression (`fitted`), or at both in turn, for dev to choose "
        "(`soft`)"
    ),
]


def named_head(backbone: AnyBackbone, renderer: Renderer) -> ClassHead:
    """Return the class head whose row for an option is the mean of its words' rows of the output embedding.

    Rows are means over the words of an option of means over a word's tokens, in float32 at least; the bias is the same
    mean of the output embedding's own bias, or zero.
    """
    embedding = backbone.model.get_output_embeddings()
    weight = embedding.weight.detach()
    bias = weight.new_zeros(len(weight)) if embedding.bias is None else embedding.bias.detach()
    single = torch.promote_types(weight.dtype, torch.float32)

    def mean(table: Tensor) -> Tensor:
        """Return the means `[O, ...]` of rows of a table `[V, ...]`."""
        of_options = [
            torch.stack([table[list(ids)].to(single).mean(0) for ids in renderer.answer_ids(words)]).mean(0)
            for words in renderer.task.answers.options.values()
        ]
        return torch.stack(of_options)

    return ClassHead(mean(weight), mean(bias))


def head_unit(backbone: AnyBackbone) -> float:
    """Return the unit of a class head's learning rate: the RMS of the output embedding; 1 where there is none."""
    embedding = backbone.model.get_output_embeddings() if backbone.has_words else None
    return 1.0 if embedding is None else float(embedding.weight.detach().float().square().mean().sqrt())


def verbalized(problem: Problem, prompt: Prompt, kind: VerbalizerKind, calibration: CalibrationKind) -> list[Candidate]:
    """Return what training starts from: a prompt with what answers, calibrated; two of `soft` with a dev set.

    Which start is better before training does not say which is better after it: on BANKING77 a logistic regression
    answers .56 of the dev texts rightly at first and .65 in the end, where names begin at .41 and end at .73.

    Args:
        problem: the problem.
        prompt: with the class head that the backbone needs, if any.
        kind: what answers.
        calibration: of the answers by words, or by vectors that start at words; a logistic regression needs none.

    Raises:
        MethodError: the backbone has no words, or the answers are no options that all texts share.
    """
    if kind is VerbalizerKind.WORDS:
        return [calibrated(problem, prompt, calibration)]
    if not problem.backbone.has_words:
        raise MethodError(
            f"verbalizer={kind} needs a causal or masked language model; {problem.backbone.name} answers by a class "
            "head that is trained anyway, so leave the option out"
        )
    if not problem.task.answers.size:
        raise MethodError(
            f"verbalizer={kind} needs options that all texts share; answers of kind {problem.task.answers.kind} come "
            "with each text"
        )
    both = kind is VerbalizerKind.SOFT and problem.dev is not None
    found = [] if kind is VerbalizerKind.FITTED else [at_names(problem, prompt, calibration)]
    return [*found, _at_regression(problem, prompt)] if both or kind is VerbalizerKind.FITTED else found


def at_names(problem: Problem, prompt: Prompt, calibration: CalibrationKind) -> Candidate:
    """Return a prompt with vectors at the means of its words' output embeddings, calibrated."""
    headed = prompt.with_head(named_head(problem.backbone, problem.train.context.renderer))
    return Candidate(headed, calibrate(problem, headed, calibration))


@torch.no_grad()
def _at_regression(problem: Problem, prompt: Prompt) -> Candidate:
    """Return a prompt with the logistic regression of least held-out loss; of the middle penalty without folds."""
    train, pool, rows = problem.train, problem.pool, list(range(len(problem.pool)))
    features = problem.backbone.features(pool.context, prompt).float()
    splits = [Fold(rows[: len(train)], rows[len(train) :])]
    if problem.dev is None:
        splits = stratified_folds(train.golds.strata, _FOLDS, problem.seed, texts_of(train.context.examples))

    def head(strength: float, learnt: list[int]) -> ClassHead:
        return scaled_head(pool.select(learnt), features[learnt], strength)

    def loss(strength: float) -> float:
        pairs = [(pool.select(held), class_scores(features[held], head(strength, own))) for own, held in splits]
        return float(torch.cat([data.scores(values).losses for data, values in pairs]).mean())

    strength = min(STRENGTHS, key=loss) if splits else STRENGTHS[len(STRENGTHS) // 2]
    return Candidate(prompt.with_head(head(strength, rows[: len(train)])), problem.objective.plain())
