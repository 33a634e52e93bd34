"""Makes JSON logs of services that look like real ones: few templates, many numbers, a long tail of names, some errors.

    python benchmarks/bulk_logs.py OUT --mb 100 [--seed 1]

Of a thousand lines one is broken (cut off, no UTF-8, a NUL, no message, a message that is no text). Templates have Zipf
frequencies. One line in a hundred names a person, a shop or a feature out of a long-tailed list of made-up words, so
that the number of distinct messages with their numbers masked goes on growing with the size, as it does in real logs.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

SERVICES = ("gateway", "auth", "orders", "billing", "search", "cart", "mail", "media", "stock", "reports")
NORMAL = (
    "request {id} served in {ms} ms with status 200",
    "user {n} logged in from {ip}",
    "cache hit for key session:{hex} after {ms} ms",
    "order {n} was placed with {few} items",
    "payment {id} was accepted for {money} EUR",
    "health check passed in {ms} ms",
    "loaded configuration from {path}",
    "job {n} finished after {ms} ms and wrote {n} rows",
    "connection from {ip} accepted on port {port}",
    "index rebuilt with {n} documents in {ms} ms",
    "message {id} delivered to queue {few}",
    "token refreshed for client {hex}",
    "uploaded {path} with {n} bytes",
    "replica {few} is in sync at offset {n}",
    "scaled to {few} workers",
)
ERRORS = (
    "connection to {ip} failed after {ms} ms and was refused",
    "payment {id} was rejected with error {n}",
    "out of memory while reading {path}",
    "request {id} timed out after {ms} ms",
    "could not open {path} because permission was denied",
    "database error {n} and the transaction {hex} was rolled back",
    "worker {few} crashed with signal 11 at {hex}",
    "disk failure on {path} and {n} blocks were lost",
)
NAMED_NORMAL = (
    "customer {name} opened shop {name}",
    "feature {name} enabled for group {few}",
    "sent newsletter {name} to {n} readers",
    "profile of {name} was updated",
)
NAMED_ERRORS = (
    "plugin {name} failed to start and was disabled",
    "checksum of package {name} is wrong and it was dropped",
)
ERROR_SHARE, NAMED_SHARE, BROKEN_SHARE = 0.04, 0.01, 0.001
NAMES = 20_000
LABELS = ("normal", "error")


class Logs:
    """Lines, a function of the seed alone."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)
        letters = random.Random(0)  # the same words for every seed
        self._names = [
            "".join(letters.choice(("ka", "lo", "mi", "ter", "sun", "vo", "ri", "ben")) for _ in range(4))
            for _ in range(NAMES)
        ]
        self._fill: dict[str, Callable[[], str]] = {
            "id": lambda: (
                f"{self._bits(32):08x}-{self._bits(16):04x}-{self._bits(16):04x}-{self._bits(16):04x}-{self._bits(48):012x}"
            ),
            "hex": lambda: f"{self._bits(48):012x}",
            "n": lambda: str(self._bits(20)),
            "ms": lambda: str(self._bits(11)),
            "few": lambda: str(self._bits(4)),
            "port": lambda: str(1024 + self._bits(15)),
            "money": lambda: f"{self._bits(9)}.{self._bits(6):02d}",
            "ip": lambda: f"10.{self._bits(8)}.{self._bits(8)}.{self._bits(8)}",
            "path": lambda: f"/var/lib/app/{self._bits(12)}/part-{self._bits(16)}.dat",
            "name": lambda: self._names[min(NAMES - 1, int(self._random.paretovariate(0.35)) - 1)],
        }
        self._bits = self._random.getrandbits
        self._parsed = {
            source: self._parts(source) for own in (NORMAL, ERRORS, NAMED_NORMAL, NAMED_ERRORS) for source in own
        }

    @staticmethod
    def _parts(source: str) -> list[tuple[str, str]]:
        pieces = source.split("{")
        return [("", pieces[0]), *((name, rest) for name, _, rest in (piece.partition("}") for piece in pieces[1:]))]

    def message(self) -> tuple[str, str]:
        """Return a message and its class."""
        label = LABELS[self._random.random() < ERROR_SHARE]
        if self._random.random() < NAMED_SHARE:
            source = self._random.choice(NAMED_ERRORS if label == "error" else NAMED_NORMAL)
        else:
            own = ERRORS if label == "error" else NORMAL
            source = own[min(len(own) - 1, int(self._random.paretovariate(0.8)) - 1)]  # Zipf, about
        return "".join([(self._fill[name]() if name else "") + rest for name, rest in self._parsed[source]]), label

    def lines(self) -> Iterator[bytes]:
        """Yield lines, without end."""
        second = 1_750_000_000
        while True:
            second += self._random.random() < 0.02
            message, label = self.message()
            level = "ERROR" if label == "error" else "INFO"
            service, pod = self._random.choice(SERVICES), self._bits(6)
            line = (
                f'{{"ts":{second}.{self._bits(9)},"level":"{level}","service":"{service}","pod":"{service}-{pod}",'
                f'"trace":"{self._bits(64):016x}","message":"{message}"}}\n'
            ).encode()
            yield self._broken(line) if self._random.random() < BROKEN_SHARE else line

    def _broken(self, line: bytes) -> bytes:
        kind = self._bits(3)
        if kind < 3:
            return line[: len(line) // 2] + b"\n"
        if kind < 5:
            return line.replace(b'"message":"', b'"message":"\xff\xfe')
        if kind == 5:
            return line.replace(b" ", b"\0", 1)
        return (
            line.replace(b'"message"', b'"text"')
            if kind == 6
            else json.dumps({"message": self._bits(9)}).encode() + b"\n"
        )


def write_logs(path: Path, size: int, seed: int = 1) -> int:
    """Write lines of so many bytes, about; return how many lines."""
    count = written = 0
    with path.open("wb") as handle:
        for line in Logs(seed).lines():
            if written >= size:
                return count
            handle.write(line)
            written += len(line)
            count += 1
    return count


def examples(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Return so many messages of each class, to tune a prompt on, and their classes."""
    logs = Logs(seed)
    left = dict.fromkeys(LABELS, count)
    found: dict[str, str] = {}
    while any(left.values()):
        message, label = logs.message()
        if left[label] and message not in found:
            left[label] -= 1
            found[message] = label
    return list(found), list(found.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mb", type=float, default=100)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    print(write_logs(asked.out, int(asked.mb * 1_000_000), asked.seed), "lines")
