"""Accuracy against seconds; writes benchmarks/results/curves.json and docs/accuracy-curves.svg.

    python benchmarks/curves.py [--tasks sst-2,trec] [--seeds 13,21,42] [--methods deep-cue,lora] [--picture-only]

Deep cue, LoRA and PEFT's prompt tuning are run once for each task and seed, as `accuracy.py` runs them. After each
epoch the prompt that the method would ship then, the best on dev so far, is kept; all of them are scored on the 500
test rows when the training is over. So a point's seconds count reading, training and dev scoring up to its epoch, and
no test scoring. Loading a model is not counted. PEFT's loss is computed from the positions of the answers alone
(`AnswerOnlyLoop`), which is faster than its usual loop.

`auto`, `auto-fast` and `setfit` are the cells that `accuracy.py` has measured: one point each, where they end. A cell
that was measured next to other work is left out.

Runs are kept in curves.json and reused, so that the whole can be gathered over several starts; a run that is deleted
there is made again. `--picture-only` draws what curves.json has. No other work may run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from accuracy import (
    CELLS,
    METHODS,
    MODEL,
    PEFT,
    SEEDS,
    TASKS,
    VIRTUAL_TOKENS,
    Cell,
    against_truth,
    fit_peft,
    frozen,
    peft_run,
)
from common import RESULTS, ROOT, machine, read_result, require_data, write_result
from curves_picture import draw
from peers import fresh_model

from cuecraft.core.events import Scored
from cuecraft.methods import make_method
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.prepare import make_task
from cuecraft.methods.problem import Labelled, Method, Problem, Score, Selection, score
from cuecraft.study.compare.trial import run_trial

CURVES = ("deep-cue", "lora", "peft-prompt-tuning")
ENDS = ("auto-fast", "auto", "setfit")
RESULT, PICTURE = "curves.json", ROOT / "docs" / "accuracy-curves.svg"


@dataclass(frozen=True)
class Step:
    """Where a training stands after an epoch.

    Args:
        epoch: its number; 0 before the first one.
        seconds: since the training began.
        dev_loss: the least so far.
        shipped: what has that loss: a candidate, or tensors of an adapter.
    """

    epoch: int
    seconds: float
    dev_loss: float
    shipped: Any


@contextmanager
def every_best(keep: Callable[[int, float, Candidate], None], phase: str) -> Iterator[None]:
    """Have the best candidate so far given to `keep`, with its epoch and loss, after each epoch of a training.

    A method reports figures of its epochs, not the candidate, and scoring within the run would be on its clock. So the
    one place that sees every candidate is listened to.
    """
    see = Selection.see

    def seen(self: Selection, candidate: Candidate, train: Score, event: Scored, dev: Score | None = None) -> bool:
        is_best = see(self, candidate, train, event, dev)
        if event.phase == phase and self.best is not None and self.best_score is not None:
            keep(event.step or 0, self.best_score.loss, self.best)
        return is_best

    with patch.object(Selection, "see", seen):
        yield


def training_steps(method: Method, problem: Problem, test: Labelled) -> list[Step]:
    """Run a method once; return where it stood after each epoch."""
    steps: list[Step] = []
    begun = time.perf_counter()

    def keep(epoch: int, loss: float, best: Candidate) -> None:
        steps.append(Step(epoch, time.perf_counter() - begun, loss, best))

    with every_best(keep, method.name):
        trial = run_trial(method.name, method, problem, test)
    if not steps or steps[-1].shipped is not trial.outcome.best:
        raise SystemExit(f"{method.name} ships another prompt than its last epoch's best; its curve would be wrong")
    return steps


def training_curve(cell: Cell, name: str) -> list[dict[str, float]]:
    """Return the curve of a method of cuecraft's."""
    problem, test, reading = cell.prepare()
    steps = training_steps(make_method(*METHODS[name]), problem, test)
    return curve(steps, reading, lambda candidate: score(problem.backbone, candidate, test).primary)


def peft_curve(cell: Cell, name: str) -> list[dict[str, float]]:
    """Return the curve of a PEFT adapter."""
    wrap, rate = PEFT[name]
    task = make_task(frozen(), cell.examples()[0])
    test, labels = cell.test(), task.verbalizer.labels
    model = fresh_model(MODEL)
    steps: list[Step] = []
    torch.manual_seed(cell.seed)
    begun = time.perf_counter()
    run = peft_run(cell, task, wrap(model, VIRTUAL_TOKENS), rate)
    fit_peft(run, lambda epoch, loss, kept: steps.append(Step(epoch, time.perf_counter() - begun, loss, kept)))

    def accuracy(kept: list[torch.Tensor]) -> float:
        run.put(kept)
        return float(against_truth(run.predict(task.examples(test)), labels, test)["accuracy"])

    return curve(steps, 0.0, accuracy)


def curve(steps: Sequence[Step], reading: float, accuracy: Callable[[Any], float]) -> list[dict[str, float]]:
    """Return epoch, seconds, dev loss and test accuracy of each step; what ships for long is scored once."""
    known: dict[int, float] = {}
    for step in steps:
        if id(step.shipped) not in known:
            known[id(step.shipped)] = accuracy(step.shipped)
    return [
        {
            "epoch": step.epoch,
            "seconds": round(reading + step.seconds, 2),
            "dev_loss": step.dev_loss,
            "accuracy": known[id(step.shipped)],
        }
        for step in steps
    ]


def gather(cells: Sequence[Cell], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Return all runs, of which those that are not in curves.json yet are made now, and kept there one by one."""
    known = read_result(RESULT)
    runs: list[dict[str, Any]] = known.get("runs", [])
    for cell in cells:
        for method in methods:
            if any((run["task"], run["seed"], run["method"]) == (cell.task, cell.seed, method) for run in runs):
                continue
            print(f"{cell.task} {cell.seed} {method} ...", flush=True)
            points = (peft_curve if method in PEFT else training_curve)(cell, method)
            own = {"task": cell.task, "seed": cell.seed, "method": method}
            runs.append(own | {"machine": machine(), "epochs": points})
            (RESULTS / RESULT).write_text(json.dumps(known | {"runs": runs}) + "\n", encoding="utf-8")
            last = points[-1]
            print(f"{cell.task} {cell.seed} {method}: accuracy {last['accuracy']:.3f}, {last['seconds']} s", flush=True)
    return runs


def ends() -> list[dict[str, Any]]:
    """Return the end points of what `accuracy.py` has measured with nothing else running."""
    found = []
    for task in TASKS:
        for seed in SEEDS:
            for method in ENDS:
                path = CELLS / f"{task}-{seed}-{method}.json"
                if not path.is_file():
                    continue
                cell = json.loads(path.read_text(encoding="utf-8"))
                if cell["beside_other_work"]:
                    print(f"{path.stem} is left out: its seconds were measured next to other work", flush=True)
                    continue
                found.append({key: cell[key] for key in ("task", "seed", "method", "seconds", "accuracy", "machine")})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--methods", default=",".join(CURVES))
    parser.add_argument("--picture-only", action="store_true", help="draw what curves.json has; measure nothing")
    options = parser.parse_args()
    if options.picture_only:
        result = read_result(RESULT)
        if not result:
            raise SystemExit(f"{RESULTS / RESULT} is not there; run this without --picture-only first")
        draw(result, PICTURE)
        return
    require_data()
    methods = options.methods.split(",")
    if unknown := set(methods) - set(CURVES):
        raise SystemExit(f"unknown methods {', '.join(sorted(unknown))}; choose from {', '.join(CURVES)}")
    cells = [Cell(task, int(seed)) for task in options.tasks.split(",") for seed in options.seeds.split(",")]
    result = {"runs": gather(cells, methods), "ends": ends(), "machine": machine()}
    write_result(RESULT, result)
    draw(result, PICTURE)


if __name__ == "__main__":
    main()
