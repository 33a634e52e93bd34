"""What a file of texts shows without a model: labels, balance, duplicates, contradictions. No torch here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuecraft.data import Record
from cuecraft.errors import DataError


@dataclass(frozen=True)
class Contradiction:
    """A text that stands under several labels.

    Args:
        rows: their numbers, from 1.
        labels: how often each label was given to it.
    """

    rows: tuple[int, ...]
    labels: Mapping[str, int]


@dataclass(frozen=True)
class Survey:
    """What the rows show.

    Args:
        rows: how many there are.
        classes: labelled rows of each class, in the classes' order; a class may have none.
        duplicates: rows whose text stood in an earlier row already, whatever their label.
        contradictions: texts that stand under several labels.
    """

    rows: int
    classes: Mapping[str, int]
    duplicates: int
    contradictions: tuple[Contradiction, ...]

    @property
    def labelled(self) -> int:
        """Rows with a label."""
        return sum(self.classes.values())

    @property
    def unlabelled(self) -> int:
        """Rows without a label."""
        return self.rows - self.labelled

    @property
    def majority(self) -> float | None:
        """The share of the largest class among the labelled rows: the accuracy of always naming it; None of none."""
        return max(self.classes.values()) / self.labelled if self.labelled else None

    @property
    def labels_per_class(self) -> float:
        """Labels of each class, as their harmonic mean.

        A score that weighs classes alike has a variance that goes with the mean of 1 / n over the classes, so this is
        the size that classes of one size would need to be as well off. A class without labels makes it 0.
        """
        if not all(self.classes.values()):
            return 0.0
        return len(self.classes) / sum(1 / count for count in self.classes.values())

    @property
    def ceiling(self) -> float:
        """The highest accuracy on the labelled rows, given that one text gets one answer."""
        lost = sum(sum(found.labels.values()) - max(found.labels.values()) for found in self.contradictions)
        return 1 - lost / self.labelled if self.labelled else 1.0


def survey(records: Sequence[Record], classes: Sequence[str] | None = None) -> Survey:
    """Count what the records show. Texts are alike where they differ in case and white space only.

    Args:
        records: with labels or without.
        classes: their order; None for the labels found, sorted.

    Raises:
        DataError: a label is none of the classes, or fewer than two classes are known.
    """
    found = Counter(record.label for record in records if record.label is not None)
    names = list(classes) if classes is not None else sorted(found)
    _check_classes(records, names, named=classes is not None)
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, record in enumerate(records):
        places[tuple(" ".join(text.split()).casefold() for text in record.fields.values())].append(row)
    contradictions = []
    for rows in places.values():
        labels = Counter(label for row in rows if (label := records[row].label) is not None)
        if len(labels) > 1:
            own = tuple(row + 1 for row in rows if records[row].label is not None)
            contradictions.append(Contradiction(own, dict(labels)))
    return Survey(
        len(records), {name: found[name] for name in names}, len(records) - len(places), tuple(contradictions)
    )


def _check_classes(records: Sequence[Record], names: Sequence[str], named: bool) -> None:
    for row, record in enumerate(records, start=1):
        if record.label is not None and record.label not in names:
            raise DataError(
                f"row {row}: label {record.label!r} is not one of the classes ({', '.join(names)}); "
                "fix the label or name it in --classes"
            )
    if len(set(names)) < 2:
        have = f"only one class ({names[0]})" if names else "no row has a label, so the classes are not known"
        how = "name at least two" if named or names else "name their column (--label-column), or them (--classes a,b)"
        raise DataError(f"{have}; {how}")
