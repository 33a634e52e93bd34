"""What the command line of `serve` offers; apart from the guard itself, which needs pydantic and its rules."""

from __future__ import annotations

from enum import StrEnum


class GuardMode(StrEnum):
    """What is done with a guard's verdict: nothing is asked, a flag is reported, or what is flagged is refused."""

    OFF = "off"
    FLAG = "flag"
    BLOCK = "block"
