"""Text and tokens: ids of texts and of what a tokenizer puts around them, and tokens as a token list prints them.

Special tokens inside a text stay text. Printed tokens (``Ġgreat``, ``▁great``, ``##ing``) are turned back into the text
that they mean. No torch here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from cuecraft.core.errors import BackboneError

#: What stands for a space in front of a word: of byte-level tokenizers, and of SentencePiece.
BYTE_SPACE, PIECE_SPACE = "Ġ", "▁"
#: What tells in WordPiece that a token goes on with the word before it.
CONTINUATION = "##"
# Of byte-level tokenizers, Ċ is a line's end and ĉ a tab; but they are letters too: Maltese words begin with Ċ and a
# vowel or one of klmpr, Esperanto's with ĉ and a vowel, and a word in small letters has no capital within.
_BYTE_MARK = re.compile(
    r"(?<=[a-z0-9.,:;!?'\"-])[ĠĊ]|(?:^|(?<=\s))(?:Ġ|Ċ(?=[b-df-hjnqs-tv-zĊĠ\s]|$)|ĉ(?=[b-df-hj-np-tv-zĉĊĠ\s]|$))"
)
_CONTINUES = re.compile(r"(?:^|\s+)##(?=[^\s#])|(?<=\w)(?:@@|##)(?:\s+|$)")
_WORD_END = re.compile(r"(?<=\S)</w>(?=\s|$)")
_PIECE_BYTES = re.compile(r"(?:<0x[0-9A-Fa-f]{2}>)+")
#: Maltese has Ġ and Ċ as letters, and hardly a word of it is without another letter of its own.
_MALTESE = re.compile("[ċġħżĦŻ]|Ċ(?=[aeiouklmpr])")
_TURKISH = re.compile("[ÇÖÜ]\u0131")  # two letters, and the two bytes of one
_LETTER_OR_MARK = re.compile("[Ċĉ]([a-z]{4,})")


def text_of_printed_tokens(tokenizer: Any, text: str) -> str | None:
    """Return the text that printed tokens stand for: ``"Ġgreat"`` gives ``"great"``; None where they have no marks.

    Args:
        tokenizer: a Hugging Face tokenizer, which decides where marks may be letters.
        text: words. Of marks alone, the text is white space or empty.
    """
    found = text
    if _BYTE_MARK.search(text) and not _MALTESE.search(text):
        plain = _of_bytes(text)
        found = re.sub(" ?[ĠĊĉ]", " ", text) if plain is None else plain
    elif (plain := _of_bytes(text)) not in (None, text) and _is_printed(tokenizer, text):
        found = str(plain)
    found = re.sub(f" ?{PIECE_SPACE}", " ", found)
    found = _PIECE_BYTES.sub(_of_piece_bytes, found)
    found = _WORD_END.sub(" ", _CONTINUES.sub("", found))
    if found == text:
        return None
    # What was printed once more as text ("Äł" for "Ġ") still has its marks.
    return text_of_printed_tokens(tokenizer, found) or found


def meant_by(tokenizer: Any, text: str) -> str | None:
    """Return what words stand for that are printed tokens; None where they are not, or the tokenizer reads both alike.

    Args:
        tokenizer: a Hugging Face tokenizer.
        text: words of a prompt.
    """
    meant = text_of_printed_tokens(tokenizer, text)
    if meant is None:
        return None
    written, plain = (tokenizer(own, add_special_tokens=False)["input_ids"] for own in (text, meant))
    is_read_alike = written == plain and getattr(tokenizer, "unk_token_id", None) not in written
    return None if is_read_alike else meant.strip()


def _is_printed(tokenizer: Any, text: str) -> bool:
    """Return whether characters that stand for bytes in a byte-level vocabulary are not letters here."""
    word = _LETTER_OR_MARK.fullmatch(text.strip())
    if word:  # a letter, unless the tokenizer knows the rest as a word
        return len(tokenizer.tokenize(f" {word[1]}")) == 1 < len(tokenizer.tokenize(f" {text.strip()}"))
    is_byte_level = "Ã" in "".join(tokenizer.tokenize("é"))
    has_bytes = any(character >= "\x80" for character in _of_bytes(text) or "")
    return is_byte_level and has_bytes and not _TURKISH.search(text) and not _MALTESE.search(text)


def _of_piece_bytes(found: re.Match[str]) -> str:
    """Return what SentencePiece's tokens of single bytes stand for (``"<0xC3><0xA9>"`` for ``"é"``)."""
    return bytes.fromhex(found[0].replace("<0x", "").replace(">", "")).decode(errors="replace")


def _of_bytes(text: str) -> str | None:
    """Return what a byte-level tokenizer's token stands for (``"ĠÃ©tÃ©"`` for ``" été"``); None for other text."""
    table = _byte_table()
    try:
        plain = bytes(table[character] for character in text.replace(f" {BYTE_SPACE}", BYTE_SPACE)).decode()
    except (KeyError, UnicodeDecodeError):
        return None
    return plain if all(part.isprintable() for part in plain.split()) else None


@cache
def _byte_table() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (Radford et al., 2019)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in shown]
    spaces = {space: ord(space) for space in " \t\r\n"}  # of the text around
    return spaces | {chr(byte): byte for byte in shown} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


def reading_texts(tokenizer: Any) -> Any:
    """Return a copy of a tokenizer for `text_ids` alone.

    Whether special tokens written in a text stay text is state of a Hugging Face tokenizer, which each call sets.
    Threads that share a tokenizer would set it for each other. So the literals of a template and the texts have one
    each.
    """
    own = copied_tokenizer(tokenizer)
    if control := control_tokens(own):
        own.backend_tokenizer.add_special_tokens(control)
    text_ids(own, ["a"])  # sets the state before a second thread can call
    return own


def control_tokens(tokenizer: Any) -> list[Any]:
    """Return, as special ones, the added tokens that a chat template writes and that are not special, as ``<think>``.

    A text that holds one must not speak for the template.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template or not hasattr(tokenizer, "backend_tokenizer"):
        return []
    found, written = [], f"{template}</think>"  # of a template that only opens thinking, we write the end
    for token in getattr(tokenizer, "added_tokens_decoder", {}).values():
        if not token.special and token.content.strip() and token.content in written:
            control = copy.copy(token)
            control.special = True
            found.append(control)
    return found


def copied_tokenizer(tokenizer: Any) -> Any:
    """Return a copy of a tokenizer, which no call to the other changes.

    Raises:
        BackboneError: it holds what cannot be copied.
    """
    try:
        return copy.deepcopy(tokenizer)
    except Exception as error:  # parts written in Python, locks and open files each refuse in their own way
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(
            f"{type(tokenizer).__name__} in memory cannot be copied, which reading texts needs ({reason}); give one "
            "without parts written in Python, locks or open files"
        ) from error


def text_ids(tokenizer: Any, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the ids of texts without special tokens; those written inside a text stay plain text."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
    return [tuple(ids) for ids in encoded["input_ids"]]


def text_places(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Return where each token that `text_ids` gives stands in a text (begin, end), in characters.

    Args:
        tokenizer: a fast one.
        text: the text.
    """
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    places: list[tuple[int, int]] = tokenizer(text, return_offsets_mapping=True, **options)["offset_mapping"]
    return places


def special_ids(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that a tokenizer puts before and after a text, such as ([CLS], [SEP]) or (<s>, ())."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start]), tuple(full[start + len(plain) :])
    return (), ()
