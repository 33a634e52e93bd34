"""Exported folders as the prompts that a server answers with: each is a graph of its own. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cuecraft.data import Record
from cuecraft.errors import BackboneError, ServeError
from cuecraft.runtime import ExportedModel, RuntimeOptions
from cuecraft.runtime.model import FoldedPrompt
from cuecraft.serve.registry import AnyShelf
from cuecraft.task import Example, Task


@dataclass(frozen=True, eq=False)
class ExportedMember:
    """A graph and its prompt.

    Args:
        backbone: the graph.
        ready: the prompt.
    """

    backbone: ExportedModel
    ready: FoldedPrompt


@dataclass(frozen=True, eq=False)
class ExportedPrompt:
    """A graph that is ready to answer.

    Args:
        name: its id.
        task: template and verbalizer.
        classes: `[C]` the classes as the user's data has them.
        version: the SHA-256 (hex) of the exported folder.
        members: the graph alone.
    """

    name: str
    task: Task
    classes: tuple[Any, ...]
    version: str
    members: tuple[ExportedMember, ...]

    @classmethod
    def of(cls, name: str, model: ExportedModel) -> ExportedPrompt:
        """Serve a graph that was loaded."""
        manifest = model.manifest
        member = ExportedMember(model, model.ready)
        task = model.ready.renderer.task
        return cls(name, task, tuple(manifest.task.classes), manifest.export_sha256, (member,))

    def example(self, fields: Mapping[str, str]) -> Example:
        """Return a text's fields as an example of the task; raises TemplateError where one is missing."""
        return self.task.examples([Record(fields)])[0]

    def probabilities(self, logits: Sequence[np.ndarray]) -> list[float]:
        """Return class probabilities `[C]`, given the graph's log-probabilities `[C]`.

        Raises:
            BackboneError: they are no numbers.
        """
        found = np.exp(logits[0])
        if not np.isfinite(found).all():
            raise BackboneError(f"prompt {self.name!r} answers with NaN; export it again, in fp32")
        shares: list[float] = found.tolist()
        return shares

    def describe(self) -> dict[str, Any]:
        """Return what a client may know of it, JSON-ready."""
        manifest = self.members[0].backbone.manifest
        return {
            "id": self.name,
            "version": self.version,
            "classes": list(self.classes),
            "fields": list(self.task.template.field_names),
            "template": self.task.template.source,
            "kind": manifest.format,
            "length": manifest.prompt_length,
            "method": manifest.precision,
            "members": 1,
            "metrics": {"agreement": manifest.agreement.labels},
        }


class ExportShelf(AnyShelf[ExportedPrompt]):
    """Exported folders that are ready to answer.

    Args:
        folders: id -> exported folder.
        options: where the graphs run.

    Raises:
        ExportError: a folder is damaged, or the runtime that it needs is not there.
        ServeError: an id is no id.
    """

    def __init__(self, folders: Mapping[str, Path], options: RuntimeOptions) -> None:
        super().__init__()
        for name, folder in folders.items():
            self.put(name, [ExportedModel.load(folder, options)])
        #: The first graph: all have the same budget of a batch.
        self.backbone = self.all()[0].members[0].backbone

    @property
    def model(self) -> str:
        """The names of the backbones."""
        return ", ".join(dict.fromkeys(own.members[0].backbone.name for own in self.all()))

    def check_uploads(self) -> None:
        """Raise ServeError: an exported folder is not uploaded."""
        raise ServeError("this server answers with exported folders, and takes no artifacts; start one over a backbone")

    def _made(self, name: str, artifacts: Sequence[ExportedModel]) -> ExportedPrompt:
        return ExportedPrompt.of(name, artifacts[0])
