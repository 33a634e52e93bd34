"""Label words of options by name: given, by default the names as a person would write them, or letters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count, product
from string import ascii_lowercase
from typing import Any

from cuecraft.core.errors import LabelWordError
from cuecraft.data.labels import python_value

WordChoice = Mapping[str, str | Sequence[str]]
#: Words by name, what gives them for names (such as `distinct_words`), or None for the names themselves.
Words = WordChoice | Callable[[Sequence[str]], WordChoice | None] | None


def words_of(names: Sequence[str], label_words: Words = None) -> tuple[tuple[str, ...], ...]:
    """Return the label words `[O]` of options, each without outer spaces.

    Args:
        names: of the options, `[O]`.
        label_words: see `Words`.

    Raises:
        LabelWordError: `label_words` names an option that is not there, or leaves one out; or a word is no string.
    """
    if callable(label_words):
        label_words = label_words(names)
    if label_words is None:
        return tuple((default_word(name),) for name in names)
    unknown = [name for name in label_words if name not in names]
    missing = [name for name in names if name not in label_words]
    if unknown:
        are_numbered = list(names) == [str(number) for number in range(len(names))]
        remedy = "; where scikit-learn has numbered the classes, give a list of words in the classes' order"
        raise LabelWordError(
            f"label words for {unknown[0]!r}, but the classes are {', '.join(names)}{remedy * are_numbered}"
        )
    if missing:
        raise LabelWordError(f"no label words for class {missing[0]!r}; give it at least one")
    return tuple(_as_words(name, label_words[name]) for name in names)


def check_words(names: Sequence[str], words: Sequence[Sequence[str]]) -> None:
    """Raise LabelWordError where an option has no word or an empty one, or two have the same."""
    if len(words) != len(names):
        raise LabelWordError(f"label words of {len(words)} options, and there are {len(names)}; give each its own")
    owner: dict[str, str] = {}
    for name, own in zip(names, words, strict=True):
        if not own or not all(word.strip() for word in own):
            raise LabelWordError(f"class {name!r} has no label word, or an empty one; give it a word")
        for word in own:
            if owner.setdefault(word, name) != name:
                raise LabelWordError(f"label word {word!r} stands for both {owner[word]!r} and {name!r}; change one")


def default_word(label: str) -> str:
    """Return a class's name as a person would write it in a sentence: ``"Sci_Fi"`` gives ``"sci fi"``."""
    return " ".join(label.replace("_", " ").split()).lower()


def distinct_words(labels: Sequence[str]) -> WordChoice | None:
    """Return a letter or more for each class where default words do not separate the classes; None where they do.

    What answers by a class head reads no words, but a task has some for each class, and a tokenizer that knows no
    capitals has to separate them.
    """
    words = [default_word(label) for label in labels]
    if all(words) and len(set(words)) == len(words):
        return None
    width = next(n for n in count(1) if len(ascii_lowercase) ** n >= len(labels))
    return {label: "".join(own) for label, own in zip(labels, product(ascii_lowercase, repeat=width), strict=False)}


def _as_words(label: str, value: Any) -> tuple[str, ...]:
    """Return the words of a class, given as one or as several in a list or an array, without outer spaces."""
    value = python_value(value)
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)
    given = list(value) if several or getattr(value, "ndim", 0) == 1 else [value]
    words = [python_value(word) for word in given]
    for word in words:
        if not isinstance(word, str):
            shown = " ".join(repr(word).split())[:60]
            raise LabelWordError(
                f"a label word of class {label!r} is a {type(word).__name__} ({shown}); give a string, or a list of "
                "strings"
            )
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise LabelWordError(
                f"label word {word!r} of class {label!r} holds half a character (a lone surrogate); fix it"
            )
    return tuple(dict.fromkeys(str.__str__(word).strip() for word in words))
