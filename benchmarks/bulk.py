"""How fast files are classified; writes benchmarks/results/bulk.json.

    python benchmarks/bulk.py [--parts modes,bare,memory,big,ray] [--model demo:smollm2-135m] [--modes-mb 0.6]
        [--memory-mb 100] [--big-mb 2000] [--work FOLDER]

Logs are made by bulk_logs.py (seeded; real ones would show the services of their owner). A deep cue is tuned on
16 messages of each class first. Each part is kept in the result file when it is done, so parts may be run one by one:

- modes: `cuecraft classify` with `--dedupe off` (plain), `exact`, `template`, and `template --cascade` over the same
  file of `--modes-mb`; every label compared with the plain one's, row by row.
- bare: the same rows of text through the serving engine in this process, all of them waiting in its queue, and through
  the backbone alone in length-sorted windows; what plain reaches of both.
- memory: template and cascade over `--memory-mb`; the peak of RAM, all processes together.
- big: the same over `--big-mb`; with memory done, the ratio of both peaks.
- ray: template and cascade over `--memory-mb` with one actor that has all cores.

The machine's disk needs space for the logs and half of that again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from bulk_logs import examples, write_logs
from common import machine, read_result, write_result

from cuecraft import PromptClassifier

RESULT = "bulk.json"
TEMPLATE = "{text}{prompt:\nIn one word, this log line is}{mask}"
WORDS = {"normal": ["normal", "fine"], "error": ["error", "failure"]}
MODES = {
    "plain": ["--dedupe", "off"],
    "exact": ["--dedupe", "exact"],
    "template": ["--dedupe", "template"],
    "cascade": ["--dedupe", "template", "--cascade"],
}
PARTS = ("modes", "bare", "memory", "big", "ray")


def tuned(model: str, folder: Path) -> Path:
    """Tune a deep cue on 16 messages of each class, unless that was done."""
    if not folder.is_dir():
        texts, labels = examples(32)
        own = PromptClassifier(model, "deep-cue", template=TEMPLATE, label_words=WORDS, seed=0)
        own.fit(texts[::2], labels[::2], dev=(texts[1::2], labels[1::2])).save(folder)
    return folder


def logs(folder: Path, megabytes: float) -> Path:
    """Return logs of so many megabytes, made unless they are there."""
    path = folder / f"logs-{megabytes:g}mb.jsonl"
    if not path.is_file():
        scratch = path.with_suffix(".part")
        write_logs(scratch, int(megabytes * 1_000_000))
        scratch.rename(path)
    return path


class Peak:
    """The most memory that a process and its children have in RAM together, looked at every fifth of a second."""

    def __init__(self, pid: int) -> None:
        self.mb = 0.0
        self._own, self._is_over = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._is_over.wait(0.2):
            total = 0
            try:
                for part in [self._own, *self._own.children(recursive=True)]:
                    total += part.memory_info().rss
            except psutil.Error:
                continue
            self.mb = max(self.mb, total / 2**20)

    def stop(self) -> float:
        self._is_over.set()
        self._thread.join()
        return self.mb


def classified(artifact: Path, source: Path, out: Path, flags: Sequence[str]) -> dict[str, Any]:
    """Run the command; return its document with the peak of memory (MiB) and its whole time, the start included."""
    command = [sys.executable, "-m", "cuecraft", "classify", str(artifact), str(source), "--field", "message"]
    command += ["--out", str(out), "--json", *flags]
    shutil.rmtree(out, ignore_errors=True)  # what was measured before, or was broken off
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as own:
        peak = Peak(own.pid)
        printed = own.communicate()[0]
        memory = peak.stop()
    if own.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {own.returncode}")
    found: dict[str, Any] = json.loads(printed)
    del found["out"]  # a place on this machine
    return found | {"peak_mib": round(memory, 1), "whole_seconds": round(time.perf_counter() - begun, 1)}


def labels_of(folder: Path) -> dict[str, str]:
    rows = (json.loads(line) for path in sorted(folder.glob("part-*.jsonl")) for line in path.open(encoding="utf-8"))
    return {row["id"]: row["label"] for row in rows}


def modes_part(artifact: Path, work: Path, asked: argparse.Namespace) -> dict[str, Any]:
    source = logs(work, asked.modes_mb)
    found: dict[str, Any] = {"megabytes": asked.modes_mb}
    plain: dict[str, str] = {}
    for name, flags in MODES.items():
        out = work / f"modes-{name}-{asked.modes_mb:g}mb"
        own = classified(artifact, source, out, flags)
        labels = labels_of(out)
        plain = plain or labels
        agreed = sum(plain[key] == label for key, label in labels.items())
        found[name] = own | {
            "rows_that_agree_with_plain": agreed / len(labels),
            "same_rows": labels.keys() == plain.keys(),
        }
        print(f"{name}: {own['rows_per_second']} rows/s, {agreed} of {len(labels)} agree", flush=True)
    return found


def bare_part(artifact: Path, work: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Measure the engine and the backbone alone over the plain mode's texts, in this process."""
    from cuecraft.artifact import load_artifact
    from cuecraft.backbone import load_backbone
    from cuecraft.serving import Engine, EngineOptions, Shelf
    from cuecraft.serving.registry import decide_mixed

    ids = labels_of(work / f"modes-plain-{asked.modes_mb:g}mb")
    texts = []
    for line in logs(work, asked.modes_mb).read_bytes().splitlines():
        try:
            message = json.loads(line)["message"]
        except (ValueError, KeyError):
            continue
        texts += [message] if isinstance(message, str) and "\0" not in message else []
    if len(texts) != len(ids):
        raise SystemExit(f"{len(texts)} texts, but plain classified {len(ids)}; run the part modes again")
    shelf = Shelf(load_backbone(asked.model))
    served = shelf.put("prompt", [load_artifact(artifact)])
    engine = Engine(shelf, EngineOptions(max_queue=len(texts)))
    engine.ask([{"text": texts[0]}], ["prompt"])
    begun = time.perf_counter()
    engine.ask([{"text": text} for text in texts], ["prompt"])
    # The engine reads texts that are alike once, and plain reads all of them: what is compared is texts that were read.
    rate = len(set(texts)) / (time.perf_counter() - begun)
    engine.close()
    begun = time.perf_counter()
    for start in range(0, len(texts), 512):
        window = [served.example({"text": text}) for text in texts[start : start + 512]]
        pieces = served.members[0].ready.renderer.fitted(window)[0]
        decide_mixed([(served, *row) for row in zip(window, pieces, strict=True)])
    alone = len(texts) / (time.perf_counter() - begun)
    found = read_result(RESULT)["modes"]["plain"]
    plain = found["computed"] / found["seconds"]
    return {
        "rows": len(texts),
        "rows_read_by_engine": len(set(texts)),
        "plain_rows_per_second": plain,
        "engine_rows_per_second": rate,
        "backbone_rows_per_second": alone,
        "plain_to_engine": plain / rate,
        "plain_to_backbone": plain / alone,
    }


def streamed(artifact: Path, work: Path, megabytes: float, name: str, flags: Sequence[str] = ()) -> dict[str, Any]:
    source = logs(work, megabytes)
    found = classified(artifact, source, work / f"{name}-{megabytes:g}mb", [*MODES["cascade"], *flags])
    return found | {"megabytes": megabytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="modes,bare,memory,big")
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--modes-mb", type=float, default=0.6)
    parser.add_argument("--memory-mb", type=float, default=100)
    parser.add_argument("--big-mb", type=float, default=2000)
    parser.add_argument(
        "--work",
        type=Path,
        help="folder for logs, the prompt and answers; logs and a prompt that are there are used again",
    )
    asked = parser.parse_args()
    parts = asked.parts.split(",")
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise SystemExit(f"there is no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as scratch:
        work = asked.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        artifact = tuned(asked.model, work / "prompt")
        runs = {
            "modes": lambda: modes_part(artifact, work, asked),
            "bare": lambda: bare_part(artifact, work, asked),
            "memory": lambda: streamed(artifact, work, asked.memory_mb, "memory"),
            "big": lambda: streamed(artifact, work, asked.big_mb, "big"),
            "ray": lambda: streamed(artifact, work, asked.memory_mb, "ray", ray_flags()),
        }
        for part in parts:
            print(f"{part} ...", flush=True)
            found = runs[part]()
            result = read_result(RESULT) | {"model": asked.model, part: found | {"machine": machine()}}
            if {"memory", "big"} <= set(result):
                result["peak_big_to_memory"] = result["big"]["peak_mib"] / result["memory"]["peak_mib"]
            write_result(RESULT, result)


def ray_flags() -> list[str]:
    cores = os.cpu_count() or 1
    return ["--backend", "ray", "--option", f"actors.cpus={cores}"]


if __name__ == "__main__":
    main()
