"""From an outcome to an artifact."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from cuecraft.artifact import Artifact, Sharing, StoredWeights
from cuecraft.backbone import AnyBackbone
from cuecraft.backbone.weights import TunedWeights
from cuecraft.core.errors import CuecraftWarning, named
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.objectives import objective_of
from cuecraft.methods.problem import Method, OtherTask, Outcome, Problem, score
from cuecraft.methods.train.multitask import MultitaskTuning
from cuecraft.methods.train.probe import SentenceEncoder
from cuecraft.task import AnswerSpace

_CUT = (
    "the time limit ended before the untuned prompt was calibrated: it ships uncalibrated, or with a class head of one "
    f"example a class; give a longer {named('time_limit')}, fewer examples or a smaller model"
)


def make_artifact(
    problem: Problem,
    outcome: Outcome,
    method: Method | MultitaskTuning,
    classes: Mapping[str, Any] | None = None,
    sharing: Sharing | None = None,
) -> Artifact:
    """Gather an outcome into an artifact, with its accuracy on those of the problem's own splits that have labels.

    Where another model reads the texts, the artifact is that model's; with other label words, or examples in
    front of every text, it has those. Of a method that learns from the dev set too, accuracy on dev would say
    nothing: its held-out accuracy stands there. What the time limit leaves no time to measure is left out.
    """
    reader = outcome.best.reader
    backbone, task = problem.backbone, problem.task
    if isinstance(reader, OtherTask):
        backbone, task = reader.backbone, reader.task
    parts = {"train": problem.train} | ({"dev": problem.dev} if problem.dev and outcome.held_out is None else {})
    answers = decided_answers(problem, outcome, task.answers)
    task = replace(task, answers=answers)
    known, measure = {"dev": outcome.dev if answers == answers.undecided else None}, answers.tuning_score
    metrics = {}
    for name, part in parts.items():
        with problem.in_time():
            if part.golds.are_known:
                found = known.get(name) or score(problem.backbone, outcome.best, part.decided_by(answers))
                metrics[f"{name}_{measure}"] = found.primary
    if outcome.best.is_cut:
        warnings.warn(_CUT, CuecraftWarning, stacklevel=2)
    if outcome.held_out is not None:
        metrics[f"held_out_{measure}"] = outcome.held_out.primary
    metrics |= outcome.figures
    if classes:
        own = tuple(classes[label] for label in task.verbalizer.labels)
        task = replace(task, answers=replace(task.verbalizer, classes=own))
    return Artifact.create(
        outcome.best.prompt,
        outcome.best.calibration,
        task,
        backbone,
        method=method.name,
        method_options=method.model_dump(mode="json"),
        seed=problem.seed,
        metrics=metrics,
        data=problem.data,
        words=outcome.words.prompt.text(problem.backbone.tokenizer) if outcome.words else None,
        trace=outcome.trace,
        weights=StoredWeights(reader.spec, reader.tensors()) if isinstance(reader, TunedWeights) else None,
        sharing=sharing if outcome.is_tuned else None,
        others=outcome.best.others,
    )


@torch.no_grad()
def decided_answers(problem: Problem, outcome: Outcome, answers: AnswerSpace) -> AnswerSpace:
    """Return an answer space with what its decisions take from held-out answers of an outcome's best candidate.

    They are those that the method had of its own, or the answers to the dev set. Without either, or without time, the
    answer space stays as it is.

    Args:
        problem: the problem.
        outcome: of a method on it.
        answers: of the task in which the candidate's texts are written.
    """
    if outcome.answers is not None:
        return outcome.answers
    dev, found = problem.dev, answers
    if answers.fits_decisions and dev is not None and dev.golds.are_known:
        with problem.in_time():
            values = outcome.best.logits(problem.backbone, dev.context)
            found = objective_of(answers).decided(values, dev.golds.values)
    return found


def answering_model(backbone: AnyBackbone, best: Candidate) -> AnyBackbone:
    """Return the model that reads the texts in the end: a probe's sentence encoder, or the backbone."""
    return best.reader.backbone if isinstance(best.reader, SentenceEncoder) else backbone
