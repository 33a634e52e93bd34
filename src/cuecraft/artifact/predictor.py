"""Predictors: tuned prompts over their backbones, ready to answer, alone or several together. Nothing here learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cuecraft.artifact import Artifact, Calibration, Prompt, load_artifact, member_folders
from cuecraft.artifact.words import WORDS_FRESH, word_decisions
from cuecraft.backbone import AnyBackbone, ReadyPrompt, load_backbone
from cuecraft.backbone.budget import same_width
from cuecraft.backbone.hooks import training
from cuecraft.backbone.weights import TunedWeights
from cuecraft.backbone.words import PromptTexts
from cuecraft.core.errors import ArtifactError, BackboneError, MethodError
from cuecraft.core.events import Answered, Event
from cuecraft.data.texts import Texts
from cuecraft.task import AnswerSpace, Decision, Example, Task
from cuecraft.task.answers import Values

FRESH = 1024  # examples read together where nothing is kept


def finite(logits: Tensor, backbone: AnyBackbone, answers: AnswerSpace | None = None) -> Tensor:
    """Return logits `[..., O]` as they are, or raise BackboneError where one is NaN or infinite.

    Minus infinity is none of the model's behind the options that a text brings in such an answer space.
    """
    padded = logits.isneginf() if answers is not None and not answers.size else False
    if not bool((logits.isfinite() | padded).all()):
        raise BackboneError(f"{backbone.name} answers with NaN or infinity; check its weights, dtype and device")
    return logits


@dataclass(frozen=True, eq=False)
class Member:
    """One prompt of several that answer together, or the only one.

    Args:
        backbone: what reads the texts: the backbone that it was made for, or a twin with tuned weights.
        task: template and answer space.
        prompt: the prompt.
        calibration: of its values.
        share: of its probabilities in the mean; those of all members add up to 1.
    """

    backbone: AnyBackbone
    task: Task
    prompt: Prompt
    calibration: Calibration
    share: float

    @cached_property
    def ready(self) -> ReadyPrompt:
        """The prompt as `mixed_logits` takes it."""
        return self.backbone.ready(self.prompt, self.task)

    def ready_for(self, example: Example) -> ReadyPrompt:
        """Return the prompt as `mixed_logits` takes it for one text, which may bring options of its own."""
        return self.backbone.ready_for(self.ready, example)


def as_array(values: Sequence[Any]) -> np.ndarray:
    """Return answers `[N]`; lists are one value each."""
    if not any(isinstance(value, list | tuple | dict) for value in values):
        return np.array(values)
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


class Predictor:
    """Prompts that answer together, or one alone: a text's probabilities are the mean of theirs.

    Prompt ensembling: Lester et al., EMNLP 2021, section 6. Averaging over seeds takes out most of what is luck of a
    seed (Lakshminarayanan et al., NeurIPS 2017, arXiv 1612.01474).

    Args:
        members: the prompts, of answer spaces with the same options.
        backbone: that they were made for.
    """

    def __init__(self, members: Sequence[Member], backbone: AnyBackbone) -> None:
        self.members = tuple(members)
        self.backbone = backbone

    @classmethod
    @training()
    def of(cls, artifact: Artifact, backbone: AnyBackbone, weights: TunedWeights | None = None) -> Predictor:
        """Return what answers with an artifact.

        Args:
            artifact: the tuned prompt, or several that answer together.
            backbone: that it was made for.
            weights: its tuned weights on the backbone; None to put the stored ones there.

        Raises:
            ArtifactError: another backbone than it was made for, or parts for different numbers of options.
            BackboneError: tuned weights of another backbone.
        """
        artifact.check_sizes("the prompt")
        artifact.check_backbone(backbone)
        weights = weights or artifact.reader(backbone)
        own, share = backbone if weights is None else weights.held(), 1 / len(artifact.prompts)
        pairs = zip(artifact.prompts, artifact.calibrations, strict=True)
        members = [Member(own, artifact.task, prompt, calibration, share) for prompt, calibration in pairs]
        return Predictor(members, backbone)

    @classmethod
    def together(cls, predictors: Sequence[Predictor]) -> Predictor:
        """Return what answers with the mean of several; each counts alike.

        Raises:
            ArtifactError: they answer with other classes, or are of several kinds.
        """
        first, count = predictors[0], len(predictors)
        for other in predictors[1:]:
            kinds = [own.task.answers.kind for own in (other, first)]
            if kinds[0] != kinds[1]:
                raise ArtifactError(f"answers of kinds {' and '.join(kinds)} cannot be averaged; give one kind")
            if other.classes_.tolist() != first.classes_.tolist():
                theirs, own = (", ".join(map(str, one.classes_.tolist())) for one in (other, first))
                raise ArtifactError(f"prompts of other classes cannot be averaged: {own} and {theirs}")
        members = [replace(own, share=own.share / count) for one in predictors for own in one.members]
        return Predictor(members, first.backbone)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model: Any = None,
        device: str = "auto",
        local_files_only: bool = False,
        dtype: str = "auto",
    ) -> Predictor:
        """Read an artifact, or all that `tune --seeds` wrote into a folder; arguments as for `PromptClassifier.load`.

        Raises:
            ArtifactError: no artifact, a damaged one, or one made for another backbone.
            BackboneError: there is no such model.
        """
        folders = member_folders(folder) or [Path(folder)]
        where = {"device": device, "local_files_only": local_files_only, "dtype": dtype}
        artifact, backbone, _ = with_backbone(folders[0], model, where)
        artifacts = [artifact, *map(load_artifact, folders[1:])]
        return cls.together([cls.of(own, backbone) for own in artifacts])

    @property
    def task(self) -> Task:
        """Template and answer space; those of the first member where they have templates of their own."""
        return self.members[0].task

    @property
    def answers(self) -> AnswerSpace:
        """The answer space of the first member, with the mean of what members' decisions take from held-out answers."""
        first, *others = (member.task.answers for member in self.members)
        return first.joined(others)

    @property
    def classes_(self) -> np.ndarray:
        """The options that all texts share, `[O]`, as the user's data has them."""
        return np.array(self.task.answers.classes)

    @torch.no_grad()
    def probabilities(
        self, examples: Sequence[Example], report: Callable[[Event], None] = lambda event: None
    ) -> Values:
        """Return the mean probabilities `[B, O]` of texts that are read once for all members of one template.

        Args:
            examples: the texts.
            report: the progress callback.

        Raises:
            BackboneError: the model answers with NaN or infinity.
            MethodError: any word may be the answer.
        """
        if self.task.answers.is_open:
            raise MethodError("any word may be the answer, so there are no options with probabilities; ask for answers")
        together: dict[tuple[int, Task], list[Member]] = {}
        for member in self.members:
            together.setdefault((id(member.backbone), member.task.undecided), []).append(member)
        read: dict[int, list[Tensor]] = {id(member): [] for member in self.members}
        for start in range(0, len(examples), FRESH):
            chunk = examples[start : start + FRESH]
            for (_, task), own in together.items():
                backbone = own[0].backbone
                context = backbone.context(chunk, task, keep_bytes=0)
                logits = backbone.class_logits_many(context, [member.prompt for member in own])
                for member, part in zip(own, logits, strict=True):
                    read[id(member)].append(part)
            report(Answered(step=start + len(chunk), total=len(examples), padding=context.padding))
        return self.mixed([torch.cat(same_width(read[id(member)])) for member in self.members])

    def mixed(self, logits: Sequence[Tensor]) -> Values:
        """Return the mean probabilities `[..., O]`, given the logits `[..., O]` of each member.

        Raises:
            BackboneError: a logit is NaN or infinite.
        """
        found: Values = 0.0  # type: ignore[assignment]  # until the first member's are added
        for member, own in zip(self.members, logits, strict=True):
            answers = member.task.answers
            values = finite(member.calibration.apply(own.double().cpu()), member.backbone, answers)
            found = found + member.share * answers.probabilities(values.numpy())
        return found

    def decide(
        self, examples: Sequence[Example], report: Callable[[Event], None] = lambda event: None
    ) -> list[Decision]:
        """Return the answers `[B]` to texts; arguments and errors as for `probabilities`."""
        if self.task.answers.is_open:
            return self._words(examples, report)
        return self.answers.decide(self.probabilities(examples, report), examples) if examples else []

    def _words(self, examples: Sequence[Example], report: Callable[[Event], None]) -> list[Decision]:
        """Return the likeliest words for texts, a few of which are read at a time: each takes a whole vocabulary."""
        found: list[Decision] = []
        while len(found) < len(examples):
            chunk = examples[len(found) : len(found) + WORDS_FRESH]
            contexts = {(id(own.backbone), own.task): own.backbone.context(chunk, own.task) for own in self.members}
            asked = [
                PromptTexts(own.backbone, own.prompt, contexts[id(own.backbone), own.task], own.share)
                for own in self.members
            ]
            found += word_decisions(asked)
            report(Answered(step=len(found), total=len(examples), padding=asked[0].context.padding))
        return found

    def examples(self, texts: Texts) -> list[Example]:
        """Return texts as examples: strings, or mappings from field to string."""
        return self.task.examples(self.task.records(texts))

    def predict_proba(self, texts: Texts, report: Callable[[Event], None] = lambda event: None) -> Values:
        """Return probabilities `[N, O]` of texts, for labels in the order of `classes_`; `report` as above."""
        return self.probabilities(self.examples(texts), report)

    def predict(self, texts: Texts) -> np.ndarray:
        """Return the answer to each text `[N]`."""
        return as_array([own.value for own in self.decide(self.examples(texts))])

    def truncated(self, texts: Texts) -> np.ndarray:
        """Return for each text `[N]` whether it is cut at its end to fit, in front of some member at least.

        Texts are tokenised and not read.
        """
        return np.array(self.cuts(self.examples(texts)))

    def cuts(self, examples: Sequence[Example]) -> list[bool]:
        """Return for each text `[B]` whether it is cut, as `truncated` does."""
        renderers = {(id(own.backbone), own.task): own.backbone.renderer(own.task) for own in self.members}
        found: list[bool] = np.any([own.cuts(examples) for own in renderers.values()], axis=0).tolist()
        return found


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


class Answering(Protocol):
    """What has a predictor: a fitted `PromptClassifier`."""

    predictor_: Predictor


class PromptEnsemble(Predictor):
    """Several prompts for one task over one backbone; a text's probabilities are the mean of theirs.

    Args:
        members: fitted classifiers, or predictors, of the same classes over the same backbone.

    Raises:
        ArtifactError: no members, or of other classes.
    """

    def __init__(self, members: Sequence[Answering | Predictor]) -> None:
        if not members:
            raise ArtifactError("an ensemble needs at least one prompt; give one")
        first, *others = predictors = [own if isinstance(own, Predictor) else own.predictor_ for own in members]
        for other in others:
            if other.backbone.fingerprint() != first.backbone.fingerprint():
                raise ArtifactError("prompts over several backbones cannot be averaged; load them over one")
        super().__init__(Predictor.together(predictors).members, first.backbone)
        self._given = list(members)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what a pickle holds: the members, which hold the names of their backbones."""
        return type(self), (self._given,)

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
        if not member_folders(folder):
            raise ArtifactError(f"{folder}: holds no artifacts seed-0, seed-1, ...; check the path")
        return cls([Predictor.load(folder, model, device, local_files_only, dtype)])
