"""Which texts count as one: the same text, or for logs the same one but for numbers, ids, addresses, paths and times.

A mask is a function of a text alone, so it is the same in any order, process or machine, and two texts that differ in a
word are never one. Miners that learn templates from a stream (as Drain) merge more, and both is lost with them.
Repetitions are bounded, so that no word takes longer than its length asks for.
"""

from __future__ import annotations

import re
from hashlib import blake2b

_MOST, _LONG = 100_000, 200  # words that are remembered with their masks, and characters of one

_HEX = "0-9a-fA-F"
_KINDS = {
    "TIME": r"\d{4}-\d\d-\d\d(?:[T_]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"
    r"|\d\d:\d\d:\d\d(?:[.,]\d+)?Z?",
    "ID": rf"[{_HEX}]{{8}}(?:-[{_HEX}]{{4}}){{3}}-[{_HEX}]{{12}}",
    "IP": r"\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?"
    rf"|(?=[a-fA-F:]{{0,39}}\d)(?=[{_HEX}:]{{0,39}}::?[{_HEX}]{{0,4}}:)[{_HEX}]{{1,4}}(?:::?[{_HEX}]{{1,4}}){{2,7}}",
    "HEX": rf"0[xX][{_HEX}]+|(?=[a-fA-F]*\d)[{_HEX}]{{6,}}",
    "MAIL": r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}",
    "NUM": r"\d+(?:[.,]\d+)*",
}
_ALTERNATIVES = "|".join(f"(?P<{name}>{pattern})" for name, pattern in _KINDS.items())
#: What stands by itself, then paths and addresses of the web, then numbers within words.
_MASK = re.compile(
    rf"(?P<URL>\b[a-z][a-z0-9+.-]{{0,20}}://[^\s\"'<>]+)|(?<![A-Za-z0-9])(?:{_ALTERNATIVES})(?![A-Za-z0-9])"
    r"|(?P<PATH>(?<![\w/.])~?/[\w.\-]+(?:/[\w.\-]+)+/?)|(?P<PART>\d+)"
)
_MASKS = {name: f"<{name}>" for name in (*_KINDS, "URL", "PATH")} | {"PART": "<NUM>"}


class _Words(dict[str, str]):
    """The masks of words that were met lately."""

    def __missing__(self, word: str) -> str:
        found = _MASK.sub(lambda match: _MASKS[match.lastgroup or ""], word)
        if len(word) <= _LONG:
            if len(self) >= _MOST:
                self.clear()
            self[word] = found
        return found


_words = _Words()


def masked(text: str) -> str:
    """Return a text with its numbers, ids, addresses, paths and times written as signs, word by word."""
    return " ".join([word if word.isalpha() else _words[word] for word in text.split(" ")])


def digest(text: str) -> bytes:
    """Return 16 bytes that stand for a text."""
    return blake2b(text.encode(), digest_size=16).digest()
