"""What the command line of `classify` offers; apart from the job, which needs pydantic."""

from __future__ import annotations

from enum import StrEnum


class Dedupe(StrEnum):
    """Which texts are answered once."""

    EXACT = "exact"
    TEMPLATE = "template"
    OFF = "off"
