"""Reading labelled texts, sampling them by seed, and fingerprinting what was used. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.core.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.data.readers import Reading, read_partly_labelled, read_records, stream_texts
    from cuecraft.data.records import BadRow, BadRows, KShotSplit, Record, fingerprint, holdout, k_shot_split, subsample

__all__ = [
    "BadRow",
    "BadRows",
    "KShotSplit",
    "Reading",
    "Record",
    "fingerprint",
    "holdout",
    "k_shot_split",
    "read_partly_labelled",
    "read_records",
    "stream_texts",
    "subsample",
]

_HOMES = {
    "readers": (
        "Reading",
        "read_partly_labelled",
        "read_records",
        "stream_texts",
    ),
    "records": (
        "BadRow",
        "BadRows",
        "Record",
        "fingerprint",
        "KShotSplit",
        "holdout",
        "k_shot_split",
        "subsample",
    ),
}
__getattr__ = loaded_on_use(__name__, {name: home for home, names in _HOMES.items() for name in names})
