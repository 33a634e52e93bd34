"""What a text says once hidden and disguised characters are resolved, and the texts that an encoding hides in it.

In order: compatible forms are made one (NFKC, Unicode Standard Annex 15); characters that do not show are taken out;
ASCII that is written in tag characters (U+E0000 and on) or in variation selectors is decoded as a hidden text; letters
of other scripts that look like Latin ones are read as Latin in words of mixed script. What is honest stays and is not
reported: joiners in emoji and in the scripts that need them, flags of tag characters, direction marks in texts that are
written from right to left, words of one script whichever it is.

Encodings are those that models read: base64, hex, percent signs, rot13. Only pieces that are long enough and decode to
readable UTF-8 count, so that keys, hashes and pictures give nothing. The work is bounded: in how many pieces, how long,
and, by the caller, how deep.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from urllib.parse import unquote_to_bytes

from cuecraft.core.errors import GuardError
from cuecraft.core.yaml_files import parse_yaml
from cuecraft.serving.guard.findings import Finding, Kind, Severity, excerpt

_ROUNDS = 8  # taking characters out can bring others together that NFKC joins; two rounds are enough nearly always

_TAGS = re.compile("[\U000e0000-\U000e007f]+")
# The flags that are written so: England, Scotland and Wales, gbeng, gbsct and gbwls.
_FLAG = re.compile(
    "\U0001f3f4\U000e0067\U000e0062(?:\U000e0065\U000e006e\U000e0067|\U000e0073\U000e0063\U000e0074|"
    "\U000e0077\U000e006c\U000e0073)\U000e007f"
)
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{2,}")
# What Unicode lets a font leave out (Default_Ignorable_Code_Point), but for what stands in patterns of its own.
_ZERO_WIDTH = re.compile(
    "[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2065\u206a-\u206f\ufe00-\ufe0f"
    "\ufeff\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0080-\U000e0fff]"
)
_SELECTOR = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# Scripts whose letters have shapes to choose from: Myanmar, Mongolian, Chinese and its relatives, Phags-pa, Manichaean.
_SHAPED = re.compile(
    "[\u1000-\u109f\u1820-\u18aa\u2e80-\u9fff\ua840-\ua87f\uaa60-\uaa7f\uf900-\ufaff\U00010ac0-\U00010aff"
    "\U00020000-\U0003ffff]"
)
_MONGOLIAN = re.compile("[\u1820-\u18aa]")
_KHMER = re.compile("[\u1780-\u17d3]")
_SHORTHAND = re.compile("[\U0001bc00-\U0001bc9f]")
_MUSIC = re.compile("[\U0001d100-\U0001d1ff]")
# Hangul fillers stand for a sound that is missing in a syllable written by its parts, and nowhere else.
_HANGUL_FIRST = re.compile("[\u1100-\u115e\ua960-\ua97c]")
_HANGUL_NEXT = re.compile("[\u1161-\u11ff\ud7b0-\ud7fb]")
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
_OVERRIDES = "\u202d\u202e"
# Lone surrogates are half a character: no model's tokenizer takes them.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")
# Scripts whose letters join or stack, and need U+200C and U+200D to say where: Arabic's, those of India, Tibetan,
# Myanmar, Khmer, Mongolian.
_JOINING = re.compile("[\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefc]")
# Scripts without spaces between words, where U+200B says where a line may break.
_SPACELESS = re.compile("[\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff]")
# Characters of no width, and the scripts behind whose letters they are needed.
_NEEDED_BEHIND = (
    (re.compile("\u200b"), _SPACELESS),
    (re.compile("[\u180b-\u180f]"), _MONGOLIAN),
    (re.compile("[\u17b4\u17b5]"), _KHMER),
    (re.compile("[\U0001bca0-\U0001bca3]"), _SHORTHAND),
    (re.compile("[\U0001d173-\U0001d17a]"), _MUSIC),
)
_PICTURE = re.compile("[\u2190-\u21ff\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff\ufe0f]")
_WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|[\u0300-\u036f])*")


@dataclass(frozen=True)
class Normalised:
    """A text as it is screened.

    Args:
        text: the clean text.
        found: what was taken out or read as something else; the first place of each kind.
        hidden: texts that were written in characters that do not show, in order.
    """

    text: str
    found: tuple[Finding, ...] = ()
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Sort:
    """A sort of characters: what is reported of it."""

    id: str
    reason: str
    severity: Severity = Severity.LOW


_TAG_TEXT = _Sort("tags", "text is written in Unicode tag characters, which do not show", Severity.HIGH)
_SELECTOR_TEXT = _Sort("variation-selectors", "bytes are written in variation selectors", Severity.HIGH)
_OVERRIDE = _Sort("bidi-override", "a character turns the direction of letters around", Severity.HIGH)
_DIRECTION = _Sort("bidi", "direction marks stand where nothing is written from right to left")
_INVISIBLE = _Sort("zero-width", "characters of no width stand where none is needed")
_CONTROLS = _Sort("control", "control characters or halves of characters")
_LOOKALIKE = _Sort("homoglyphs", "letters of another script stand for Latin ones within a word")


class _Notes:
    """What was found so far: the first place of each sort, and the hidden texts."""

    def __init__(self) -> None:
        self.findings: dict[str, Finding] = {}
        self.hidden: list[str] = []

    def take(self, sort: _Sort, text: str, match: re.Match[str]) -> None:
        if sort.id not in self.findings:  # an excerpt of each of very many places would take long
            shown = excerpt(text, match.start(), match.end())
            self.findings[sort.id] = Finding(Kind.CHARACTERS, sort.id, sort.reason, shown, severity=sort.severity)


def normalised(text: str) -> Normalised:
    """Return a text as it is screened; the clean text of a clean text is itself. Any string will do."""
    if text.isascii() and not _CONTROL.search(text):
        return Normalised(text)
    notes = _Notes()
    for _ in range(_ROUNDS):
        before, text = text, _cleaned(unicodedata.normalize("NFKC", text), notes)
        if text == before:
            break
    return Normalised(text, tuple(notes.findings.values()), tuple(notes.hidden))


def _cleaned(text: str, notes: _Notes) -> str:
    text = _without_tags(text, notes)
    text = _SELECTORS.sub(lambda match: _selectors(match, text, notes), text)
    text = _CONTROL.sub(lambda match: _control(match, text, notes), text)
    text = _without_zero_width(text.removeprefix("\ufeff"), notes)
    has_right_to_left = _RIGHT_TO_LEFT.search(text) is not None
    text = _BIDI.sub(lambda match: _bidi(match, text, has_right_to_left, notes), text)
    return _WORD.sub(lambda match: _latin_word(match, text, notes), text)


def _without_tags(text: str, notes: _Notes) -> str:
    flags = {match.start() + 1: match.end() for match in _FLAG.finditer(text)}

    def tags(match: re.Match[str]) -> str:
        if flags.get(match.start()) == match.end():
            return match[0]
        notes.take(_TAG_TEXT, text, match)
        _hide("".join(chr(ord(tag) - 0xE0000) for tag in match[0]), notes)
        return ""

    return _TAGS.sub(tags, text)


def _selectors(match: re.Match[str], text: str, notes: _Notes) -> str:
    """Take a run of variation selectors out: one of them chooses a shape, more of them can only carry bytes."""
    notes.take(_SELECTOR_TEXT, text, match)
    codes = [ord(selector) for selector in match[0]]
    found = bytes(code - 0xFE00 if code < 0xE0100 else code - 0xE0100 + 16 for code in codes)
    _hide(found.decode("utf-8", "ignore"), notes)
    return ""


def _hide(text: str, notes: _Notes) -> None:
    text = "".join(letter for letter in text if letter.isprintable() or letter.isspace())
    if text.strip():
        notes.hidden.append(text)


def _control(match: re.Match[str], text: str, notes: _Notes) -> str:
    notes.take(_CONTROLS, text, match)
    return "\ufffd" if "\ud800" <= match[0] <= "\udfff" else ""


def _without_zero_width(text: str, notes: _Notes) -> str:
    """Take out what has no width; each place is judged by what is left before it."""
    kept: list[str] = []
    last, begin = "", 0
    for match in _ZERO_WIDTH.finditer(text):
        piece = text[begin : match.start()]
        kept.append(piece)
        last, begin = (piece or last)[-1:], match.end()
        if _is_needed(match[0], last, text[begin : begin + 1]):
            kept.append(match[0])
            last = match[0]
        elif not _SELECTOR.match(match[0]) or (last + text[begin : begin + 1]).isalpha():
            # A selector behind a word is what NFKC leaves of a picture such as the trade mark sign; not reported.
            notes.take(_INVISIBLE, text, match)
    return "".join((*kept, text[begin:]))


def _is_needed(character: str, before: str, after: str) -> bool:
    if character == "\u200d" and _PICTURE.match(before) and _PICTURE.match(after):
        return True
    if character in "\u200c\u200d":
        return _JOINING.match(before) is not None
    if _SELECTOR.match(character):
        return bool(before) and (not before.isalpha() or _SHAPED.match(before) is not None)
    if character in "\u115f\u1160":
        return _HANGUL_FIRST.match(before) is not None or _HANGUL_NEXT.match(after) is not None
    for characters, script in _NEEDED_BEHIND:
        if characters.match(character):
            return script.match(before) is not None
    return False


def _bidi(match: re.Match[str], text: str, has_right_to_left: bool, notes: _Notes) -> str:
    before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    splits_a_word = before.isascii() and after.isascii() and before.isalpha() and after.isalpha()
    if any(mark in _OVERRIDES for mark in match[0]):
        notes.take(_OVERRIDE, text, match)
        return ""
    if has_right_to_left and not splits_a_word:
        return match[0]
    notes.take(_DIRECTION, text, match)
    return ""


def _latin_word(match: re.Match[str], text: str, notes: _Notes) -> str:
    word = match[0]
    if word.isascii():
        return word
    table = _homoglyphs()
    foreign = {letter for letter in word if letter.isalpha() and not _is_latin(letter)}
    if not foreign or not foreign <= table.keys() or not any(map(_is_latin, word)):
        return word
    notes.take(_LOOKALIKE, text, match)
    return "".join(table.get(letter, letter) for letter in word)


@cache
def _is_latin(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith("LATIN ")


@cache
def _homoglyphs() -> dict[str, str]:
    """Return the Latin letter that each lookalike stands for."""
    source = resources.files(__package__).joinpath("homoglyphs.yaml").read_text(encoding="utf-8")
    values = parse_yaml(source, "homoglyphs.yaml", GuardError).values
    return {lookalike: latin for latin, lookalikes in values.items() for lookalike in lookalikes}


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
