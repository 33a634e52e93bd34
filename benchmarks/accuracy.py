"""What `auto` gains over the alternatives; writes benchmarks/results/accuracy/ and its summary accuracy.json.

    python benchmarks/accuracy.py [--tasks sst-2,agnews,trec] [--seeds 13,21,42] [--methods auto,lora] [--busy]

The field's 16-shot splits, SmolLM2-135M, the same 500 test rows for all. Every cell (task, seed, method) is a file of
its own that is kept and reused, so that the whole can be gathered over several starts; a deleted file is made again.
Nothing is chosen by a test row. The baselines train on `train` and stop on `dev`; `auto` decides by itself how it uses
both. `auto-fast` is `auto` with the preset `fast`. No time limit is set, so that a cell can be made again bit for bit.

PEFT runs as its documentation has it: learning rates 0.03 (prompt tuning, from a text) and 0.01 (prefix-tuning), eight
virtual tokens before the text, loss on the answer's tokens; and gets the words behind the text that all methods start
from, early stopping on dev, and is read over label words only. Its loss and answers are computed from the positions of
the answers alone (`AnswerOnlyLoop`), which changes its seconds and not its numbers.

`setfit` is SetFit (Tunstall et al., 2022, arXiv 2209.11055) on another model: the sentence encoder of `demo:minilm`. It
learns from the examples of `train` and `dev` together, as `auto` does, and from the bare texts, without a template.
Pairs of texts are drawn for ten iterations and trained on for one epoch; nothing is chosen by dev. Its seconds count
drawing, training and the class head, not the loading of the model. It is left out where SetFit is not installed; `make
bench-setfit` runs it in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import DATA, RESULTS, kept, machine, require_data, stored, write_result
from peers import (
    SETFIT_OPTIONS,
    AnswerOnlyLoop,
    fresh_model,
    peft_prefix_tuning,
    peft_prompt_tuning,
    setfit_missing,
    setfit_model,
    setfit_probabilities,
    setfit_train,
    thrifty_peft_predict,
)
from torch.nn import functional

from cuecraft.backbone import CausalBackbone, load_backbone
from cuecraft.core.assets import model_folder
from cuecraft.core.seeding import torch_generator
from cuecraft.data import Record, read_records, subsample
from cuecraft.methods import make_method
from cuecraft.methods.prepare import make_problem, make_task
from cuecraft.methods.problem import Labelled, Problem, label_context, score
from cuecraft.study.compare.trial import run_trial
from cuecraft.task import Example, Task

MODEL = "demo:smollm2-135m"
SENTENCE_MODEL = "demo:minilm"  # SetFit's
TASKS, SEEDS = ("sst-2", "agnews", "trec"), (13, 21, 42)
TEST_ROWS = 500
EPOCHS, PATIENCE = 30, 8  # the defaults of cuecraft's own training loop
CELLS = RESULTS / "accuracy"

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "auto": ("auto", {"preset": "good"}),
    "auto-fast": ("auto", {"preset": "fast"}),
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
ALL = (*METHODS, *PEFT, "plain-autoprompt", "setfit")
VIRTUAL_TOKENS = 8


@dataclass(frozen=True)
class Cell:
    """One task with one seed's examples, ready to be solved."""

    task: str
    seed: int

    def examples(self) -> tuple[list[Record], list[Record]]:
        folder = DATA / self.task / f"seed-{self.seed}"
        return read_records(folder / "train.jsonl"), read_records(folder / "dev.jsonl")

    def test(self) -> list[Record]:
        return subsample(read_records(DATA / self.task / "test.jsonl"), TEST_ROWS, 0)

    def prepare(self, template: str | None = None) -> tuple[Problem, Labelled, float]:
        """Return the problem, the test rows, read before any clock runs, and the seconds of reading the rest."""
        train, dev = self.examples()
        task = make_task(frozen(), train, template)
        test = tested(self, task)
        begun = time.perf_counter()
        problem = make_problem(frozen(), task, train, dev, seed=self.seed)
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
        _TESTED[cell.task, task] = label_context(frozen(), task, task.examples(cell.test()))
    return _TESTED[cell.task, task]


def run_cell(cell: Cell, method: str) -> dict[str, Any]:
    """Run one method on one cell."""
    if method in PEFT:
        return run_peft(cell, *PEFT[method])
    if method == "setfit":
        return run_setfit(cell)
    if method == "plain-autoprompt":
        name, options, template = "autoprompt", PLAIN_AUTOPROMPT, "{text}{prompt}{mask}"
    else:
        (name, options), template = METHODS[method], None
    problem, test, reading = cell.prepare(template)
    trial = run_trial(method, make_method(name, options), problem, test)
    return {
        "accuracy": trial.test.primary,
        "loss": trial.test.loss,
        "dev_loss": trial.dev.loss,
        "seconds": round(trial.seconds + reading, 1),
        "tuned": trial.outcome.is_tuned,
        "own_untuned_accuracy": score(problem.backbone, trial.outcome.start, test).primary,
        "verdict": trial.outcome.verdict.document() if trial.outcome.verdict else None,
        "tried": [row.document() for row in trial.outcome.tried],
        "options": trial.method.model_dump(mode="json"),
        "predictions": trial.predictions.tolist(),
    }


@dataclass(frozen=True)
class PeftRun:
    """A PEFT adapter of one cell, ready to be trained.

    Args:
        loop: takes epochs.
        predict: answers with class logits `[B, C]` as the adapter is now.
        dev: examples to stop by.
        seed: of the order of the examples.
    """

    loop: AnswerOnlyLoop
    predict: Callable[[Sequence[Example]], torch.Tensor]
    dev: Sequence[Example]
    seed: int

    @property
    def trained(self) -> list[torch.Tensor]:
        """The adapter's tensors."""
        return [parameter for parameter in self.loop.model.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def put(self, values: Sequence[torch.Tensor]) -> None:
        """Give the adapter's tensors their values."""
        for parameter, value in zip(self.trained, values, strict=True):
            parameter.copy_(value)


def peft_run(cell: Cell, task: Task, model: Any, rate: float) -> PeftRun:
    """Return the training of a wrapped model on a cell."""
    backbone = frozen()
    train, dev = cell.examples()
    words = backbone.renderer(task).prompt_ids

    def predict(examples: Sequence[Example]) -> torch.Tensor:
        model.eval()
        found = thrifty_peft_predict(model, backbone, task, examples, words)
        model.train()
        return found

    loop = AnswerOnlyLoop(model, backbone, task, task.examples(train), words, rate)
    return PeftRun(loop, predict, task.examples(dev), cell.seed)


def run_peft(cell: Cell, wrap: Callable[[Any, int], Any], rate: float) -> dict[str, Any]:
    """Train a PEFT adapter with early stopping on dev."""
    test = cell.test()
    task = make_task(frozen(), cell.examples()[0])
    torch.manual_seed(cell.seed)
    begun = time.perf_counter()
    run = peft_run(cell, task, wrap(fresh_model(MODEL), VIRTUAL_TOKENS), rate)
    loss, epoch = fit_peft(run)
    seconds = time.perf_counter() - begun
    logits = run.predict(task.examples(test))
    return against_truth(logits, task.verbalizer.labels, test) | {
        "dev_loss": loss,
        "seconds": round(seconds, 1),
        "best_epoch": epoch,
        "options": {"learning_rate": rate, "virtual_tokens": VIRTUAL_TOKENS},
    }


#: Takes the epoch, the least dev loss so far, and the adapter's tensors at that loss.
Watch = Callable[[int, float, list[torch.Tensor]], None]


def fit_peft(run: PeftRun, watch: Watch = lambda epoch, loss, kept: None) -> tuple[float, int]:
    """Train until dev loss has not fallen for `PATIENCE` epochs; go back to the best. Return its dev loss and epoch.

    `watch` is called after every epoch, and before the first one.
    """
    truth = torch.tensor([example.gold for example in run.dev])
    order = torch_generator(run.seed, "order")
    best, best_epoch, kept = float("inf"), 0, [p.detach().clone() for p in run.trained]
    for epoch in range(EPOCHS + 1):
        if epoch:
            run.loop.epoch(torch.randperm(len(run.loop.texts), generator=order).tolist())
        loss = float(functional.cross_entropy(run.predict(run.dev), truth))
        if loss < best:
            best, best_epoch, kept = loss, epoch, [p.detach().clone() for p in run.trained]
        watch(epoch, best, kept)
        if epoch - best_epoch >= PATIENCE:
            break
    run.put(kept)
    return best, best_epoch


def run_setfit(cell: Cell) -> dict[str, Any]:
    """Train SetFit on the examples of train and dev together."""
    train, dev = cell.examples()
    test, examples = cell.test(), [*train, *dev]
    labels = sorted({str(record.label) for record in train})
    model = setfit_model(model_folder(SENTENCE_MODEL))
    begun = time.perf_counter()
    numbers = [labels.index(str(record.label)) for record in examples]
    setfit_train(model, [record.fields["text"] for record in examples], numbers, cell.seed)
    seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    probabilities = setfit_probabilities(model, [record.fields["text"] for record in test])
    answering = time.perf_counter() - begun
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        size = stored(Path(folder))
    return against_truth(probabilities.log(), labels, test) | {
        "dev_loss": None,
        "seconds": round(seconds, 1),
        "texts_per_second": len(test) / answering,
        "bytes_stored": size,
        "options": SETFIT_OPTIONS | {"model": SENTENCE_MODEL},
    }


def against_truth(logits: torch.Tensor, labels: Sequence[str], test: Sequence[Record]) -> dict[str, Any]:
    """Return accuracy, loss and predictions of logits `[B, C]` on the test rows."""
    truth = torch.tensor([labels.index(str(record.label)) for record in test])
    return {
        "accuracy": float((logits.argmax(-1) == truth).double().mean()),
        "loss": float(functional.cross_entropy(logits, truth)),
        "predictions": logits.argmax(-1).tolist(),
    }


def gather(cell: Cell, method: str, busy: bool) -> dict[str, Any]:
    """Return a cell's result, made now unless there is a file of it."""
    path = CELLS / f"{cell.task}-{cell.seed}-{method}.json"
    own = {"task": cell.task, "seed": cell.seed, "method": method}
    return kept(path, busy, lambda: own | run_cell(cell, method))


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
        "longest_seconds": longest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--methods", default=",".join(ALL))
    parser.add_argument("--busy", action="store_true", help="other work runs, too: seconds are not to be used")
    options = parser.parse_args()
    require_data()
    methods = options.methods.split(",")
    if "setfit" in methods and (missing := setfit_missing()):
        methods.remove("setfit")
        if not methods:
            raise SystemExit(missing)
        print(missing, flush=True)
    for task in options.tasks.split(","):
        for method in methods:
            for seed in options.seeds.split(","):
                gather(Cell(task, int(seed)), method, options.busy)
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(CELLS.glob("*.json"))]
    write_result("accuracy.json", summary(cells) | {"machine": machine()})


if __name__ == "__main__":
    main()
