"""Linear probes: logistic regression on frozen features, of the backbone itself or of a sentence encoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cuecraft.artifact import HardPrompt, Prompt
from cuecraft.backbone import ClassHead, FeatureScale, load_backbone
from cuecraft.core.errors import MethodError
from cuecraft.core.events import TrainStep
from cuecraft.methods.candidate import Candidate, lent
from cuecraft.methods.prepare import default_template
from cuecraft.methods.problem import CalibrationKind, Labelled, Method, OtherTask, Outcome, Problem, Selection
from cuecraft.methods.untuned import untuned_prompt
from cuecraft.task import Template
from cuecraft.task.rendering import HeadKind

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)


class LinearProbe(Method):
    """A class head on the backbone's features at the answer slot, or on its pooled features.

    Features are divided by their root mean square over the training texts, so that a penalty means the same on each
    backbone.
    """

    name: ClassVar[str] = "linear-probe"
    has_own_head: ClassVar[bool] = True
    weighs_examples: ClassVar[bool] = True

    inverse_penalties: tuple[float, ...] = Field(
        STRENGTHS, min_length=1, description="values of scikit-learn's C; dev loss chooses"
    )

    def fit(self, problem: Problem) -> Outcome:
        """Fit one head for each penalty; the best on dev wins."""
        return fit_probe(problem, HardPrompt(problem.initial_ids), None, self)


@dataclass(eq=False)
class SentenceEncoder(OtherTask):
    """Another model that reads the texts: a sentence encoder. Its task has a template that fits it."""

    name: str = "encoder"


class EmbeddingProbe(LinearProbe):
    """A class head on the embeddings of a sentence encoder, which is another model than the backbone."""

    name: ClassVar[str] = "embedding-probe"

    encoder: str = Field(
        "demo:minilm", description="a sentence encoder: a demo model, a local folder, a GGUF file or a Hub name"
    )

    def fit(self, problem: Problem) -> Outcome:
        """Fit one head for each penalty; the best on dev wins."""
        device, offline = str(problem.backbone.device), problem.backbone.local_files_only
        encoder = load_backbone(self.encoder, HeadKind.SEQUENCE, device, offline)
        task = problem.task
        plain: Template = default_template(HeadKind.SEQUENCE, task.template.field_names)
        return fit_probe(problem, HardPrompt(()), SentenceEncoder(encoder, replace(task, template=plain)), self)


def fit_probe(problem: Problem, prompt: Prompt, reader: SentenceEncoder | None, options: LinearProbe) -> Outcome:
    """Fit a class head on frozen features for each penalty; the best on dev wins.

    Args:
        problem: the problem.
        prompt: what stands in the prompt slot.
        reader: what reads the texts; None for the problem's backbone.
        options: the penalties.
    """
    selection = Selection(problem)
    with problem.in_time():
        _fit_heads(problem, prompt, reader, options, selection)
    # A probe answers without the untuned prompt, which is shown next to it and ships only where the time ended first.
    return selection.outcome(untuned_prompt(problem, CalibrationKind.NONE)[0])


def _fit_heads(
    problem: Problem, prompt: Prompt, reader: SentenceEncoder | None, options: LinearProbe, selection: Selection
) -> None:
    """Fit the heads, and let them be seen."""
    train = _features(problem, prompt, reader, problem.train)
    dev = None if problem.dev is None else _features(problem, prompt, reader, problem.dev)
    for step, strength in enumerate(options.inverse_penalties):
        if step and problem.out_of_time():
            break
        head = scaled_head(problem.train, train, strength)
        candidate = Candidate(prompt.with_head(head), problem.objective.plain(), reader)
        seen = problem.train.scores(problem.objective.by_head(train, head)).mean
        held_out = None
        if problem.dev is not None and dev is not None:
            held_out = problem.dev.scores(problem.objective.by_head(dev, head)).mean
        selection.see(candidate, seen, TrainStep(options.name, step, len(options.inverse_penalties)), held_out)


def scaled_head(
    data: Labelled, features: Tensor, inverse_penalty: float, scale: FeatureScale = FeatureScale.PLAIN
) -> ClassHead:
    """Fit a class head to features divided by their root mean square, or of unit length.

    Args:
        data: the examples.
        features: `[B, d]` of them, or `[B, R, d]` of their words.
        inverse_penalty: scikit-learn's C.
        scale: what becomes of the features before.

    Raises:
        MethodError: the features are all zero, or a class has no example.
    """
    unit = float(data.golds.objective.each_read(features).square().mean().sqrt())
    if not unit > 0:
        raise MethodError("the features for a class head are all zero; use another model")
    head = data.fitted_head(features / unit, inverse_penalty, scale)
    if scale is FeatureScale.UNIT:
        return head
    return replace(head, weight=head.weight / unit)


@torch.no_grad()
def _features(problem: Problem, prompt: Prompt, reader: SentenceEncoder | None, data: Labelled) -> Tensor:
    with lent(reader, problem.backbone, data.context) as (own, context):
        return own.features(context, prompt).float()
