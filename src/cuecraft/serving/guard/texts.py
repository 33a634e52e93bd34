"""Texts to tune a detector on and to measure a guard with: ours, and those of `bastioncorpus` where it is installed.

Ours are in ``texts.jsonl``, under the licence of this package: ``text``, ``label`` (`attack` or `benign`) and ``kind``.
`bastioncorpus` (PyPI, MIT) is read where it is, and never copied into the package.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from importlib.util import find_spec
from typing import Any

from cuecraft.core.errors import GuardError

ATTACK, BENIGN = "attack", "benign"
CORPUS = "bastioncorpus"
_CORPUS_LABELS = {"malicious": ATTACK, "benign": BENIGN}
_CANARY = ("{canary}", "TOKEN-4711")  # a place in a text of the corpus, and what stands there
_PARTS = 4  # of the texts: one held out for tests, one to choose by, two to learn from


class TextRole(StrEnum):
    """What a text is for."""

    TRAIN = "train"
    DEV = "dev"
    TEST = "test"


@dataclass(frozen=True)
class GuardText:
    """A labelled text.

    Args:
        text: the text.
        label: `attack` or `benign`.
        kind: what sort of attack, or of benign text.
        source: `cuecraft`, or the corpus it is of.
    """

    text: str
    label: str
    kind: str
    source: str

    @property
    def part(self) -> TextRole:
        """What it is for, by the SHA-256 of the text (UTF-8) modulo 4: 0 test, 1 dev, 2 and 3 train."""
        remainder = int.from_bytes(hashlib.sha256(self.text.encode()).digest(), "big") % _PARTS
        return {0: TextRole.TEST, 1: TextRole.DEV}.get(remainder, TextRole.TRAIN)


def own_texts() -> list[GuardText]:
    """Return the texts that come with the package."""
    lines = resources.files(__package__).joinpath("texts.jsonl").read_text(encoding="utf-8").splitlines()
    return [GuardText(**json.loads(line), source="cuecraft") for line in lines]


def corpus_texts() -> list[GuardText]:
    """Return the texts of `bastioncorpus`; none where it is not installed.

    Raises:
        GuardError: it is installed and cannot be read.
    """
    if find_spec(CORPUS) is None:
        return []
    file = resources.files(CORPUS).joinpath("corpus/injections.jsonl")
    try:
        rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
        return [
            GuardText(row["text"].replace(*_CANARY), _CORPUS_LABELS[row["label"]], row["category"], CORPUS)
            for row in rows
        ]
    except (OSError, ValueError, KeyError) as error:
        raise GuardError(f"{CORPUS}: its corpus cannot be read ({error!r}); install version 0.6.0 of it") from error
