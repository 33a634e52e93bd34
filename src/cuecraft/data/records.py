"""One labelled text, and the hash of a list of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """One row of data: named text fields and, where known, the name of its class."""

    fields: Mapping[str, str]
    label: str | None = None


def fingerprint(records: Sequence[Record]) -> str:
    """Return the SHA-256 (hex) of the records: fields, labels and their order."""
    digest = hashlib.sha256()
    for record in records:
        line = json.dumps([sorted(record.fields.items()), record.label], ensure_ascii=False)
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
