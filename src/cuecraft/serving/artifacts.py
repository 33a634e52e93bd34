"""Artifacts as the prompts that a server answers with, over one backbone or others' replicas."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cuecraft.artifact import Artifact
from cuecraft.artifact.manifest import BackboneEntry, Manifest
from cuecraft.artifact.predictor import Member, Predictor
from cuecraft.backbone import AnyBackbone
from cuecraft.core.environment import set_threads
from cuecraft.core.errors import ArtifactError
from cuecraft.core.storage import digest
from cuecraft.serving.registry import AnyShelf, PromptRegistry, described, example_of
from cuecraft.task import Decision, Example, Task


@dataclass(frozen=True, eq=False)
class ListedPrompt:
    """What is known of a tuned prompt, or of an ensemble of several for one task, without its backbone.

    Args:
        name: its id.
        task: template and answer space.
        manifest: of the artifact, or of the first of an ensemble.
        version: the SHA-256 (hex) of the artifact, of all of them in an ensemble; any name where it was never written.
        count: of the prompts whose probabilities are averaged.
    """

    name: str
    task: Task
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
        if any(own.task.undecided != first.task.undecided for own in artifacts):
            raise ArtifactError(
                f"prompt {name!r}: an ensemble needs one template, the same examples in it and one "
                "set of classes for all"
            )
        for artifact in artifacts:
            artifact.check_sizes(f"prompt {name!r}")
        # One that was never written has no hash; its answers must not be taken for another's.
        hashes = [artifact.manifest.artifact_sha256 or uuid.uuid4().hex for artifact in artifacts]
        version = hashes[0] if len(hashes) == 1 else digest({"members": hashes})
        count = sum(len(artifact.prompts) for artifact in artifacts)
        return ListedPrompt(name, first.task, first.manifest, version, count)

    def example(self, fields: Mapping[str, Any]) -> Example:
        """Return a text's fields, and the options that it brings, as an example of the task.

        Raises:
            TemplateError: a field that the template names is missing.
            DataError: options are missing, or cannot be chosen among.
        """
        return example_of(self.task, fields)

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
        predictor: the prompts whose probabilities are averaged.
    """

    predictor: Predictor

    @classmethod
    def over(cls, backbone: AnyBackbone, name: str, artifacts: Sequence[Artifact]) -> ServedPrompt:
        """Make artifacts ready to answer over a backbone; several are an ensemble.

        Raises:
            ArtifactError: none, or of several tasks, or made for another backbone.
            CuecraftError: a prompt, or its tuned weights, does not fit the backbone.
        """
        listed = ListedPrompt.of(name, artifacts)
        predictor = Predictor.together([Predictor.of(artifact, backbone) for artifact in artifacts])
        for member in predictor.members:
            assert member.ready  # made here, not while a text waits
        return cls(**vars(listed), predictor=predictor)

    @property
    def members(self) -> tuple[Member, ...]:
        """The prompts that answer."""
        return self.predictor.members

    def decided(self, logits: Sequence[Tensor], example: Example) -> Decision:
        """Return the answer to a text, given logits `[O]` of each member."""
        (found,) = self.predictor.answers.decide(self.predictor.mixed(logits)[None], [example])
        return found

    def searched(self, examples: Sequence[Example]) -> list[Decision]:
        """Return the answers to texts where any word may be one."""
        return self.predictor.decide(examples)


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
        set_threads(count)

    def _made(self, name: str, artifacts: Sequence[Artifact]) -> ServedPrompt:
        return ServedPrompt.over(self.backbone, name, artifacts)


class Listing(PromptRegistry[ListedPrompt]):
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
