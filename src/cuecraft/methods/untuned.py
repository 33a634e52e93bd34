"""Where methods start: the untuned prompt, its calibration, its class head, and its score."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cuecraft.artifact import Calibration, HardPrompt, Prompt
from cuecraft.artifact.predictor import finite
from cuecraft.backbone import ClassHead, SequenceBackbone
from cuecraft.core.errors import MethodError
from cuecraft.core.events import TrainStep
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.objectives import Score
from cuecraft.methods.problem import CalibrationKind, Problem, Selection
from cuecraft.task import Example


def starting_point(problem: Problem, token_ids: tuple[int, ...], kind: CalibrationKind) -> Candidate:
    """Return the hard prompt that a method starts from, calibrated, with a class head where one is needed."""
    return _scored_start(problem, token_ids, kind)[0]


@torch.no_grad()
def _scored_start(problem: Problem, token_ids: tuple[int, ...], kind: CalibrationKind) -> tuple[Candidate, Score]:
    """Return the same with its score on the training examples; their texts are read once."""
    prompt, backbone = HardPrompt(token_ids), problem.backbone
    if isinstance(backbone, SequenceBackbone):
        features = backbone.features(problem.train.context, prompt)
        head = problem.train.fitted_head(features)
        candidate = calibrated(problem, replace(prompt, head=head), kind)
        logits = problem.objective.by_head(features, head)
    else:
        logits = finite(backbone.class_logits(problem.train.context, prompt), backbone, problem.task.answers)
        candidate = Candidate(prompt, calibration_of(problem, prompt, kind, logits))
    return candidate, problem.train.scores(candidate.joined(logits[None], problem.objective)).mean


def untuned_prompt(problem: Problem, kind: CalibrationKind) -> tuple[Candidate, Score | None]:
    """Return the template's own words as `starting_point` does, and their score on the training examples.

    Where the time ends first they stay uncalibrated and unscored. A class head, which has to be there, is then fitted
    to one example of each stratum, outside of the limit.

    Raises:
        BackboneError: the model answers with NaN or infinity.
    """
    with problem.in_time():
        return _scored_start(problem, problem.initial_ids, kind)
    if not isinstance(problem.backbone, SequenceBackbone):
        return Candidate(HardPrompt(problem.initial_ids), problem.objective.plain(), is_cut=True), None
    strata = problem.train.golds.strata
    few = replace(problem, train=problem.train.select([strata.index(own) for own in sorted(set(strata))]))
    found = starting_point(few, problem.initial_ids, CalibrationKind.NONE)
    return replace(found, is_cut=True), None


def begin(problem: Problem, kind: CalibrationKind, phase: str = "untuned") -> tuple[Candidate, Selection]:
    """Return the untuned prompt, calibrated, and a selection that has seen it, unless the time ended before."""
    untuned, found = untuned_prompt(problem, kind)
    selection = Selection(problem)
    if found is not None:
        with problem.in_time():
            selection.see(untuned, found, TrainStep(phase, 0))
    return untuned, selection


def calibrated(problem: Problem, prompt: Prompt, kind: CalibrationKind) -> Candidate:
    """Return a prompt with the calibration of its own logits; a class head needs none."""
    if prompt.head is not None:
        return Candidate(prompt, problem.objective.plain())
    return Candidate(prompt, calibrate(problem, prompt, kind))


CONTENT_FREE = ("N/A", "[MASK]", "...")


@torch.no_grad()
def calibrate(problem: Problem, prompt: Prompt, kind: CalibrationKind) -> Calibration:
    """Calibrate a prompt on the problem's training texts (`batch`), right answers (`fitted`) or on no texts at all."""
    needs_texts = kind in (CalibrationKind.BATCH, CalibrationKind.FITTED)
    logits = problem.backbone.class_logits(problem.train.context, prompt) if needs_texts else None
    return calibration_of(problem, prompt, kind, logits)


@torch.no_grad()
def calibration_of(problem: Problem, prompt: Prompt, kind: CalibrationKind, logits: Tensor | None) -> Calibration:
    """Calibrate a prompt whose logits `[N, O]` on the training texts are known; None where its kind needs none.

    Raises:
        MethodError: the kind makes no sense for such answers.
    """
    backbone, answers = problem.backbone, problem.task.answers
    if kind not in answers.calibrations:
        raise MethodError(
            f"calibration={kind} does not go with answers of kind {answers.kind}; "
            f"give {', '.join(answers.calibrations)}"
        )
    if kind is CalibrationKind.CONTEXTUAL:
        names = problem.task.template.field_names
        empty = [Example(dict.fromkeys(names, text)) for text in CONTENT_FREE]
        return problem.objective.flattened(backbone.class_logits(backbone.context(empty, problem.task), prompt))
    if kind is CalibrationKind.NONE or logits is None:
        return problem.objective.plain()
    if kind is CalibrationKind.BATCH:
        return problem.objective.flattened(logits)
    return problem.train.golds.fitted(logits, problem.train.weights)


def fit_head(problem: Problem, prompt: Prompt) -> ClassHead:
    """Fit a class head to the prompt's frozen features of the training texts."""
    with torch.no_grad():
        features = problem.backbone.features(problem.train.context, prompt)
    return problem.train.fitted_head(features)
