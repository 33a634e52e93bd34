"""Label words as token ids: as they are written in the answer slot, checked, and kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cuecraft.core.errors import LabelWordError, named
from cuecraft.task.fitting import LabelIds
from cuecraft.task.token_text import CONTINUATION, text_of_printed_tokens

Ids = tuple[int, ...]


class AnswerIds:
    """Writes label words in one task's answer slot.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prefix: what stands between the text before the slot and a word.
        is_one_token: whether the slot holds one token, as a mask does.
        ending: what the template writes behind the slot.
        are_ended: whether a word with which another one begins is followed by what ends it, the next token of
            `ending` or the end of the text; otherwise such words of two options are refused.
    """

    def __init__(
        self, tokenizer: Any, prefix: str, is_one_token: bool, ending: str = "", are_ended: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._prefix = prefix
        self._is_one_token = is_one_token
        self._ending = ending
        self._are_ended = are_ended

    def of(self, words: Sequence[str]) -> list[Ids]:
        """Return the ids of each word as it is written in the answer slot."""
        if not words:
            return []
        texts = [self._prefix + word for word in words]
        return [tuple(ids) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def of_options(self, options: Mapping[str, tuple[str, ...]]) -> LabelIds:
        """Return the ids of options: name -> words.

        Raises:
            LabelWordError: a word cannot be scored, or two options share one.
        """
        texts: dict[Ids, str] = {}
        classes = []
        for words in options.values():
            found = [self._checked(word, ids) for word, ids in zip(words, self.of(words), strict=True)]
            for ids, word in zip(found, words, strict=True):
                texts.setdefault(ids, word)
            # Words that a tokenizer writes alike ("good", "Good" in an uncased one) are one word.
            classes.append(tuple(dict.fromkeys(found)))
        owners: dict[Ids, int] = {}
        for number, own in enumerate(classes):
            for ids in own:
                _check_apart(options, owners.setdefault(ids, number), number)
        if self._are_ended:
            return self._ended(options, tuple(classes), texts)
        for ids, number in owners.items():
            for size in range(1, len(ids)):
                _check_apart(options, owners.get(ids[:size], number), number)
        return tuple(classes)

    def _ended(self, options: Mapping[str, tuple[str, ...]], classes: LabelIds, texts: Mapping[Ids, str]) -> LabelIds:
        """Return the ids of words, with what ends a word behind each with which another one begins."""
        beginnings = {
            ids[:size]: number for number, own in enumerate(classes) for ids in own for size in range(len(ids))
        }

        def whole(ids: Ids, number: int) -> Ids:
            if ids not in beginnings:
                return ids
            for end in self._ends(texts[ids], ids):
                if (*ids, end) not in beginnings and (*ids, end) not in texts:
                    return (*ids, end)
            names = [repr(list(options)[own]) for own in (number, beginnings[ids])]
            raise LabelWordError(
                f"a label word of class {names[0]} begins one of class {names[1]}, and this tokenizer has no token "
                "that ends it; give other label words"
            )

        return tuple(tuple(whole(ids, number) for ids in own) for number, own in enumerate(classes))

    def _ends(self, word: str, ids: Ids) -> list[int]:
        """Return tokens that may end a word, the likeliest first."""
        written = self.of([word + self._ending])[0]
        literal = written[len(ids) : len(ids) + 1] if written[: len(ids)] == ids else ()
        last = getattr(self._tokenizer, "eos_token_id", None)
        return [*literal, *(() if last is None else (last,))]

    def _checked(self, word: str, ids: Ids) -> Ids:
        """Return a label word's ids, or say why it cannot be scored."""
        unknown = getattr(self._tokenizer, "unk_token_id", None)
        printed = "" if word == CONTINUATION else text_of_printed_tokens(self._tokenizer, word)
        meant = None if printed is None else printed.strip()
        # A word that this tokenizer knows as one token, or writes as it writes the word that is meant, is a word.
        is_known = unknown not in ids and len(ids) == 1 and (meant != "" or word == CONTINUATION)
        is_own = is_known or (meant and unknown not in ids and self.of([meant]) == [ids])
        if meant is not None and not is_own:
            remedy = f"write {meant!r}" if meant else "it is no word by itself, so give a word"
            raise LabelWordError(
                f"label word {word!r} is a token as a tokenizer's list prints it, with the mark of a space or of a "
                f"word's part; {remedy}"
            )
        if not ids or unknown in ids:
            raise LabelWordError(f"label word {word!r} is not in this tokenizer's vocabulary; use another")
        if self._is_one_token and len(ids) > 1:
            shown = " ".join(self._tokenizer.convert_ids_to_tokens(list(ids)))
            raise LabelWordError(
                f"label word {word!r} is {len(ids)} tokens ({shown}), but a masked LM fills one {{mask}}; "
                f"give a label word of one token ({named('task.label_words')})"
            )
        return ids


def _check_apart(options: Mapping[str, tuple[str, ...]], one: int, other: int) -> None:
    """Raise LabelWordError unless two class numbers, of words of which one begins as the other, are the same."""
    if one != other:
        names = [repr(list(options)[number]) for number in sorted((one, other))]
        raise LabelWordError(
            f"classes {' and '.join(names)} have label words that this tokenizer writes alike or one as the "
            "beginning of the other; give other label words"
        )
