"""The prompts that a server answers with: put, swapped and dropped by id while it runs."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cuecraft.backbone import AnyBackbone, ReadyPrompt
from cuecraft.data import Record
from cuecraft.errors import ArtifactError, ServeError, UnknownPromptError
from cuecraft.prompts import AnyPrompt, Artifact, Calibration
from cuecraft.prompts.manifest import Manifest, digest
from cuecraft.task import Example, Task

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_id(name: str) -> None:
    """Raise ServeError where a prompt cannot have an id."""
    if not _ID.fullmatch(name):
        shown = name[:80]
        raise ServeError(f"prompt id {shown!r} cannot be one; use letters, digits, dot, dash, underscore, 64 at most")


@dataclass(frozen=True, eq=False)
class Member:
    """One prompt of an ensemble, or the only one.

    Args:
        backbone: what reads the texts: the served backbone, or a twin with tuned weights.
        ready: the prompt, as `backbone` takes it.
        calibration: of its logits.
        prompt: the prompt itself.
    """

    backbone: AnyBackbone
    ready: ReadyPrompt
    calibration: Calibration
    prompt: AnyPrompt


@dataclass(frozen=True, eq=False)
class ServedPrompt:
    """A tuned prompt, or an ensemble of several for one task, ready to answer.

    Args:
        name: its id.
        task: template and verbalizer.
        classes: `[C]` the classes as the user's data has them.
        members: the prompts whose probabilities are averaged; one, unless it is an ensemble.
        manifest: of the artifact, or of the first member's.
        version: the SHA-256 (hex) of the artifact, of all of them in an ensemble; any name where it was never written.
    """

    name: str
    task: Task
    classes: tuple[Any, ...]
    members: tuple[Member, ...]
    manifest: Manifest
    version: str

    @classmethod
    def of(cls, name: str, artifacts: Sequence[Artifact], backbone: AnyBackbone) -> ServedPrompt:
        """Make artifacts ready to answer over a backbone; several are an ensemble.

        Raises:
            ArtifactError: none, or of several tasks, or made for another backbone.
            CuecraftError: a prompt, or its tuned weights, does not fit the backbone.
        """
        if not artifacts:
            raise ArtifactError(f"prompt {name!r} has no artifact; give one")
        first = artifacts[0]
        members = []
        for artifact in artifacts:
            if artifact.task != first.task or artifact.classes != first.classes:
                raise ArtifactError(f"prompt {name!r}: an ensemble needs one template and one set of classes for all")
            artifact.check_backbone(backbone)
            reader = artifact.reader(backbone)
            own = backbone if reader is None else reader.held()
            ready = own.ready(artifact.prompt, artifact.task)
            members.append(Member(own, ready, artifact.calibration, artifact.prompt))
        # One that was never written has no hash; its answers must not be taken for another's.
        hashes = [artifact.manifest.artifact_sha256 or uuid.uuid4().hex for artifact in artifacts]
        version = hashes[0] if len(hashes) == 1 else digest({"members": hashes})
        return cls(name, first.task, first.classes, tuple(members), first.manifest, version)

    def example(self, fields: Mapping[str, str]) -> Example:
        """Return a text's fields as an example of the task.

        Raises:
            TemplateError: a field that the template names is missing.
        """
        return self.task.examples([Record(fields)])[0]

    def probabilities(self, logits: Sequence[Tensor]) -> list[float]:
        """Return class probabilities `[C]`, given class logits `[C]` of each member."""
        parts = [
            member.calibration.apply(own).double().softmax(-1) for member, own in zip(self.members, logits, strict=True)
        ]
        found: list[float] = torch.stack(parts).mean(0).tolist()
        return found

    def describe(self) -> dict[str, Any]:
        """Return what a client may know of it, JSON-ready."""
        manifest = self.manifest
        return {
            "id": self.name,
            "version": self.version,
            "classes": list(self.classes),
            "fields": list(self.task.template.field_names),
            "template": self.task.template.source,
            "kind": manifest.weights.kind if manifest.weights else manifest.prompt.kind,
            "length": manifest.prompt.length,
            "method": manifest.method,
            "members": len(self.members),
            "metrics": dict(manifest.metrics),
        }


class Shelf:
    """Prompts over one backbone, by id.

    What is being answered with a prompt that is swapped or dropped is answered with it to the end.

    Args:
        backbone: the frozen model that all of them were made for.
        most: how many there may be.
    """

    def __init__(self, backbone: AnyBackbone, most: int = 1024) -> None:
        self.backbone = backbone
        self._most = most
        self._prompts: dict[str, ServedPrompt] = {}
        self._lock = threading.Lock()

    def put(self, name: str, artifacts: Sequence[Artifact]) -> ServedPrompt:
        """Add a prompt, or swap the one of that id for it; several artifacts are an ensemble.

        Raises:
            ServeError: the id is no id, or there are too many prompts.
            CuecraftError: as `ServedPrompt.of`; then nothing has changed.
        """
        check_id(name)
        made = ServedPrompt.of(name, artifacts, self.backbone)
        with self._lock:
            if name not in self._prompts and len(self._prompts) >= self._most:
                raise ServeError(f"there are {self._most} prompts already, which is the limit; drop one first")
            self._prompts = {**self._prompts, name: made}
        return made

    def drop(self, name: str) -> None:
        """Remove a prompt.

        Raises:
            UnknownPromptError: there is none of that id.
        """
        with self._lock:
            self.get(name)
            self._prompts = {key: prompt for key, prompt in self._prompts.items() if key != name}

    def get(self, name: str) -> ServedPrompt:
        """Return a prompt.

        Raises:
            UnknownPromptError: there is none of that id.
        """
        found = self._prompts.get(name)
        if found is None:
            raise UnknownPromptError(
                f"there is no prompt {name[:64]!r}; there are {', '.join(self._prompts) or 'none'}"
            )
        return found

    def all(self) -> list[ServedPrompt]:
        """Return all of them, in the order they were put."""
        return list(self._prompts.values())
