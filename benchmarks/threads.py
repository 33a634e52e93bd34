"""Texts a second of one caller and of eight callers in threads over one backbone.

    python benchmarks/threads.py [--rounds 5] [--seconds 4] [--models tiny,demo:smollm2-135m] [--write]

Each caller answers four texts at a time, with a prompt of its own and by one `mixed_logits` for them, as a server's
engine does. Three ways take turns in one process, so that a busy machine slows all of them alike: one caller; eight
callers; and eight callers that wait for each other before each call, as all did while a pass changed the model. Every
answer is compared with the one of a caller alone. Reported are medians over rounds, and of the ratios within a round.
The last line is one JSON object; --write keeps it in benchmarks/results/threads.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch
from common import machine, write_result

from cuecraft.artifact import HardPrompt
from cuecraft.backbone import load_backbone
from cuecraft.task import Example, Task, Template, Verbalizer

CALLERS = 8
TEXTS = ("a joy from start to finish", "dull", "the plot is a mess and the actors are bored", "warm, bright and funny")
TOGETHER = 4
TOLERANCE = 1e-4


def backbone_of(name: str) -> Any:
    """Return a backbone by name; `tiny` has random weights and two layers of width 32."""
    if name != "tiny":
        return load_backbone(name)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from conftest import byte_tokenizer, make_causal

    tokenizer = byte_tokenizer.__wrapped__()
    return load_backbone((make_causal(tokenizer), tokenizer))


def callers(backbone: Any) -> list[Callable[[], float]]:
    """Return what each caller does: answers four texts, and returns the distance to its answers alone."""
    task = Task(Template("{text}{prompt}{mask}"), Verbalizer(("negative", "positive"), (("bad",), ("good",))))
    words = [backbone.tokenizer(f" it was {n}", add_special_tokens=False)["input_ids"] for n in range(CALLERS)]

    def caller(number: int) -> Callable[[], float]:
        ready = backbone.ready(HardPrompt(tuple(words[number])), task)
        examples = [Example({"text": f"{TEXTS[n % len(TEXTS)]} {number}"}) for n in range(TOGETHER)]
        rows = [(ready, piece) for piece in ready.renderer.render(examples)]
        alone = torch.stack(backbone.mixed_logits(rows))
        return lambda: float((torch.stack(backbone.mixed_logits(rows)) - alone).abs().max())

    return [caller(number) for number in range(CALLERS)]


def speed(works: list[Callable[[], float]], seconds: float, waiting: AbstractContextManager[Any]) -> float:
    """Return the texts a second of callers that begin at once and call again until the time is over."""
    barrier = threading.Barrier(len(works) + 1)
    counts, worst = [0] * len(works), [0.0] * len(works)
    end = [0.0]

    def run(number: int, work: Callable[[], float]) -> None:
        barrier.wait()
        while time.perf_counter() < end[0]:
            with waiting:
                worst[number] = max(worst[number], work())
            counts[number] += 1

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    begun = time.perf_counter()
    end[0] = begun + seconds
    barrier.wait()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begun
    if max(worst) > TOLERANCE:
        raise SystemExit(f"a caller got another answer than alone (distance {max(worst):.2g})")
    return TOGETHER * sum(counts) / took


def measured(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the medians of one backbone."""
    works = callers(backbone_of(name))
    ways: dict[str, tuple[list[Callable[[], float]], AbstractContextManager[Any]]] = {
        "one caller": (works[:1], nullcontext()),
        f"{CALLERS} callers": (works, nullcontext()),
        f"{CALLERS} callers, one at a time": (works, threading.Lock()),
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, (own, waiting) in ways.items():
            texts = speed(own, seconds, waiting)
            if number:  # the first round warms caches
                found[way].append(texts)
                print(f"{name}, round {number}: {way}: {texts:.1f} texts a second", flush=True)
    one, free, waited = found.values()
    return {
        "texts_per_second": {way: round(statistics.median(own), 1) for way, own in found.items()},
        "eight_over_one": round(statistics.median(a / b for a, b in zip(free, one, strict=True)), 3),
        "eight_over_one_at_a_time": round(statistics.median(a / b for a, b in zip(free, waited, strict=True)), 3),
        "all": {way: [round(value, 1) for value in own] for way, own in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--models", default="tiny,demo:smollm2-135m")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    result = {
        "callers": CALLERS,
        "texts_together": TOGETHER,
        "rounds": asked.rounds,
        "seconds": asked.seconds,
        "torch_threads": torch.get_num_threads(),
        "models": {name: measured(name, asked.rounds, asked.seconds) for name in asked.models.split(",")},
        "machine": machine(),
    }
    if asked.write:
        write_result("threads.json", result)
    else:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
