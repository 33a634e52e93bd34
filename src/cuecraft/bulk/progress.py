"""How far a job has come."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from cuecraft.bulk.folder import Shard


@dataclass
class Progress:
    """What has been read, classified and put aside so far.

    Args:
        total: bytes of the inputs; 0 where they are not known.
        told: is called when something has changed.
    """

    total: int
    told: Callable[[Progress], None] = lambda progress: None
    read: int = 0
    classified: int = 0
    quarantined: int = 0
    keys: int = 0
    computed: int = 0
    size: int = 0
    earlier: int = 0  # bytes that earlier starts of the job have done
    earlier_rows: int = 0
    under_way: tuple[int, int] = (0, 0)  # of the block at hand: texts that are answered, and all
    begun: float = field(default_factory=time.monotonic)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, shard: Shard, is_earlier: bool = False) -> None:
        """Count a shard."""
        self.read += shard.read
        self.classified += shard.classified
        self.quarantined += shard.quarantined
        self.keys += shard.keys
        self.computed += shard.computed
        self.size += shard.size
        self.reasons.update(shard.reasons)
        self.under_way = (0, 0)
        if is_earlier:
            self.earlier += shard.size
            self.earlier_rows += shard.read
            self.begun = time.monotonic()
        self.told(self)

    def answering(self, done: int, of: int) -> None:
        """Take note of how far the backbone has come with the block at hand."""
        self.under_way = (done, of)
        self.told(self)

    @property
    def seconds(self) -> float:
        """Seconds of this start of the job."""
        return max(time.monotonic() - self.begun, 1e-6)

    @property
    def rows_per_second(self) -> float:
        """Rows of this start in a second."""
        return (self.read - self.earlier_rows) / self.seconds

    @property
    def mb_per_second(self) -> float:
        """Megabytes of this start in a second."""
        return (self.size - self.earlier) / self.seconds / 1e6

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest will take at this rate; None where that is not known."""
        done = self.size - self.earlier
        return (self.total - self.size) / done * self.seconds if self.total and done else None
