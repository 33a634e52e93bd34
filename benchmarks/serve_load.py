"""A client that loads a server: many connections, HTTP/1.1 written by hand, nothing that costs the server its cores.

    python benchmarks/serve_load.py closed ADDRESS BODIES --connections 32 --seconds 10
    python benchmarks/serve_load.py open ADDRESS BODIES --rate 100 --seconds 10
    python benchmarks/serve_load.py flood ADDRESS BODIES --rate 4000 --seconds 60 --connections 1024

BODIES is a file with a request's body a line, sent in turn. `closed`: each connection sends its next request when it
has its answer. `open`: requests come at random times (Poisson) whatever the answers; latency counts from the time that
a request was due. `flood`: the same, and latency counts from the time that it was sent, for one that no connection
was free to send was never asked of the server. Prints one JSON object: requests answered, how many came back with
each status (0: the connection was lost), latencies in milliseconds of those answered and of those refused (429, 503).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

WARM_UP = 0.2  # of the time, not counted


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, gap, body = self._buffer.partition(b"\r\n\r\n")
        if not gap:
            return
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(body) >= length and self._answer is not None:
            self._buffer = b""
            answer, self._answer = self._answer, None
            answer.set_result(int(head.split(b" ", 2)[1]))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)

    async def ask(self, request: bytes) -> int:
        """Send a request; return its status, 0 where the connection is lost."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)  # type: ignore[attr-defined]
        return await self._answer


def requests(address: str, path: str, bodies: list[bytes]) -> Iterator[bytes]:
    where = urlsplit(address)
    head = f"POST {path} HTTP/1.1\r\nhost: {where.netloc}\r\ncontent-type: application/json\r\ncontent-length: "
    return itertools.cycle([f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies])


class Tally:
    """What came back, after the warm-up."""

    def __init__(self, seconds: float) -> None:
        self.begun = time.perf_counter()
        self.counted_from = self.begun + WARM_UP * seconds
        self.until = self.begun + seconds
        self.latencies: dict[int, list[float]] = defaultdict(list)  # by status

    def note(self, begun: float, status: int) -> None:
        now = time.perf_counter()
        if self.counted_from <= now <= self.until:
            self.latencies[status].append(1000 * (now - begun))

    def document(self) -> dict[str, Any]:
        answered, refused = sorted(self.latencies[200]), sorted(self.latencies[429] + self.latencies[503])
        statuses = {str(status): len(own) for status, own in sorted(self.latencies.items()) if own}
        seconds = self.until - self.counted_from
        return {
            "requests_per_second": len(answered) / seconds,
            "requests": len(answered),
            "errors": sum(statuses.values()) - len(answered),
            "statuses": statuses,
            **{f"p{q}_ms": _at(answered, q) for q in (50, 95, 99, 100)},
            "refused_p50_ms": _at(refused, 50),
            "refused_p99_ms": _at(refused, 99),
        }


def _at(ordered: list[float], percent: int) -> float | None:
    """Return a percentile; None of nothing."""
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else None


async def closed(connections: list[Connection], source: Iterator[bytes], tally: Tally) -> None:
    async def work(connection: Connection) -> None:
        while (due := time.perf_counter()) < tally.until:
            tally.note(due, await connection.ask(next(source)))

    await asyncio.gather(*(work(connection) for connection in connections))


async def open_loop(
    connections: list[Connection], source: Iterator[bytes], tally: Tally, rate: float, kind: str
) -> None:
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for connection in connections:
        free.put_nowait(connection)
    random_times, due, tasks = random.Random(0), time.perf_counter(), set()

    async def one(due: float) -> None:
        connection = await free.get()  # bounded: where all are busy a request waits here, and `open` counts that
        begun = due if kind == "open" else time.perf_counter()
        tally.note(begun, await connection.ask(next(source)))
        free.put_nowait(connection)

    while due < tally.until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        due += random_times.expovariate(rate)
    if tasks:
        await asyncio.wait(tasks, timeout=30)


async def load(options: argparse.Namespace) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    where = urlsplit(options.address)
    made = [await loop.create_connection(Connection, where.hostname, where.port) for _ in range(options.connections)]
    connections = [connection for _, connection in made]
    source = requests(options.address, options.path, Path(options.bodies).read_bytes().splitlines())
    tally = Tally(options.seconds)
    if options.kind == "closed":
        await closed(connections, source, tally)
    else:
        await open_loop(connections, source, tally, options.rate, options.kind)
    for connection in connections:
        connection.transport.close()
    return tally.document()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["closed", "open", "flood"])
    parser.add_argument("address")
    parser.add_argument("bodies")
    parser.add_argument("--path", default="/v1/classify")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    print(json.dumps(asyncio.run(load(parser.parse_args()))))


if __name__ == "__main__":
    main()
