"""Uploaded prompts in a folder, there after a restart and shared by servers; and which words of a text count.

Words are explained by occlusion: how much less probable the label is without each (after Zeiler & Fergus, ECCV 2014,
arXiv 1311.2901, with words in place of patches).
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuecraft.core.errors import CuecraftError, ServeError
from cuecraft.core.storage import MANIFEST, file_sha256, remove_folder
from cuecraft.serving.registry import PromptRegistry, check_id

if TYPE_CHECKING:
    from cuecraft.artifact import Artifact


import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuecraft.serving.registry import Listed
from cuecraft.serving.requests import Answer

LOG = logging.getLogger("cuecraft.serving")


_LOOK = 2.0  # seconds between two looks at the folder
_WORD = re.compile(r"\S+")
_NOTHING = "."  # in place of a text without words, which no prompt takes
_MOST = 64  # variants of a text; a longer one has several words left out at once


class Kept:
    """A folder with one artifact for each prompt, named by its id.

    Args:
        shelf: follows what is in the folder.
        folder: is made when the first prompt is kept.
    """

    def __init__(self, shelf: PromptRegistry[Any], folder: Path) -> None:
        self._shelf = shelf
        self._folder = folder
        self._seen: dict[str, str] = {}  # id -> hash of the manifest that was looked at last
        self._lock = threading.Lock()
        self.refresh()

    def save(self, name: str, artifact: Artifact) -> None:
        """Serve a prompt from now on, and keep it.

        Raises:
            CuecraftError: it cannot be served or written; then nothing has changed but perhaps what is served here.
        """
        with self._lock:
            self._shelf.put(name, [artifact])
            artifact.save(self._folder / name)
            self._seen[name] = self._found()[name]

    def remove(self, name: str) -> None:
        """Serve a prompt no longer, and keep it no longer.

        Raises:
            UnknownPromptError: there is none of that id.
        """
        with self._lock:
            self._shelf.drop(name)
            if self._folder.is_dir():
                remove_folder(self._folder / name)
            self._seen.pop(name, None)

    def refresh(self) -> None:
        """Follow what others did to the folder. What cannot be read, as while it is copied, is left as it is."""
        with self._lock:
            found = self._found()
            for name in [name for name in self._seen if name not in found]:
                if name in {served.name for served in self._shelf.all()}:
                    self._shelf.drop(name)
                del self._seen[name]
            for name, version in found.items():
                if self._seen.get(name) == version:
                    continue
                self._seen[name] = version  # reported once, if it cannot be served
                try:
                    from cuecraft.artifact import load_artifact

                    self._shelf.put(name, [load_artifact(self._folder / name)])
                except Exception as error:  # a folder of others may hold anything
                    LOG.warning("cannot be served", extra={"fields": {"prompts": [name], "error": str(error)}})

    def _found(self) -> dict[str, str]:
        """Return the prompts of the folder, and what tells a change: the manifest's hash and all files' sizes."""
        found = {}
        for path in sorted(self._folder.glob(f"*/{MANIFEST}")):
            try:
                check_id(path.parent.name)
                sizes = [(part.name, part.stat().st_size) for part in sorted(path.parent.iterdir())]
                found[path.parent.name] = f"{file_sha256(path)} {sizes}"
            except (CuecraftError, OSError):  # no prompt, or gone meanwhile
                continue
        return found


def follow(kept: Kept) -> None:
    """Follow what others do to a folder, for as long as the process lives."""

    def look() -> None:
        while True:
            time.sleep(_LOOK)
            kept.refresh()

    threading.Thread(target=look, name="cuecraft-kept", daemon=True).start()


@dataclass(frozen=True)
class Explanation:
    """What the words of a text add to an answer.

    Args:
        answer: to the whole text.
        option: the likeliest one.
        words: each word, or several neighbours together, and how much less probable that option is without them; in
            their order, field after field.
    """

    answer: Answer
    option: str
    words: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Occlusion:
    """A text, and its variants with words left out.

    Args:
        pieces: what is left out of each variant but the first, which is the whole text.
        texts: the variants' fields.
    """

    pieces: tuple[str, ...]
    texts: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, prompt: Listed, fields: Mapping[str, Any]) -> Occlusion:
        """Leave out each word of the fields that a prompt reads, or several neighbours at once of a long text.

        Raises:
            ServeError: the prompt answers with places in the text, which move where a word is left out.
        """
        if prompt.task.answers.at == "words":
            raise ServeError(f"prompt {prompt.name!r} answers with places in the text, which words left out would move")
        names = [name for name in prompt.task.template.field_names if name in fields] or list(fields)
        places = [(name, *match.span()) for name in names for match in _WORD.finditer(fields[name])]
        each = max(1, -(-len(places) // _MOST))
        pieces, texts = [], [dict(fields)]
        for name in names:
            own = [(start, stop) for field, start, stop in places if field == name]
            for first in range(0, len(own), each):
                start, stop = own[first][0], own[first : first + each][-1][1]
                left = f"{fields[name][:start].rstrip()} {fields[name][stop:].lstrip()}".strip()
                pieces.append(fields[name][start:stop])
                texts.append({**fields, name: left or _NOTHING})
        return cls(tuple(pieces), tuple(texts))

    def explained(self, answers: Sequence[Answer]) -> Explanation:
        """Return the explanation, given the answers to all texts."""
        whole, *others = answers
        shares = whole.decision.options
        option = max(shares, key=lambda name: shares[name])
        drops = [shares[option] - other.decision.options.get(option, 0.0) for other in others]
        return Explanation(whole, option, tuple(zip(self.pieces, drops, strict=True)))
