"""Answers of tuned prompts: class probabilities of texts. Nothing here learns, or needs scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.backbone.gradient_mode import training
from cuecraft.data.texts import Texts, as_records
from cuecraft.method import Candidate, Event, fresh_logits
from cuecraft.prompts import Artifact, load_artifact
from cuecraft.task import Task


class Answering(Protocol):
    """What answers for one task over a backbone: a fitted `PromptClassifier`, or a `TunedPrompt`."""

    classes_: np.ndarray
    backbone_: AnyBackbone
    task_: Task
    candidate_: Candidate

    def truncated(self, texts: Texts) -> np.ndarray:
        """Return for each text `[N]` whether it is cut at its end to fit."""
        ...


def class_probabilities(
    backbone: AnyBackbone,
    task: Task,
    candidates: Sequence[Candidate],
    texts: Texts,
    report: Callable[[Event], None] = lambda event: None,
) -> np.ndarray:
    """Return class probabilities `[T, N, C]` of several prompts for one task, over one read of the texts.

    Args:
        backbone: that the prompts were made for.
        task: template and verbalizer.
        candidates: `[T]` prompts with their calibrations.
        texts: `[N]` strings, or mappings from field to string.
        report: progress callback.
    """
    examples = task.examples(as_records(texts, fields=task.template.field_names))
    logits = fresh_logits(backbone, task, candidates, examples, report)
    found: np.ndarray = logits.double().softmax(-1).cpu().numpy()
    return found


def truncated(backbone: AnyBackbone, task: Task, candidate: Candidate, texts: Texts) -> np.ndarray:
    """Return for each text `[N]` whether it is cut at its end to fit; it is tokenised and not read.

    Args:
        backbone: that the prompt was made for.
        task: as the model that reads the texts has it.
        candidate: the prompt, with what reads the texts in place of the backbone, where there is such.
        texts: `[N]` strings, or mappings from field to string.
    """
    examples = task.examples(as_records(texts, fields=task.template.field_names))
    reading = backbone if candidate.reader is None else candidate.reader.backbone
    return np.array(reading.renderer(task).cuts(examples), bool)


@training()
def stored_candidate(artifact: Artifact, backbone: AnyBackbone) -> Candidate:
    """Return the candidate that an artifact holds, over the backbone that it was made for.

    Raises:
        ArtifactError: another backbone than it was made for.
        BackboneError: tuned weights of another backbone.
    """
    artifact.check_backbone(backbone)
    return Candidate(artifact.prompt, artifact.calibration, artifact.reader(backbone), artifact.others)


def with_backbone(folder: str | Path, model: Any, where: Mapping[str, Any]) -> tuple[Artifact, AnyBackbone, Any]:
    """Return an artifact, its backbone, and what that is called now.

    Args:
        folder: of the artifact.
        model: where the backbone is now; None for the name it was tuned under.
        where: `device`, `local_files_only` and `dtype` of `load_backbone`.

    Raises:
        ArtifactError: no artifact, or a damaged one.
        BackboneError: there is no such model.
    """
    artifact = load_artifact(folder)
    made_for = artifact.manifest.backbone
    named = made_for.name if model is None else model
    return artifact, load_backbone(named, made_for.head, **where), named


class TunedPrompt:
    """An artifact over its backbone, ready to answer.

    Args:
        artifact: the tuned prompt.
        backbone: that it was made for.

    Raises:
        ArtifactError: another backbone than it was made for.
    """

    def __init__(self, artifact: Artifact, backbone: AnyBackbone) -> None:
        self.candidate_ = stored_candidate(artifact, backbone)
        self.backbone_, self.task_ = backbone, artifact.task
        self.classes_ = np.array(artifact.classes)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model: Any = None,
        device: str = "auto",
        local_files_only: bool = False,
        dtype: str = "auto",
    ) -> TunedPrompt:
        """Read an artifact; arguments and errors as for `PromptClassifier.load`."""
        where = {"device": device, "local_files_only": local_files_only, "dtype": dtype}
        artifact, backbone, _ = with_backbone(folder, model, where)
        return cls(artifact, backbone)

    def predict_proba(self, texts: Texts, report: Callable[[Event], None] = lambda event: None) -> np.ndarray:
        """Return class probabilities `[N, C]`, columns as in `classes_`; `report` gets the progress."""
        found: np.ndarray = class_probabilities(self.backbone_, self.task_, [self.candidate_], texts, report)[0]
        return found

    def truncated(self, texts: Texts) -> np.ndarray:
        """Return for each text `[N]` whether it is cut at its end to fit."""
        return truncated(self.backbone_, self.task_, self.candidate_, texts)
