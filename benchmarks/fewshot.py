"""Accuracy and time of every method on the 16-shot benchmark tasks; writes benchmarks/results/fewshot.json.

    python benchmarks/fewshot.py [--tasks sst-2,agnews,trec] [--seeds 13] [--test-size 500] [--model NAME]

Data: the folder CUECRAFT_DATA (default ../shared/data) with fewshot/<task>/seed-<s>/{train,dev}.jsonl and
fewshot/<task>/test.jsonl. Options of the methods are their defaults; the test rows choose nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

from common import DATA, machine, require_data, write_result

from cuecraft.backbone import load_backbone
from cuecraft.data import fingerprint, read_records, subsample
from cuecraft.methods.prepare import make_problem, make_task
from cuecraft.methods.problem import label_context
from cuecraft.study.compare import run_methods

METHODS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("zero-shot", "zero-shot", {}),
    ("calibrated", "zero-shot", {"calibration": "fitted"}),
    ("autoprompt", "autoprompt", {}),
    ("prompt-tuning", "prompt-tuning", {}),
    ("deep-cue", "deep-cue", {}),
    ("auto", "auto", {"preset": "fast"}),
)


def run_cell(model: str, task_name: str, seed: int, test_size: int) -> dict[str, object]:
    """Run all methods on one split; return one result row for each."""
    backbone = load_backbone(model)
    folder = DATA / task_name
    train, dev = (read_records(folder / f"seed-{seed}" / f"{part}.jsonl") for part in ("train", "dev"))
    test = subsample(read_records(folder / "test.jsonl"), test_size, 0)
    task = make_task(backbone, train)
    begun = time.perf_counter()
    problem = make_problem(backbone, task, train, dev, seed=seed)
    tested = label_context(backbone, task, task.examples(test))
    reading = time.perf_counter() - begun
    board = run_methods(problem, tested, METHODS)
    return {
        "task": task_name,
        "seed": seed,
        "test_rows": len(test),
        "test_sha256": fingerprint(test),
        "reading_seconds": round(reading, 1),
        "template": task.template.source,
        "winner_on_dev": board.winner.name,
        "rows": [
            {
                "method": row.name,
                "test_accuracy": round(row.test.primary, 4),
                "test_loss": round(row.test.loss, 4),
                "dev_accuracy": round(row.dev.primary, 4),
                "interval_95": [round(x, 4) for x in row.interval],
                "seconds": round(row.seconds, 1),
                "tuned_parameters": row.tuned_parameters,
                "stored_bytes": row.stored_bytes,
            }
            for row in board.rows
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="sst-2,agnews,trec")
    parser.add_argument("--seeds", default="13")
    parser.add_argument("--test-size", type=int, default=500)
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--out", default="fewshot.json", help="file name in benchmarks/results")
    options = parser.parse_args()
    require_data()
    cells = []
    for task in options.tasks.split(","):
        for seed in options.seeds.split(","):
            cells.append(run_cell(options.model, task, int(seed), options.test_size))
            print(json.dumps(cells[-1]), flush=True)
    write_result(options.out, {"model": options.model, "machine": machine(), "cells": cells})


if __name__ == "__main__":
    main()
