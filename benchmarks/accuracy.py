"""What `auto` gains over the alternatives; writes benchmarks/results/accuracy/ and its summary accuracy.json.

    python benchmarks/accuracy.py [--tasks sst-2,agnews,trec] [--seeds 13,21,42] [--methods auto,lora] [--busy]

The field's 16-shot splits, SmolLM2-135M, the same 500 test rows for all. Every cell (task, seed, method) is a file of
its own that is kept and reused, so that the whole can be gathered over several starts; a deleted file is made again.
Nothing is chosen by a test row. The baselines train on `train` and stop on `dev`; `auto` decides by itself how it uses
both. PEFT runs as its documentation has it: learning rates 0.03 (prompt tuning, from a text) and 0.01 (prefix-tuning),
eight virtual tokens before the text, loss on the answer's tokens; and gets the words behind the text that all methods
start from, early stopping on dev, and is read over label words only. Its loss and answers are computed from the
positions of the answers alone (`AnswerOnlyLoop`), which changes its seconds and not its numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import torch
from common import DATA, RESULTS, machine, require_data, write_result
from peers import AnswerOnlyLoop, fresh_model, peft_prefix_tuning, peft_prompt_tuning, thrifty_peft_predict
from torch.nn import functional

from cuecraft.backbone import CausalBackbone, load_backbone
from cuecraft.compare.trial import run_trial
from cuecraft.data import Record, read_records, subsample
from cuecraft.deadline import Deadline
from cuecraft.method import Labelled, Problem, label_context, score
from cuecraft.seeding import torch_generator
from cuecraft.task import Example, Task
from cuecraft.tune import make_method
from cuecraft.tune.prepare import make_problem, make_task

MODEL = "demo:smollm2-135m"
TASKS, SEEDS = ("sst-2", "agnews", "trec"), (13, 21, 42)
TEST_ROWS = 500
EPOCHS, PATIENCE = 30, 8  # the defaults of cuecraft's own training loop
LIMITS = {"sst-2": 600.0, "agnews": 1800.0, "trec": 1800.0}  # seconds that `auto` gets
CELLS = RESULTS / "accuracy"

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "auto": ("auto", {"preset": "good"}),
    "untuned": ("zero-shot", {}),
    "calibrated": ("zero-shot", {"calibration": "fitted"}),
    "linear-probe": ("linear-probe", {}),
    "deep-cue": ("deep-cue", {}),
    "first-order": ("first-order", {}),
    "lora": ("lora", {}),
    "full": ("full", {}),
}
INSTRUCTION = "Read the text and say what it is."
PEFT: dict[str, tuple[Callable[[Any, int], Any], float]] = {
    "peft-prompt-tuning": (partial(peft_prompt_tuning, text=INSTRUCTION), 3e-2),
    "peft-prefix-tuning": (peft_prefix_tuning, 1e-2),
}
#: Nearest to what was published: no words of a person's to start from, every candidate scored in full, no calibration.
#: It is our search all the same: candidates are compared with the incumbent on the same rows, and its start competes.
PLAIN_AUTOPROMPT = {"scoring": "exact", "calibration": "none", "prompt_length": 5}
ALL = (*METHODS, *PEFT, "plain-autoprompt")
VIRTUAL_TOKENS = 8


@dataclass(frozen=True)
class Cell:
    """One task with one seed's examples, ready to be solved."""

    task: str
    seed: int

    def records(self) -> tuple[list[Record], list[Record], list[Record]]:
        folder = DATA / self.task
        train, dev = (read_records(folder / f"seed-{self.seed}" / f"{part}.jsonl") for part in ("train", "dev"))
        return train, dev, subsample(read_records(folder / "test.jsonl"), TEST_ROWS, 0)

    def prepare(self, template: str | None = None, limit: float | None = None) -> tuple[Problem, Labelled, float]:
        """Return the problem, the test rows, read before any clock runs, and the seconds of reading the rest."""
        train, dev, _ = self.records()
        task = make_task(frozen(), train, template)
        test = tested(self, task)
        begun = time.perf_counter()
        problem = make_problem(frozen(), task, train, dev, seed=self.seed, deadline=Deadline(limit))
        return problem, test, time.perf_counter() - begun


@cache
def frozen() -> CausalBackbone:
    """Load the backbone once: no method changes it."""
    backbone = load_backbone(MODEL)
    assert isinstance(backbone, CausalBackbone)
    return backbone


_TESTED: dict[tuple[str, Task], Labelled] = {}


def tested(cell: Cell, task: Task) -> Labelled:
    """Return the test rows, which are read once for all seeds of a task."""
    if (cell.task, task) not in _TESTED:
        _TESTED.clear()
        _TESTED[cell.task, task] = label_context(frozen(), task, task.examples(cell.records()[2]))
    return _TESTED[cell.task, task]


def run_cell(cell: Cell, method: str) -> dict[str, Any]:
    """Run one method on one cell."""
    if method in PEFT:
        return run_peft(cell, *PEFT[method])
    if method == "plain-autoprompt":
        name, options, template = "autoprompt", PLAIN_AUTOPROMPT, "{text}{prompt}{mask}"
    else:
        (name, options), template = METHODS[method], None
    problem, test, reading = cell.prepare(template, LIMITS.get(cell.task) if method == "auto" else None)
    trial = run_trial(method, make_method(name, options), problem, test)
    return {
        "accuracy": trial.test.accuracy,
        "loss": trial.test.loss,
        "dev_loss": trial.dev.loss,
        "seconds": round(trial.seconds + reading, 1),
        "tuned": trial.outcome.is_tuned,
        "own_untuned_accuracy": score(problem.backbone, trial.outcome.start, test).accuracy,
        "verdict": trial.outcome.verdict.document() if trial.outcome.verdict else None,
        "tried": [asdict(row) for row in trial.outcome.tried],
        "options": trial.method.model_dump(mode="json"),
        "predictions": trial.predictions.tolist(),
    }


def run_peft(cell: Cell, wrap: Callable[[Any, int], Any], rate: float) -> dict[str, Any]:
    """Train a PEFT adapter with early stopping on dev."""
    backbone = frozen()
    train, dev, test = cell.records()
    task = make_task(backbone, train)
    torch.manual_seed(cell.seed)
    begun = time.perf_counter()
    model = wrap(fresh_model(MODEL), VIRTUAL_TOKENS)
    words = backbone.renderer(task).prompt_ids
    loop = AnswerOnlyLoop(model, backbone, task, task.examples(train), words, rate)

    def predict(examples: Sequence[Example]) -> torch.Tensor:
        model.eval()
        found = thrifty_peft_predict(model, backbone, task, examples, words)
        model.train()
        return found

    loss, epoch = fit_peft(loop, predict, task.examples(dev), cell.seed)
    seconds = time.perf_counter() - begun
    logits = predict(task.examples(test))
    truth = torch.tensor([task.verbalizer.index(str(record.label)) for record in test])
    return {
        "accuracy": float((logits.argmax(-1) == truth).double().mean()),
        "loss": float(functional.cross_entropy(logits, truth)),
        "dev_loss": loss,
        "seconds": round(seconds, 1),
        "best_epoch": epoch,
        "options": {"learning_rate": rate, "virtual_tokens": VIRTUAL_TOKENS},
        "predictions": logits.argmax(-1).tolist(),
    }


def fit_peft(
    loop: AnswerOnlyLoop, predict: Callable[[Sequence[Example]], torch.Tensor], dev: Sequence[Example], seed: int
) -> tuple[float, int]:
    """Train until dev loss has not fallen for `PATIENCE` epochs; go back to the best. Return its dev loss and epoch."""
    truth = torch.tensor([example.label for example in dev])
    trained = [parameter for parameter in loop.model.parameters() if parameter.requires_grad]
    order = torch_generator(seed, "order")
    best, best_epoch, kept = float("inf"), 0, [p.detach().clone() for p in trained]
    for epoch in range(EPOCHS + 1):
        if epoch:
            loop.epoch(torch.randperm(len(loop.texts), generator=order).tolist())
        loss = float(functional.cross_entropy(predict(dev), truth))
        if loss < best:
            best, best_epoch, kept = loss, epoch, [p.detach().clone() for p in trained]
        if epoch - best_epoch >= PATIENCE:
            break
    with torch.no_grad():
        for parameter, value in zip(trained, kept, strict=True):
            parameter.copy_(value)
    return best, best_epoch


def gather(cell: Cell, method: str, busy: bool) -> dict[str, Any]:
    """Return a cell's result, made now unless there is a file of it."""
    path = CELLS / f"{cell.task}-{cell.seed}-{method}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    print(f"{path.stem} ...", flush=True)
    result = {"task": cell.task, "seed": cell.seed, "method": method} | run_cell(cell, method)
    result |= {"beside_other_work": busy, "machine": machine()}
    CELLS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(f"{path.stem}: accuracy {result['accuracy']:.3f}, {result['seconds']} s", flush=True)
    return result


def summary(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return each method's accuracies, and what is asked of `auto`, over the cells that there are."""
    by_method = {name: [cell for cell in cells if cell["method"] == name] for name in ALL}
    rows = {name: method_row(own) for name, own in by_method.items() if own}
    return {"methods": rows, "asked": asked(by_method) | {"sd_over_seeds": sds(rows)}}


def method_row(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one method's mean accuracy, and its mean and sd over seeds on each task."""
    tasks: dict[str, Any] = {}
    for name in dict.fromkeys(cell["task"] for cell in cells):
        found = [cell["accuracy"] for cell in cells if cell["task"] == name]
        sd = statistics.stdev(found) if len(found) > 1 else None
        tasks[name] = {"accuracy": found, "mean": statistics.mean(found), "sd": sd}
    sds = [task["sd"] for task in tasks.values() if task["sd"] is not None]
    return {
        "runs": len(cells),
        "mean": statistics.mean(cell["accuracy"] for cell in cells),
        "mean_sd_over_seeds": statistics.mean(sds) if sds else None,
        "seconds": {name: [cell["seconds"] for cell in cells if cell["task"] == name] for name in tasks},
        "tasks": tasks,
    }


def sds(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean over tasks of the sd over seeds of `auto` and of PEFT's prompt tuning, and their ratio."""
    own, other = (rows.get(name, {}).get("mean_sd_over_seeds") for name in ("auto", "peft-prompt-tuning"))
    return {"auto": own, "peft-prompt-tuning": other, "ratio": own / other if own is not None and other else None}


def asked(cells: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return how `auto` stands to each method, on the runs that both have, and what else is asked of it."""
    own = {(cell["task"], cell["seed"]): cell for cell in cells["auto"]}
    ahead = {}
    for name, others in cells.items():
        pairs = [(own.get((cell["task"], cell["seed"])), cell) for cell in others]
        differences = [auto["accuracy"] - cell["accuracy"] for auto, cell in pairs if auto is not None]
        if name != "auto" and differences:
            ahead[name] = {"runs": len(differences), "mean": statistics.mean(differences), "least": min(differences)}
    to_untuned = [cell["accuracy"] - cell["own_untuned_accuracy"] for cell in own.values()]
    longest: dict[str, float] = {}
    for cell in own.values():
        if not cell["beside_other_work"]:
            longest[cell["task"]] = max(longest.get(cell["task"], 0.0), cell["seconds"])
    return {
        "ahead_of": ahead,
        "least_to_own_untuned": min(to_untuned, default=None),
        "limit_seconds": LIMITS,
        "longest_seconds": longest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--methods", default=",".join(ALL))
    parser.add_argument("--busy", action="store_true", help="other work runs beside: its seconds are not to be used")
    options = parser.parse_args()
    require_data()
    for task in options.tasks.split(","):
        for method in options.methods.split(","):
            for seed in options.seeds.split(","):
                gather(Cell(task, int(seed)), method, options.busy)
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(CELLS.glob("*.json"))]
    write_result("accuracy.json", summary(cells) | {"machine": machine()})


if __name__ == "__main__":
    main()
