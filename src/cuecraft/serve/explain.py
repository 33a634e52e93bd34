"""Which words of a text count: how much less probable the label is without each of them (occlusion).

After Zeiler & Fergus (ECCV 2014, arXiv 1311.2901), with words in place of patches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuecraft.serve.registry import Listed
from cuecraft.serve.requests import Answer

_WORD = re.compile(r"\S+")
_NOTHING = "."  # in place of a text without words, which no prompt takes
_MOST = 64  # variants of a text; a longer one has several words left out at once


@dataclass(frozen=True)
class Explanation:
    """What the words of a text add to an answer.

    Args:
        answer: to the whole text.
        words: each word, or several neighbours together, and how much less probable the label is without them; in
            their order, field after field.
    """

    answer: Answer
    words: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Occlusion:
    """A text, and its variants with words left out.

    Args:
        pieces: what is left out of each variant but the first, which is the whole text.
        texts: the variants' fields.
    """

    pieces: tuple[str, ...]
    texts: tuple[Mapping[str, str], ...]

    @classmethod
    def of(cls, prompt: Listed, fields: Mapping[str, str]) -> Occlusion:
        """Leave out each word of the fields that a prompt reads, or several neighbours at once of a long text."""
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
        at = whole.probabilities.index(max(whole.probabilities))
        drops = [whole.probabilities[at] - other.probabilities[at] for other in others]
        return Explanation(whole, tuple(zip(self.pieces, drops, strict=True)))
