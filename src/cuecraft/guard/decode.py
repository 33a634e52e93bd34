"""Texts that are hidden in another by an encoding that models read: base64, hex, percent signs, rot13.

Only pieces that are long enough and decode to readable UTF-8 count, so that keys, hashes and pictures give nothing.
The work is bounded: in how many pieces, how long, and, by the caller, how deep.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import unquote_to_bytes

PIECES = 16  # encoded pieces of one text that are decoded at most
CHARACTERS = 10_000  # of one hidden text at most
_SHORTEST = 8  # characters of a decoded text that is worth screening
_READABLE = 0.75  # share of letters, digits and spaces among them

_HEX = re.compile(r"(?<![0-9A-Za-z])(?:(?:0x|\\x)?[0-9A-Fa-f]{2}[ ,:]?){8,20000}(?![0-9A-Za-z])")
_BASE64 = re.compile(r"(?<![0-9A-Za-z+/_-])[0-9A-Za-z+/_-]{16,40000}={0,2}")
_PERCENT = re.compile(r"(?<!\S)[^\s%]{0,200}(?:%[0-9A-Fa-f]{2}[^\s%]{0,80}){3,3000}")
_LETTERS = re.compile(r"[^\W\d_]{2,40}")
# Of rot13 it is only decided whether it is English: the commonest words, and those that instructions are made of.
_WORDS = (
    "all and any are as at be but by do for from have how if in is it me my no not of on or our that the these "
    "this to up was we what will with you your ignore instructions previous prompt system reveal tell show output"
)
_ENGLISH = frozenset(_WORDS.split())


class Encoding(StrEnum):
    """How a text was hidden."""

    BASE64 = "base64"
    HEX = "hex"
    PERCENT = "percent"
    ROT13 = "rot13"


@dataclass(frozen=True)
class Decoded:
    """A text that was hidden.

    Args:
        text: what it says.
        encoding: how it was hidden.
        start: where it begins in the text that held it.
        end: where it ends there.
    """

    text: str
    encoding: Encoding
    start: int
    end: int


def hidden_texts(text: str, is_suspicious: Callable[[str], bool]) -> list[Decoded]:
    """Return the texts that are encoded in another, `PIECES` at most, in the order of the encodings.

    Args:
        text: the text that may hold some.
        is_suspicious: whether a text reads like an attack; rot13 counts where it has common English words and
            reads like one, or is English where the text is not.
    """
    found: list[Decoded] = []
    for piece in _pieces(text):
        if len(found) < PIECES and not any(piece.start < other.end and other.start < piece.end for other in found):
            found.append(piece)
    if len(found) < PIECES:
        found += _rotated(text[:CHARACTERS], is_suspicious)
    return found


def _pieces(text: str) -> Iterator[Decoded]:
    """Yield what decodes to something readable; hex before base64, as every hex number could be base64 too."""
    for encoding, pattern, decode in (
        (Encoding.HEX, _HEX, _from_hex),
        (Encoding.BASE64, _BASE64, _from_base64),
        (Encoding.PERCENT, _PERCENT, unquote_to_bytes),
    ):
        for match in pattern.finditer(text):
            readable = _readable(decode(match[0]))
            if readable is not None:
                yield Decoded(readable[:CHARACTERS], encoding, match.start(), match.end())


def _rotated(text: str, is_suspicious: Callable[[str], bool]) -> Iterator[Decoded]:
    turned = codecs.encode(text, "rot13")
    share, count = _english(turned)
    if count < 2:  # nearly every text; rules need not look
        return
    reads_better = share >= 0.25 and _english(text)[0] <= 0.05
    if reads_better or (is_suspicious(turned) and not is_suspicious(text)):
        yield Decoded(turned, Encoding.ROT13, 0, len(text))


def _from_hex(piece: str) -> bytes:
    return bytes.fromhex(re.sub(r"0x|\\x|[ ,:]", "", piece))


def _from_base64(piece: str) -> bytes:
    plain = piece.rstrip("=").replace("-", "+").replace("_", "/")
    plain = plain[: len(plain) - (len(plain) % 4 == 1)]  # one letter more than can be: 6 bits are no byte
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4))
    except binascii.Error:
        return b""


def _readable(found: bytes) -> str | None:
    """Return bytes as text, where they are one that is long enough and mostly letters, digits and spaces."""
    try:
        text = found.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(found) - 3:  # more than a last character that was cut
            return None
        text = found[: error.start].decode("utf-8")
    shown = sum(letter.isprintable() or letter.isspace() for letter in text)
    plain = sum(letter.isalnum() or letter.isspace() for letter in text)
    is_text = len(text) >= _SHORTEST and shown >= 0.95 * len(text) and plain >= _READABLE * len(text)
    return text if is_text else None


def _english(text: str) -> tuple[float, int]:
    """Return the share of common English words, 0 for a text of less than five words; and their number."""
    words = [word.lower() for word in _LETTERS.findall(text)]
    count = sum(word in _ENGLISH for word in words)
    return count / len(words) if len(words) >= 5 else 0.0, count
