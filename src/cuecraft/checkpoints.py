"""The state of unfinished training on disk, so that a run that was killed goes on where it stood."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cuecraft.assets import write_folder
from cuecraft.errors import MethodError

_DOCUMENT, _TENSORS = "state.json", "state.safetensors"


class Checkpoints:
    """A folder with the states of one run's trainings.

    Args:
        folder: where they are kept; made when the first state is saved.
        key: hash of all that the run depends on; states of another key are refused.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._key = key
        self._count = 0

    def within(self, name: str) -> Checkpoints:
        """Return a folder of their own for some trainings, which may be taken in another order, or not at all."""
        return Checkpoints(self._folder / name, self._key)

    def slot(self, name: str) -> Slot:
        """Return the place of the run's next training; a run takes its trainings in the same order each time."""
        self._count += 1
        for left in self._folder.glob(f".{self._count:02d}-{name}-*"):  # of a run that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        return Slot(self._folder / f"{self._count:02d}-{name}", self._key)


class Slot:
    """The state of one training: a JSON document and tensors, replaced as a whole."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._key = key

    def save(self, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write the state, in one step.

        Raises:
            MethodError: it cannot be written.
        """

        def fill(folder: Path) -> None:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / _TENSORS)
            (folder / _DOCUMENT).write_text(json.dumps({**document, "key": self._key}), encoding="utf-8")

        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            write_folder(self._folder, fill)
        except (OSError, SafetensorError) as error:
            raise MethodError(
                f"{self._folder}: cannot write the training's state ({error}); choose another folder"
            ) from error

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return the document and the tensors that were saved last; None where nothing was.

        Raises:
            MethodError: the state belongs to another run, or is damaged.
        """
        if not self._folder.exists():
            return None
        try:
            document = json.loads((self._folder / _DOCUMENT).read_text(encoding="utf-8"))
            key = document["key"]
            tensors = load_file(self._folder / _TENSORS)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise MethodError(f"{self._folder}: is no training's state, or damaged ({error}); remove it") from error
        if key != self._key:
            raise MethodError(
                f"{self._folder}: belongs to another run (other data, model, options or versions); "
                "remove it or choose another folder"
            )
        return document, tensors
