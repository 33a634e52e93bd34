"""What a label is, for files and for Python: a string, a truth value, or a whole number; and the name of its class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cuecraft.core.errors import DataError, LabelWordError
from cuecraft.data.records import RowAnswers, check_nul, column_value

_SHOWN = 60  # characters of a value in an error


def python_value(value: Any) -> Any:
    """Return a scalar of NumPy, PyArrow or PyTorch as the Python value that it stands for."""
    if type(value).__name__ == "MaskedConstant":  # of NumPy; it would give 0
        return None
    if hasattr(value, "as_py"):
        return value.as_py()
    if getattr(getattr(value, "dtype", None), "kind", "") in ("M", "m"):  # times of NumPy; some would give a number
        return value
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def is_missing(value: Any) -> bool:
    """Return whether a value stands for none: None, NaN, and what pandas has for them."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and math.isnan(value)


def label_name(where: str, value: Any, missing: str = "the label is missing") -> str:
    """Return the name of the class that a label stands for.

    A string loses its outer spaces; a whole number is written without a point, so that 1 and 1.0 are one class.

    Args:
        where: it stands, for the error.
        value: as a file or the user has it.
        missing: what the error says where there is none.

    Raises:
        DataError: it is missing, or no string, truth value or whole number.
    """
    found = python_value(value)
    if is_missing(found) or (isinstance(found, str) and not found.strip()):
        raise DataError(f"{where}: {missing}; give a class or remove the row")
    if isinstance(found, str):
        return _unicode(where, str.__str__(found).strip())
    if isinstance(found, bool):
        return str(found)
    if isinstance(found, int) or (isinstance(found, float) and found.is_integer()):
        return _digits(where, int(found))
    shown = repr(found).replace("\n", " ")
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    if isinstance(found, float):
        raise DataError(f"{where}: the label {shown} is not a whole number; give a class, such as a string")
    if isinstance(found, list | tuple | set | frozenset):
        remedy = "give one string or whole number a row"
    elif getattr(found, "ndim", 0):
        remedy = "give one class a row, such as one-hot rows' .argmax(1)"
    else:
        remedy = "give a string, a whole number, or true or false"
    raise DataError(f"{where}: the label is a {type(found).__name__} ({shown}); {remedy}")


def read_label(where: str, row: Mapping[str, Any], column: str) -> str:
    """Return the name of the class that a row has in a column; raises DataError as `label_name`."""
    return label_name(where, column_value(where, row, column), f"label column {column!r} is empty")


def labels_in(column: str) -> RowAnswers:
    """Return how a class is read of a column of that name."""
    return RowAnswers((column,), (), lambda where, row: (read_label(where, row, column), ()), lambda where, row: ())


def class_names(labels: Iterable[Any]) -> dict[str, Any]:
    """Return the classes by name, in the order that scikit-learn gives them.

    Returns:
        The class as a plain Python value, a string without outer spaces, by its name.

    Raises:
        DataError: a label cannot be used, or strings, numbers and truth values stand side by side.
    """
    found: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    for row, label in enumerate(labels, start=1):
        name, value = label_name(f"row {row}", label), python_value(label)
        found.setdefault(name, name if isinstance(value, str) else value)
        kinds.setdefault(_kind(value), value)
    check_kinds("", kinds)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def kind_of_label(label: Any) -> tuple[str, Any]:
    """Return what a label is that `label_name` takes: strings, numbers or truth values; and its value for Python."""
    value = python_value(label)
    return _kind(value), value


def names_to_compare(classes: Iterable[Any], labels: Sequence[Any]) -> list[str]:
    """Return the names of labels that are compared with classes, which may be strings of the same names.

    Raises:
        DataError: a label cannot be used, or truth values are compared with numbers.
    """
    kinds = dict(kind_of_label(value) for value in (*classes, *labels))
    check_kinds("", {kind: value for kind, value in kinds.items() if not isinstance(value, str)})
    return [label_name(f"row {row}", label) for row, label in enumerate(labels, start=1)]


def check_kinds(where: str, kinds: Mapping[str, Any]) -> None:
    """Raise DataError where labels are of several kinds; each has an example."""
    if len(kinds) > 1:
        named = ", ".join(map(repr, kinds.values()))
        raise DataError(f"{where}the labels mix {' and '.join(kinds)} ({named}); use one kind for all of them")


def words_by_name(label_words: Any) -> dict[str, Any] | None:
    """Return label words by the name of their class; None for none.

    Raises:
        LabelWordError: they are no mapping, or two classes have one name.
        DataError: a class is none.
    """
    if label_words is None:
        return None
    if not isinstance(label_words, Mapping):
        shown = " ".join(str(label_words).split())[:_SHOWN]
        raise LabelWordError(f"label_words is {shown!r}; give {{class: word}}, a list in the classes' order, or 'auto'")
    found: dict[str, Any] = {}
    for label, words in label_words.items():
        name = label_name("label_words", label)
        if name in found:
            raise LabelWordError(f"label_words names class {name!r} twice; give all of its words in one list")
        found[name] = words
    return found


def _digits(where: str, number: int) -> str:
    try:
        return str(number)
    except ValueError:  # Python writes no more than some thousands
        raise DataError(f"{where}: the label is a number of too many digits; give a string") from None


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "strings"
    return "truth values" if isinstance(value, bool) else "numbers"


def _unicode(where: str, name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: the label holds half a character (a lone surrogate); fix it") from None
    check_nul(where, "the label", name)
    return name
