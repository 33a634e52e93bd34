"""Answers of tuned prompts: class probabilities of texts, by one prompt or by several together. Nothing here learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cuecraft.artifact import AnyPrompt, Artifact, CalibratedPrompt, Calibration, load_artifact, member_folders
from cuecraft.backbone import AnyBackbone, Context, load_backbone
from cuecraft.backbone.hooks import training
from cuecraft.core.errors import ArtifactError, BackboneError
from cuecraft.core.events import Answered, Event
from cuecraft.data.texts import Texts, as_records
from cuecraft.task import Example, Task

_FRESH = 1024  # examples read together where nothing is kept


class Reader(Protocol):
    """A backbone of a candidate's own: other weights, or another model."""

    backbone: AnyBackbone
    name: str

    @property
    def size(self) -> int:
        """Numbers that were trained."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Return what an artifact has to store of it."""
        ...

    def over(self, context: Context) -> AbstractContextManager[tuple[AnyBackbone, Context]]:
        """Lend the backbone, ready to use, and its own context of the same examples."""
        ...


def lent(
    reader: Reader | None, backbone: AnyBackbone, context: Context
) -> AbstractContextManager[tuple[AnyBackbone, Context]]:
    """Lend what reads the texts of a candidate: its own reader, or the problem's backbone where it has none."""
    return nullcontext((backbone, context)) if reader is None else reader.over(context)


@dataclass(frozen=True)
class Candidate:
    """A prompt together with the calibration of its logits; or several such that answer together.

    Args:
        prompt: the prompt.
        calibration: of its logits.
        reader: what reads the texts in place of the problem's backbone; None for that backbone.
        others: further prompts, each with its calibration, whose probabilities are averaged with its own (prompt
            ensembling, Lester et al., EMNLP 2021, section 6). A text is read once for all of them where the backbone
            can: a causal model, with the prompts behind the text and neither prefixes nor class heads of their own.
        is_cut: whether the time limit ended before it was calibrated, or its class head fitted to all examples.
    """

    prompt: AnyPrompt
    calibration: Calibration
    reader: Reader | None = None
    others: tuple[CalibratedPrompt, ...] = ()
    is_cut: bool = False

    @property
    def prompts(self) -> tuple[AnyPrompt, ...]:
        """All prompts that answer, one or several."""
        return (self.prompt, *(other.prompt for other in self.others))

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        """The calibration of each prompt, in the order of `prompts`."""
        return (self.calibration, *(other.calibration for other in self.others))

    def then(self, calibration: Calibration) -> Candidate:
        """Return the candidate with one more calibration after each prompt's own."""
        others = tuple(replace(other, calibration=other.calibration.then(calibration)) for other in self.others)
        return replace(self, calibration=self.calibration.then(calibration), others=others)

    def joined_by(self, others: Sequence[Candidate]) -> Candidate:
        """Return the candidate whose prompts answer together with those of others, each with its own calibration."""
        pairs = [pair for one in others for pair in zip(one.prompts, one.calibrations, strict=True)]
        return replace(self, others=(*self.others, *(CalibratedPrompt(prompt, own) for prompt, own in pairs)))

    def logits(self, backbone: AnyBackbone, context: Context) -> Tensor:
        """Return calibrated class logits `[B, C]`; of several prompts, logarithms of their mean probabilities."""
        with lent(self.reader, backbone, context) as (own, context):
            return self.joined(own.class_logits_many(context, self.prompts))

    def joined(self, logits: Tensor) -> Tensor:
        """Return calibrated class logits `[B, C]`, given the class logits `[T, B, C]` of its prompts."""
        pairs = zip(self.calibrations, logits, strict=True)
        calibrated = torch.stack([calibration.apply(own) for calibration, own in pairs])
        if len(calibrated) == 1:
            return calibrated[0]
        return calibrated.log_softmax(-1).logsumexp(0) - math.log(len(calibrated))


def finite(logits: Tensor, backbone: AnyBackbone) -> Tensor:
    """Return logits as they are, or raise BackboneError where one is NaN or infinite."""
    if not bool(logits.isfinite().all()):
        raise BackboneError(f"{backbone.name} answers with NaN or infinity; check its weights, dtype and device")
    return logits


@torch.no_grad()
def fresh_logits(
    backbone: AnyBackbone,
    task: Task,
    candidates: Sequence[Candidate],
    examples: Sequence[Example],
    report: Callable[[Event], None] = lambda event: None,
) -> Tensor:
    """Return calibrated logits `[T, B, C]` of several prompts on examples that are read once and not kept.

    Raises:
        BackboneError: the model answers with NaN or infinity.
    """
    parts = []
    together: dict[int, list[int]] = {}  # those that one reader reads
    for n, candidate in enumerate(candidates):
        together.setdefault(id(candidate.reader), []).append(n)
    for start in range(0, len(examples), _FRESH):
        context = backbone.context(examples[start : start + _FRESH], task, keep_bytes=0)
        found: dict[int, Tensor] = {}
        for rows in together.values():
            prompts = [prompt for n in rows for prompt in candidates[n].prompts]
            with lent(candidates[rows[0]].reader, backbone, context) as (own, texts):
                logits = own.class_logits_many(texts, prompts).split([len(candidates[n].prompts) for n in rows])
            found |= {n: candidates[n].joined(part) for n, part in zip(rows, logits, strict=True)}
        parts.append(torch.stack([found[n] for n in range(len(candidates))]))
        done = start + len(context)
        report(Answered(step=done, total=len(examples), padding=context.padding))
    return finite(torch.cat(parts, dim=1), backbone)


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


class PromptEnsemble:
    """Several prompts for one task over one backbone; a text's probabilities are the mean of theirs.

    Averaging over seeds takes out most of what is luck of a seed (Lakshminarayanan et al., NeurIPS 2017,
    arXiv 1612.01474). Texts are read once for all members that have the same template and label words.

    Args:
        members: fitted classifiers, or tuned prompts, of the same classes over the same backbone.

    Raises:
        ArtifactError: no members, or of other classes.
    """

    def __init__(self, members: Sequence[Answering]) -> None:
        if not members:
            raise ArtifactError("an ensemble needs at least one prompt; give one")
        first = members[0]
        for member in members[1:]:
            if member.classes_.tolist() != first.classes_.tolist():
                theirs, own = (", ".join(map(str, one.classes_.tolist())) for one in (member, first))
                raise ArtifactError(f"prompts of other classes cannot be averaged: {own} and {theirs}")
            if member.backbone_ is not first.backbone_:
                raise ArtifactError("prompts over several backbones cannot be averaged; load them over one")
        self.members = list(members)
        self.classes_ = first.classes_

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model: Any = None,
        device: str = "auto",
        local_files_only: bool = False,
        dtype: str = "auto",
    ) -> PromptEnsemble:
        """Read the artifacts that `tune --seeds` wrote into a folder; arguments as for `PromptClassifier.load`.

        Raises:
            ArtifactError: there is none, or one is damaged, or made for another backbone.
        """
        folders = member_folders(folder)
        if not folders:
            raise ArtifactError(f"{folder}: holds no artifacts seed-0, seed-1, ...; check the path")
        first = TunedPrompt.load(folders[0], model, device, local_files_only, dtype)
        others = [TunedPrompt(load_artifact(path), first.backbone_) for path in folders[1:]]
        return cls([first, *others])

    def predict_proba(self, texts: Texts, report: Callable[[Event], None] = lambda event: None) -> np.ndarray:
        """Return class probabilities `[N, C]`, columns as in `classes_`: the mean of the members'."""
        texts = list(texts) if isinstance(texts, Iterator) else texts  # each group reads them
        groups: dict[Task, list[Answering]] = {}
        for member in self.members:
            groups.setdefault(member.task_, []).append(member)
        parts = [
            class_probabilities(own[0].backbone_, task, [member.candidate_ for member in own], texts, report)
            for task, own in groups.items()
        ]
        mean: np.ndarray = np.concatenate(parts).mean(0)
        return mean

    def truncated(self, texts: Texts) -> np.ndarray:
        """Return for each text `[N]` whether it is cut at its end to fit, in front of some member at least."""
        texts = list(texts) if isinstance(texts, Iterator) else texts
        found: np.ndarray = np.any([member.truncated(texts) for member in self.members], axis=0)
        return found

    def predict(self, texts: Texts) -> np.ndarray:
        """Return the likeliest class of each text `[N]`."""
        labels: np.ndarray = self.classes_[self.predict_proba(texts).argmax(1)]
        return labels
