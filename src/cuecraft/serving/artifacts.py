"""Artifacts as the prompts that a server answers with, over one backbone or others' replicas."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cuecraft.artifact import Artifact, Calibration
from cuecraft.artifact.manifest import BackboneEntry, Manifest
from cuecraft.backbone import AnyBackbone, ReadyPrompt
from cuecraft.core.errors import ArtifactError, BackboneError
from cuecraft.core.storage import digest
from cuecraft.data import Record
from cuecraft.serving.registry import AnyShelf, Prompts, described
from cuecraft.task import Example, Task


def _check_sizes(name: str, artifact: Artifact) -> None:
    """Raise ArtifactError where the parts of an artifact are not for one number of classes."""
    classes = artifact.task.verbalizer.num_classes
    heads = [prompt.head for prompt in artifact.prompts if prompt.head is not None]
    sizes = {
        len(artifact.classes),
        *(len(calibration.bias) for calibration in artifact.calibrations),
        *(len(part) for head in heads for part in (head.weight, head.bias)),
    }
    if sizes != {classes}:
        raise ArtifactError(f"prompt {name!r}: its parts are for different numbers of classes; tune it again")


@dataclass(frozen=True, eq=False)
class Member:
    """One prompt of several that answer together, or the only one.

    Args:
        backbone: what reads the texts: the served backbone, or a twin with tuned weights.
        ready: the prompt, as `backbone` takes it.
        calibration: of its logits.
        share: of its probabilities in the mean; those of all members add up to 1.
    """

    backbone: AnyBackbone
    ready: ReadyPrompt
    calibration: Calibration
    share: float


@dataclass(frozen=True, eq=False)
class ListedPrompt:
    """What is known of a tuned prompt, or of an ensemble of several for one task, without its backbone.

    Args:
        name: its id.
        task: template and verbalizer.
        classes: `[C]` the classes as the user's data has them.
        manifest: of the artifact, or of the first of an ensemble.
        version: the SHA-256 (hex) of the artifact, of all of them in an ensemble; any name where it was never written.
        count: of the prompts whose probabilities are averaged.
    """

    name: str
    task: Task
    classes: tuple[Any, ...]
    manifest: Manifest
    version: str
    count: int

    @classmethod
    def of(cls, name: str, artifacts: Sequence[Artifact]) -> ListedPrompt:
        """List artifacts; several are an ensemble, and so is one of several prompts.

        Raises:
            ArtifactError: none, or of several tasks.
        """
        if not artifacts:
            raise ArtifactError(f"prompt {name!r} has no artifact; give one")
        first = artifacts[0]
        if any((own.task, own.classes) != (first.task, first.classes) for own in artifacts):
            raise ArtifactError(
                f"prompt {name!r}: an ensemble needs one template, the same examples in it and one "
                "set of classes for all"
            )
        for artifact in artifacts:
            _check_sizes(name, artifact)
        # One that was never written has no hash; its answers must not be taken for another's.
        hashes = [artifact.manifest.artifact_sha256 or uuid.uuid4().hex for artifact in artifacts]
        version = hashes[0] if len(hashes) == 1 else digest({"members": hashes})
        count = sum(len(artifact.prompts) for artifact in artifacts)
        return ListedPrompt(name, first.task, first.classes, first.manifest, version, count)

    def example(self, fields: Mapping[str, str]) -> Example:
        """Return a text's fields as an example of the task.

        Raises:
            TemplateError: a field that the template names is missing.
        """
        return self.task.examples([Record(fields)])[0]

    def describe(self) -> dict[str, Any]:
        """Return what a client may know of it, JSON-ready."""
        manifest = self.manifest
        return described(
            self,
            kind=manifest.weights.kind if manifest.weights else manifest.prompt.kind,
            length=manifest.prompt.length,
            method=manifest.method,
            members=self.count,
            metrics=dict(manifest.metrics),
        )


@dataclass(frozen=True, eq=False)
class ServedPrompt(ListedPrompt):
    """A prompt that is ready to answer.

    Args:
        members: the prompts whose probabilities are averaged; one, unless several answer together.
    """

    members: tuple[Member, ...] = ()

    @classmethod
    def over(cls, backbone: AnyBackbone, name: str, artifacts: Sequence[Artifact]) -> ServedPrompt:
        """Make artifacts ready to answer over a backbone; several are an ensemble.

        Raises:
            ArtifactError: none, or of several tasks, or made for another backbone.
            CuecraftError: a prompt, or its tuned weights, does not fit the backbone.
        """
        listed = ListedPrompt.of(name, artifacts)
        members = []
        for artifact in artifacts:
            artifact.check_backbone(backbone)
            reader = artifact.reader(backbone)
            own = backbone if reader is None else reader.held()
            share = 1 / (len(artifacts) * len(artifact.prompts))
            for prompt, calibration in zip(artifact.prompts, artifact.calibrations, strict=True):
                members.append(Member(own, own.ready(prompt, artifact.task), calibration, share))
        return cls(**vars(listed), members=tuple(members))

    def probabilities(self, logits: Sequence[Tensor]) -> list[float]:
        """Return class probabilities `[C]`, given class logits `[C]` of each member."""
        pairs = zip(self.members, logits, strict=True)
        calibrated = torch.stack([member.calibration.apply(own.double().cpu()) for member, own in pairs])
        if not bool(calibrated.isfinite().all()):
            raise BackboneError(
                f"prompt {self.name!r} answers with NaN or infinity; check it, the weights and the dtype"
            )
        shares = torch.tensor([[member.share] for member in self.members], dtype=torch.float64)
        found: list[float] = (shares * calibrated.softmax(-1)).sum(0).tolist()
        return found


class Shelf(AnyShelf[ServedPrompt]):
    """Prompts that are ready to answer, over one backbone.

    Args:
        backbone: the frozen model that all of them were made for.
        most: how many there may be.
    """

    def __init__(self, backbone: AnyBackbone, most: int = 1024) -> None:
        super().__init__(most)
        self.backbone = backbone

    @property
    def model(self) -> str:
        """The name of the backbone."""
        return str(self.backbone.name)

    def use_threads(self, count: int) -> None:
        """Let each pass use so many threads of the processor."""
        torch.set_num_threads(count)

    def _made(self, name: str, artifacts: Sequence[Artifact]) -> ServedPrompt:
        return ServedPrompt.over(self.backbone, name, artifacts)


class Listing(Prompts[ListedPrompt]):
    """Prompts that others answer with.

    Args:
        made_for: the backbone of all of them.
        most: how many there may be.
    """

    def __init__(self, made_for: BackboneEntry, most: int = 1024) -> None:
        super().__init__(most)
        self._made_for = made_for

    @property
    def model(self) -> str:
        """The name of the backbone."""
        return self._made_for.name

    @property
    def is_remote(self) -> bool:
        """Whether others answer, who would not learn of a change."""
        return True

    def _made(self, name: str, artifacts: Sequence[Artifact]) -> ListedPrompt:
        own = artifacts[0].manifest.backbone if artifacts else self._made_for
        if (own.sha256, own.head) != (self._made_for.sha256, self._made_for.head):
            raise ArtifactError(f"the prompt was made for {own.name}, but {self.model} is served; use its prompts")
        return ListedPrompt.of(name, artifacts)
