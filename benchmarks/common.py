"""What the benchmarks share: data, rounds, memory, and a description of the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CUECRAFT_DATA", ROOT.parent / "shared" / "data")) / "fewshot"
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "cuecraft",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "setfit",
    "sentence-transformers",
    "numpy",
    "scikit-learn",
    "orjson",
    "ray",
    "onnxruntime",
    "openvino",
)


def require_data() -> None:
    """Leave with a message where the benchmark data is absent."""
    if not DATA.is_dir():
        raise SystemExit(f"benchmark data is not at {DATA}; set CUECRAFT_DATA. Nothing was run.")


#: What each method ships where it learned something.
SHIPPED = {
    "zero-shot": "hard",
    "linear-probe": "hard",
    "prompt-tuning": "soft",
    "deep-cue": "deep",
    "prefix-tuning": "prefix",
}


def of_its_kind(classifier: Any, texts: Sequence[str]) -> Any:
    """Fit a classifier on made-up labels, so that it ships a prompt of its method's kind.

    What is shipped by default is the start where nothing better on held-out texts was found; so they are the same here.
    """
    labels = [("negative", "positive")[n % 2] for n in range(len(texts))]
    classifier.fit(texts, labels, dev=(texts, labels))
    found = classifier.artifact_.prompt.kind
    if found != SHIPPED[classifier.method]:
        raise SystemExit(f"{classifier.method} has shipped a {found}, so nothing would be measured of it")
    return classifier


def seconds(run: Callable[[], object]) -> float:
    """Return how long a call takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def rounds(runs: Mapping[str, Callable[[], float]], count: int) -> dict[str, float]:
    """Return the median of what each run measures, over `count` rounds that take the runs in turn.

    A first round warms up and is not counted.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(count + 1):
        for name, run in runs.items():
            value = run()
            if number:
                found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def machine() -> dict[str, object]:
    """Describe what the figures were measured on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "src"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else ""),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": versions,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def read_result(name: str) -> dict[str, Any]:
    """Return a result file, or nothing where there is none."""
    path = RESULTS / name
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def kept(path: Path, is_busy: bool, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a cell's result, made now and kept as a file unless there is one.

    Args:
        path: of the file.
        is_busy: whether other work runs meanwhile.
        make: measures it; its metrics (or its accuracy) and its seconds are printed.
    """
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    print(f"{path.stem} ...", flush=True)
    result = make() | {"beside_other_work": is_busy, "machine": machine()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    metrics = result["metrics"] if "metrics" in result else {"accuracy": result["accuracy"]}
    shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    print(f"{path.stem}: {shown}, {result['seconds']} s", flush=True)
    return result


def stored(folder: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_result(name: str, result: Mapping[str, object], folder: Path = RESULTS) -> None:
    """Write a result file, and the result as the last line of the output."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result), flush=True)
