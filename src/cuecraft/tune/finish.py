"""From an outcome to an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuecraft.method import Method, Outcome, Problem, score
from cuecraft.prompts import Artifact


def make_artifact(
    problem: Problem,
    outcome: Outcome,
    method: Method,
    classes: Mapping[str, Any] | None = None,
) -> Artifact:
    """Gather an outcome into an artifact, with its accuracy on the problem's own splits."""
    parts = {"train": problem.train} | ({"dev": problem.dev} if problem.dev else {})
    metrics = {f"{name}_accuracy": score(problem.backbone, outcome.best, part).accuracy for name, part in parts.items()}
    labels = problem.task.verbalizer.labels
    return Artifact.create(
        outcome.best.prompt,
        outcome.best.calibration,
        problem.task,
        problem.backbone,
        method=method.name,
        method_options=method.model_dump(mode="json"),
        seed=problem.seed,
        metrics=metrics,
        data=problem.data,
        classes=[classes[label] for label in labels] if classes else None,
        words=outcome.words.prompt.text(problem.backbone.tokenizer) if outcome.words else None,
        trace=outcome.trace,
    )
