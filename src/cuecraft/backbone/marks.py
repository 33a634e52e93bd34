"""Tokens as a tokenizer's list prints them (``Ġgreat``, ``▁great``, ``##ing``), and the text that such a list means."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

#: What stands for a space in front of a word: of byte-level tokenizers, and of SentencePiece.
BYTE_SPACE, PIECE_SPACE = "Ġ", "▁"
_SPACE = re.compile(r"(?:^|(?<=\s)|(?<=[a-z0-9.,:;!?'\"-]))Ġ(?=\S)|▁(?=\S)")
#: What tells that a token goes on with the word before it (WordPiece), or that the next one does (fastBPE).
_CONTINUES = re.compile(r"(?:^|\s+)##(?=[^\s#])|(?<=\w)@@(?:\s+|$)")
_WORD_END = re.compile(r"(?<=\S)</w>(?=\s|$)")
#: Maltese has Ġ as a letter, and hardly a word of it is without another letter of its own.
_MALTESE = re.compile("[ċġħżĊĦŻ]")


def text_of_printed_tokens(text: str) -> str | None:
    """Return the text that printed tokens stand for: ``"Ġgreat"`` gives ``"great"``; None where they have no marks."""
    found = text
    if _SPACE.search(text) and not (BYTE_SPACE in text and _MALTESE.search(text)):
        plain = _of_bytes(text) if BYTE_SPACE in text else None
        found = re.sub(f" ?[{BYTE_SPACE}{PIECE_SPACE}]", " ", text) if plain is None else plain
    found = _WORD_END.sub(" ", _CONTINUES.sub("", found))
    return None if found == text else found


def meant_by(tokenizer: Any, text: str) -> str | None:
    """Return what words stand for that are printed tokens; None where they are not, or the tokenizer reads both alike.

    Args:
        tokenizer: a Hugging Face tokenizer.
        text: words of a prompt.
    """
    meant = text_of_printed_tokens(text)
    if meant is None:
        return None
    written, plain = (tokenizer(own, add_special_tokens=False)["input_ids"] for own in (text, meant))
    is_read_alike = written == plain and getattr(tokenizer, "unk_token_id", None) not in written
    return None if is_read_alike else meant.strip()


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
    return {chr(byte): byte for byte in shown} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}
