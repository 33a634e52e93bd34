"""What runs report while they work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
#: Called with each part of some work, and returns the listener of its steps.
Started = Callable[[str], Callable[[Event], None]]
