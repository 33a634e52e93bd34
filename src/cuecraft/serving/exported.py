"""Exported folders as the prompts that a server answers with: graphs, each with one or several. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cuecraft.core.errors import BackboneError, ServeError
from cuecraft.export.runtime import ExportedModel, ExportManifest, RuntimeOptions
from cuecraft.export.runtime.manifest import GraphPrompt
from cuecraft.export.runtime.model import FoldedPrompt
from cuecraft.export.runtime.sessions import cores
from cuecraft.serving.registry import AnyShelf, described, example_of
from cuecraft.task import Decision, Example, Task


@dataclass(frozen=True, eq=False)
class ExportedMember:
    """A graph and a prompt of it.

    Args:
        backbone: the graph.
        ready: the prompt.
    """

    backbone: ExportedModel
    ready: FoldedPrompt

    def ready_for(self, example: Example) -> FoldedPrompt:
        """Return the prompt: an exported one has the same options for all texts."""
        return self.ready


@dataclass(frozen=True, eq=False)
class ListedExport:
    """What is known of an exported prompt without its graph.

    Args:
        name: its id.
        manifest: of the folder.
        entry: the prompt there.
    """

    name: str
    manifest: ExportManifest
    entry: GraphPrompt

    @classmethod
    def of(cls, name: str, manifest: ExportManifest) -> ListedExport:
        """Return what has an id in a folder; raises as `prompt_of`."""
        return cls(name, manifest, prompt_of(manifest, name))

    @cached_property
    def task(self) -> Task:
        """Template and answer space."""
        return self.entry.task.task()

    @property
    def version(self) -> str:
        """The SHA-256 (hex) of the exported folder."""
        return self.manifest.export_sha256

    def example(self, fields: Mapping[str, Any]) -> Example:
        """Return a text's fields as an example of the task; raises TemplateError where one is missing."""
        return example_of(self.task, fields)

    def describe(self) -> dict[str, Any]:
        """Return what a client may know of it, JSON-ready."""
        manifest = self.manifest
        return described(
            self,
            kind=manifest.format,
            length=self.entry.prompt_length,
            method=manifest.precision,
            members=1,
            metrics={"agreement": manifest.agreement.labels},
        )


@dataclass(frozen=True, eq=False)
class ExportedPrompt(ListedExport):
    """A prompt of a graph that is ready to answer.

    Args:
        members: the graph with this prompt, alone.
    """

    members: tuple[ExportedMember, ...] = ()

    def decided(self, logits: Sequence[np.ndarray], example: Example) -> Decision:
        """Return the answer to a text, given the graph's log-probabilities `[C]`.

        Raises:
            BackboneError: they are no numbers.
        """
        found = np.exp(logits[0])
        if not np.isfinite(found).all():
            raise BackboneError(f"prompt {self.name!r} answers with NaN; export it again, in fp32")
        (decision,) = self.task.answers.decide(found[None].astype(np.float64), [example])
        return decision

    def searched(self, examples: Sequence[Example]) -> list[Decision]:
        """Refuse: `export` makes no graph where any word may be the answer."""
        raise ServeError(f"prompt {self.name!r}: a graph answers with options alone; serve the artifact instead")


class ExportShelf(AnyShelf[ExportedPrompt]):
    """Exported folders that are ready to answer.

    Args:
        folders: id -> exported folder; of a folder with several prompts the id is the prompt's own name.
        options: where the graphs run.

    Raises:
        ExportError: a folder is damaged, or the runtime that it needs is not there.
        ServeError: an id is no id.
    """

    def __init__(self, folders: Mapping[str, Path], options: RuntimeOptions) -> None:
        super().__init__()
        self._folders, self._options = folders, options
        self._open()

    def _open(self) -> None:
        models = {folder: ExportedModel.load(folder, self._options) for folder in dict.fromkeys(self._folders.values())}
        for name, folder in self._folders.items():
            self.put(name, [models[folder]])
        #: The first graph: all have the same budget of a batch.
        self.backbone = self.all()[0].members[0].backbone

    def use_threads(self, count: int) -> None:
        """Run with so many threads: where these are others than now, the graphs are loaded again."""
        if count != (self._options.threads or cores()):
            self._options = self._options.model_copy(update={"threads": count})
            self._open()

    @property
    def model(self) -> str:
        """The names of the backbones."""
        return ", ".join(dict.fromkeys(own.members[0].backbone.name for own in self.all()))

    def check_uploads(self) -> None:
        """Raise ServeError: an exported folder is not uploaded."""
        raise ServeError("this server answers with exported folders, and takes no artifacts; start one over a backbone")

    def _made(self, name: str, artifacts: Sequence[ExportedModel]) -> ExportedPrompt:
        model = artifacts[0]
        entry = prompt_of(model.manifest, name)
        return ExportedPrompt(name, model.manifest, entry, (ExportedMember(model, model.prompts[entry.name]),))


def prompt_of(manifest: ExportManifest, name: str) -> GraphPrompt:
    """Return the prompt that has an id in an exported folder: any id where it holds one prompt, else its name.

    Raises:
        ExportError: it holds several, and none of that name.
    """
    return manifest.prompt(None if len(manifest.prompts) == 1 else name)
