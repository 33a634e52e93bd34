"""Reading labelled texts, sampling them by seed, and fingerprinting what was used. No torch here."""

from cuecraft.data.readers import read_partly_labelled, read_records, stream_texts
from cuecraft.data.records import Record, fingerprint
from cuecraft.data.sampling import KShotSplit, holdout, k_shot_split, subsample

__all__ = [
    "KShotSplit",
    "Record",
    "fingerprint",
    "holdout",
    "k_shot_split",
    "read_partly_labelled",
    "read_records",
    "stream_texts",
    "subsample",
]
