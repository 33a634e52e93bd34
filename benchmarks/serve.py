"""How fast prompts are served; writes benchmarks/results/serve.json.

    python benchmarks/serve.py [--models demo:minilm,demo:smollm2-135m] [--seconds 15] [--rounds 3]
        [--parts engine,http,ray,overload]

Texts are sentences of SST-2, each sent once; a prompt of each of four kinds is tuned for a moment on 16 of them (their
answers do not matter here, their shapes do), and served under several names. `engine`: in this process, rows of one
prompt and rows of 16, one text under 1 and under 8 prompts. `http`: `cuecraft serve` in a process of its own, loaded
from another one (serve_load.py): throughput next to the bare engine, in turns, medians; latency at half of that; PEFT
behind FastAPI and a Transformers pipeline, one request a forward pass. `ray`: one replica with all cores, next to
`cuecraft serve` without Ray, started in turns. `overload`: a minute of four times what the server can answer, with a
deadline for each request: what was answered and when, what was refused and how fast, and the server's memory meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from common import DATA, ROOT, machine, of_its_kind, read_result, require_data, rounds, seconds, write_result

from cuecraft import PromptClassifier
from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.data import read_records
from cuecraft.serving import Engine, EngineOptions, Shelf

PROMPTS = 16
RAY_PORT = 8317
CONNECTIONS = 64
IN_FLIGHT = 64  # texts that wait in the bare engine, as many as connections
PERCENTILES = ("p50_ms", "p95_ms", "p99_ms")
DEADLINES_MS = {"demo:minilm": 1000, "demo:smollm2-135m": 5000}
FLOOD, FLOOD_SECONDS, FLOOD_CONNECTIONS = 4, 60, 1024
LAST, FIRST = "{text}{prompt: It was}{mask}", "{prompt:Review:}{text} It was{mask}"
KINDS: dict[str, list[tuple[str, str | None, dict[str, Any]]]] = {
    "causal": [
        ("zero-shot", LAST, {}),
        ("prompt-tuning", LAST, {"epochs": 4, "prompt_length": 4, "learning_rate": 0.1}),
        ("deep-cue", LAST, {"epochs": 4, "learning_rate": 0.1}),
        ("prefix-tuning", FIRST, {"epochs": 4}),
    ],
    "sequence": [
        ("linear-probe", None, {}),
        ("prompt-tuning", None, {"epochs": 4, "prompt_length": 4, "learning_rate": 0.1}),
        ("deep-cue", None, {"epochs": 4, "learning_rate": 0.1}),
        ("prefix-tuning", None, {"epochs": 4}),
    ],
}


def sentences() -> list[str]:
    rows = read_records(DATA.parent / "sst2-full" / "train.jsonl")
    return list(dict.fromkeys(row.fields["text"] for row in rows))


def tuned(backbone: AnyBackbone, texts: Sequence[str], folder: Path) -> list[Path]:
    """Write `PROMPTS` artifacts, a prompt of each of four kinds under several names; their labels are made up."""
    kinds = KINDS[backbone.head_kind]
    found = [
        (method, of_its_kind(PromptClassifier(backbone, method, template=template, method_options=options), texts[:16]))
        for method, template, options in kinds
    ]
    paths = []
    for number in range(PROMPTS):
        method, own = found[number % len(found)]
        paths.append(folder / f"{method}-{number}")
        own.save(paths[-1])
    return paths


def shelf_of(backbone: AnyBackbone, folders: Sequence[Path]) -> Shelf:
    from cuecraft.artifact import load_artifact

    shelf = Shelf(backbone)
    for folder in folders:
        shelf.put(folder.name, [load_artifact(folder)])
    return shelf


class Texts:
    """Sentences, none of them twice."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._at = 0

    def next(self, count: int) -> list[str]:
        found = [self._texts[(self._at + n) % len(self._texts)] for n in range(count)]
        self._at += count
        return found


def engine_rate(engine: Engine, texts: Texts, names: Sequence[str], rows: int) -> float:
    """Return texts a second where `IN_FLIGHT` of them wait at any time, each with the next prompt."""
    waiting, own = [], texts.next(rows)
    begun = time.perf_counter()
    for number, text in enumerate(own):
        waiting.append(engine.submit([{"text": text}], [names[number % len(names)]]))
        if len(waiting) >= IN_FLIGHT:
            waiting.pop(0).result()
    for future in waiting:
        future.result()
    return rows / (time.perf_counter() - begun)


def engine_part(shelf: Shelf, texts: Texts, rows: int, count: int) -> dict[str, Any]:
    names = [served.name for served in shelf.all()]
    kinds = names[:4]
    engine = Engine(shelf, EngineOptions(max_wait_ms=0, max_queue=100_000))
    runs = {name: (lambda name=name: engine_rate(engine, texts, [name], rows)) for name in kinds}
    found = rounds(runs | {"mixed": lambda: engine_rate(engine, texts, names, rows)}, count)

    def under(prompts: Sequence[str]) -> float:
        own = texts.next(8)
        return seconds(lambda: [engine.ask([{"text": text}], prompts) for text in own]) / len(own)

    eight = [name for name in names if not name.startswith(("prefix", "linear"))][:8]
    several = rounds({"one": lambda: under(eight[:1]), "eight": lambda: under(eight)}, count)
    engine.close()
    one = statistics.mean(found[name] for name in kinds)
    return {
        "texts_per_second": found,
        "mixed_to_one": found["mixed"] / one,
        "one_text_seconds": several,
        "eight_prompts_to_one": several["eight"] / several["one"],
    }


@dataclass
class Started:
    """A server that runs.

    Args:
        address: where it answers.
        seconds: until it did.
        pid: of its process.
    """

    address: str
    seconds: float
    pid: int

    def memory_mb(self) -> float:
        """Return the memory that the process has in RAM, its children included."""
        own = psutil.Process(self.pid)
        return sum(part.memory_info().rss for part in [own, *own.children(recursive=True)]) / 2**20


@contextmanager
def process(*command: str) -> Iterator[Started]:
    """Start a server."""
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as own:
        assert own.stdout is not None
        try:
            for line in own.stdout:
                if "http://127.0.0.1" in line and "Application" not in line:  # Ray says so before all is ready
                    break
            else:
                raise SystemExit(f"{command}: did not start")
            # What it writes from here on is not read; a full pipe would stop it.
            drain = subprocess.Popen(["cat"], stdin=own.stdout, stdout=subprocess.DEVNULL)
            address = "http://127.0.0.1" + line.split("http://127.0.0.1", 1)[1].split('"')[0].split()[0]
            yield Started(address, time.perf_counter() - begun, own.pid)
        finally:
            own.terminate()
            drain.wait()


def loaded(kind: str, address: str, bodies: Path, options: dict[str, object]) -> dict[str, Any]:
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, str(ROOT / "benchmarks" / "serve_load.py"), kind, address, str(bodies), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def bodies_of(
    texts: Sequence[str], names: Sequence[str] | None, path: Path, more: dict[str, Any] | None = None
) -> Path:
    rows = [
        {"inputs": text} | ({"prompts": names[n % len(names)]} if names else {}) | (more or {})
        for n, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def http_part(
    name: str, shelf: Shelf, folders: list[Path], texts: Texts, rows: int, options: argparse.Namespace
) -> dict[str, Any]:
    scratch, deep = folders[0].parent, folders[2]
    length = {"seconds": options.seconds}
    ids = [folder.name for folder in folders]
    arguments = ["-m", "cuecraft", "serve", *map(str, folders), "--port", "0", "--model", name]
    engine = Engine(shelf, EngineOptions(max_queue=100_000))
    with process(*arguments) as server:

        def http(prompts: Sequence[str]) -> float:
            bodies = bodies_of(texts.next(20_000), prompts, scratch / "bodies")
            return loaded("closed", server.address, bodies, length | {"connections": CONNECTIONS})[
                "requests_per_second"
            ]

        rates = rounds(
            {
                "engine": lambda: engine_rate(engine, texts, [deep.name], rows),
                "http": lambda: http([deep.name]),
                "http mixed": lambda: http(ids),
            },
            options.rounds,
        )
        bodies = bodies_of(texts.next(20_000), [deep.name], scratch / "bodies")
        half = length | {"connections": 256, "rate": rates["http"] / 2}
        latencies = [loaded("open", server.address, bodies, half) for _ in range(options.rounds)]
        started = {"start_seconds": server.seconds, "memory_mb": server.memory_mb()}
    engine.close()
    latency = {key: statistics.median(own[key] for own in latencies) for key in ("requests_per_second", *PERCENTILES)}
    latency["errors"] = sum(own["errors"] for own in latencies)
    peers = {}
    for kind in ("peft", "pipeline"):
        with process(str(ROOT / "benchmarks" / "serve_peers.py"), kind, name) as peer:
            bodies = bodies_of(texts.next(20_000), None, scratch / "bodies")
            found = [
                loaded("closed", peer.address, bodies, length | {"connections": CONNECTIONS})
                for _ in range(options.rounds)
            ]
            peers[kind] = statistics.median(one["requests_per_second"] for one in found)
    return {
        "texts_per_second": rates | peers,
        "http_to_engine": rates["http"] / rates["engine"],
        "ahead_of": {kind: rates["http"] / rate for kind, rate in peers.items()},
        "at_half": latency,
        **started,
    }


def ray_part(name: str, folders: list[Path], texts: Texts, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the same server with and without Ray, each started twice, in turns."""
    base = ["-m", "cuecraft", "serve", *map(str, folders), "--model", name]
    cores = str(os.cpu_count() or 1)
    kinds = {
        "local": [*base, "--port", "0"],
        "ray": [*base, "--port", str(RAY_PORT), "--backend", "ray", "--option", f"scale.cpus={cores}"],
    }
    kinds["ray"] += ["--option", "scale.front_cpus=0"]
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    latencies: dict[str, float] = {}
    memory: dict[str, float] = {}
    for kind in [*kinds, *kinds]:
        with process(*kinds[kind]) as server:
            bodies = bodies_of(texts.next(20_000), [folders[2].name], folders[0].parent / "bodies")
            load = {"seconds": options.seconds, "connections": CONNECTIONS}
            rates[kind].append(loaded("closed", server.address, bodies, load)["requests_per_second"])
            one = loaded("closed", server.address, bodies, {"seconds": options.seconds / 2, "connections": 1})
            latencies[kind], memory[kind] = one["p50_ms"], server.memory_mb()
    found = {kind: statistics.median(own) for kind, own in rates.items()}
    return {
        "texts_per_second": found,
        "ray_to_local": found["ray"] / found["local"],
        "one_connection_p50_ms": latencies,
        "memory_mb": memory,
    }


def overload_part(name: str, folders: list[Path], texts: Texts, options: argparse.Namespace) -> dict[str, Any]:
    """Send a server four times what it can answer, for a minute."""
    path, deadline = folders[0].parent / "bodies", DEADLINES_MS[name]
    with process("-m", "cuecraft", "serve", *map(str, folders), "--port", "0", "--model", name) as server:
        bodies = bodies_of(texts.next(20_000), [folders[2].name], path)
        load = {"seconds": options.seconds, "connections": CONNECTIONS}
        reached = loaded("closed", server.address, bodies, load)["requests_per_second"]
        bodies = bodies_of(texts.next(40_000), [folders[2].name], path, {"timeout_ms": deadline})
        flood = {"seconds": FLOOD_SECONDS, "connections": FLOOD_CONNECTIONS, "rate": FLOOD * reached}
        memory: list[float] = []
        with ThreadPoolExecutor(1) as pool:
            flooded = pool.submit(loaded, "flood", server.address, bodies, flood)
            while not flooded.done():
                memory.append(server.memory_mb())
                time.sleep(1)
        found = flooded.result()
        after = loaded("closed", server.address, bodies_of(texts.next(20_000), [folders[2].name], path), load)
        sent = sum(found["statuses"].values()) / (FLOOD_SECONDS * 0.8)
    quarter = len(memory) // 4
    return {
        "reached_per_second": reached,
        "sent_per_second": sent,
        "deadline_ms": deadline,
        **found,
        "memory_mb": {
            "first quarter": statistics.median(memory[:quarter]),
            "last quarter": statistics.median(memory[-quarter:]),
        },
        "after_per_second": after["requests_per_second"],
    }


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    backbone = load_backbone(name)
    texts = sentences()
    rows = 600 if backbone.head_kind == "sequence" else 128
    with tempfile.TemporaryDirectory() as scratch:
        folders = tuned(backbone, texts, Path(scratch))
        shelf, source = shelf_of(backbone, folders), Texts(texts[32:])
        tokens = [len(ids) for ids in backbone.tokenizer(texts[:1000])["input_ids"]]
        found: dict[str, Any] = {"mean_tokens": statistics.mean(tokens)}
        if "engine" in options.parts:
            found["engine"] = engine_part(shelf, source, rows, options.rounds)
            print(name, json.dumps(found["engine"]), flush=True)
        if "http" in options.parts:
            found["http"] = http_part(name, shelf, folders, source, rows, options)
            print(name, json.dumps(found["http"]), flush=True)
        if "ray" in options.parts:
            found["ray"] = ray_part(name, folders, source, options)
            print(name, json.dumps(found["ray"]), flush=True)
        if "overload" in options.parts:
            found["overload"] = overload_part(name, folders, source, options) | {"machine": machine()}
            print(name, json.dumps(found["overload"]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="demo:minilm,demo:smollm2-135m")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load, a fifth of it warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default="engine,http,ray,overload")
    options = parser.parse_args()
    require_data()
    result = read_result("serve.json")
    for name in options.models.split(","):
        result[name] = result.get(name, {}) | measured(name, options) | {"machine": machine()}
    write_result("serve.json", result)


if __name__ == "__main__":
    main()
