"""Choice of a prompt without labels: what the chosen cue reaches compared with the best of its pool; one result file.

    make bench-label-free
    python benchmarks/label_free.py [--parts sst-2,agnews,trec,skewed]

For each task the unlabelled texts are those of train and dev of a seed (13, 21, 42), labels ignored. The pool is what
`cuecraft tune --unlabeled` takes: the template's own words, the shipped cues of the guessed type, the general ones, and
eight variants. Every cue is tested on the same 500 test rows with the calibration that the same unlabelled texts gave
it; `ratio` is the chosen cue's accuracy over the best one's. The test rows choose nothing. Defaults (selector and
calibration) were chosen on other data: sentences of sst2-full's training file, and docstrings of Python's standard
library by subject (label_free_study.py); docs/architecture.md says how.

`skewed`: sentences of sst2-full's dev file, four fifths of the positive ones left out; half of them choose, the other
half are tested, with equal shares and with the true ones given.

A part is written once it is measured, and reused; results: benchmarks/results/label_free/, and the whole of them in
benchmarks/results/label_free.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from common import DATA, RESULTS, machine, read_result, require_data, write_result
from sklearn.metrics import f1_score
from torch import Tensor

from cuecraft.artifact.calibration import dividing_offsets, matching_offsets
from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.core.environment import versions
from cuecraft.data import Record, fingerprint, holdout, read_records, subsample
from cuecraft.methods.prepare import label_free_problem, label_free_task
from cuecraft.methods.problem import Problem
from cuecraft.methods.search.label_free import LabelFreeSearch, selector_scores
from cuecraft.methods.search.label_free.answers import Answers, LabelFreeCalibration, Panel, pseudo_labels, recalibrated
from cuecraft.task import Task

MODEL = "demo:smollm2-135m"
TASKS = ("sst-2", "agnews", "trec")
SEEDS = (13, 21, 42)
TEST_ROWS = 500
SEARCH = LabelFreeSearch()
CALIBRATIONS = ("none", "marginal", "matched")
SKEWED_CLASS, KEPT = "positive", 0.2


def task_of(backbone: AnyBackbone, records: Sequence[Record], labels: Sequence[str]) -> Task:
    """Return the task with space for the longest cue, as `PromptClassifier.fit_unlabeled` makes it."""
    task = label_free_task(backbone, records, labels)
    return replace(task, reserve=max(task.reserve, *map(len, SEARCH.pool(task, backbone.tokenizer, 0))))


def ask(problem: Problem) -> Answers:
    """Return what all cues answer to the problem's texts, not calibrated."""
    prior = torch.full((problem.task.verbalizer.num_classes,), 1 / problem.task.verbalizer.num_classes).double()
    panel = Panel(problem, problem.train.context, LabelFreeCalibration.NONE, prior)
    return panel.ask(list(SEARCH.pool(problem.task, problem.backbone.tokenizer, 0)))


def offsets(logits: Tensor, kind: str, prior: Tensor) -> Tensor:
    if kind == "none":
        return torch.zeros_like(logits[:, 0])
    return dividing_offsets(logits, prior) if kind == "marginal" else matching_offsets(logits, prior)


def report(answers: Answers, test: Tensor, truth: Tensor, prior: Tensor, cues: Sequence[str]) -> dict[str, Any]:
    """Return what each calibration and selector reaches on test logits `[T, N, Y]` with classes `[N]`."""
    found = {}
    for kind in CALIBRATIONS:
        own = replace(answers, offsets=offsets(answers.logits, kind, prior))
        p = own.probabilities
        scores = selector_scores(own, prior, pseudo_labels(p, prior))
        predicted = recalibrated(test, own.offsets).argmax(-1)
        accuracy = (predicted == truth).double().mean(1)
        macro = torch.tensor([f1_score(truth, row, average="macro") for row in predicted.numpy()])
        chosen = {str(name): int(values.argmax()) for name, values in scores.items()}
        best = float(accuracy.max())
        found[kind] = {
            "best": best,
            "mean": float(accuracy.mean()),
            "median": float(accuracy.median()),
            "untuned": float(accuracy[0]),
            "best_cue": cues[int(accuracy.argmax())],
            "best_macro_f1": float(macro.max()),
            "chosen": {
                name: {
                    "cue": cues[number],
                    "accuracy": float(accuracy[number]),
                    "ratio": float(accuracy[number]) / best,
                    "macro_f1": float(macro[number]),
                }
                for name, number in chosen.items()
            },
            "accuracies": [round(value, 4) for value in accuracy.tolist()],
        }
    return found


def run_task(backbone: AnyBackbone, name: str) -> dict[str, Any]:
    """Return the part of one task."""
    begun = time.perf_counter()
    test = subsample(read_records(DATA / name / "test.jsonl"), TEST_ROWS, 0)
    seeds = {
        seed: [r for part in ("train", "dev") for r in read_records(DATA / name / f"seed-{seed}" / f"{part}.jsonl")]
        for seed in SEEDS
    }
    labels = sorted({str(record.label) for record in test} | {str(r.label) for rows in seeds.values() for r in rows})
    task = task_of(backbone, test, labels)
    cues = list(SEARCH.pool(task, backbone.tokenizer, 0).values())
    tested = ask(label_free_problem(backbone, task, test)).logits
    truth = torch.tensor([labels.index(str(record.label)) for record in test])
    prior = torch.full((len(labels),), 1 / len(labels)).double()
    rows = {}
    for seed, records in seeds.items():
        answers = ask(label_free_problem(backbone, task, records))
        rows[str(seed)] = report(answers, tested, truth, prior, cues)
        print(name, seed, json.dumps(rows[str(seed)][SEARCH.calibration]["chosen"][SEARCH.selector]), flush=True)
    return {
        "task_type": SEARCH.resolved_type(task),
        "cues": cues,
        "texts": len(seeds[SEEDS[0]]),
        "test_sha256": fingerprint(test),
        "seeds": rows,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def run_skewed(backbone: AnyBackbone) -> dict[str, Any]:
    """Return the part of skewed classes."""
    begun = time.perf_counter()
    records = read_records(DATA.parent / "sst2-full" / "dev.jsonl")
    rare = [record for record in records if record.label == SKEWED_CLASS]
    kept = {record.fields["text"] for record in subsample(rare, round(KEPT * len(rare)), 0)}
    skewed = [r for r in records if r.label != SKEWED_CLASS or r.fields["text"] in kept]
    texts, test = holdout(skewed, 0.5, 0)
    labels = sorted({str(record.label) for record in records})
    task = task_of(backbone, texts, labels)
    cues = list(SEARCH.pool(task, backbone.tokenizer, 0).values())
    answers = ask(label_free_problem(backbone, task, texts))
    tested = ask(label_free_problem(backbone, task, test)).logits
    truth = torch.tensor([labels.index(str(record.label)) for record in test])
    shares = [sum(record.label == label for record in texts) / len(texts) for label in labels]
    priors = {"equal": [1 / len(labels)] * len(labels), "true": shares}
    return {
        "labels": labels,
        "shares": shares,
        "texts": len(texts),
        "test_rows": len(test),
        "priors": {
            name: report(answers, tested, truth, torch.tensor(prior).double(), cues) for name, prior in priors.items()
        },
        "seconds": round(time.perf_counter() - begun, 1),
    }


def summary(parts: dict[str, Any]) -> dict[str, Any]:
    """Return the means over seeds of each task, with the default calibration, and of the defaults alone."""
    found: dict[str, Any] = {}
    for name in TASKS:
        if name not in parts:
            continue
        seeds = [row[SEARCH.calibration] for row in parts[name]["seeds"].values()]
        means = {key: statistics.mean(row[key] for row in seeds) for key in ("best", "mean", "median", "untuned")}
        chosen = {
            selector: {
                key: statistics.mean(row["chosen"][selector][key] for row in seeds) for key in ("accuracy", "ratio")
            }
            for selector in seeds[0]["chosen"]
        }
        found[name] = means | {"prompts": len(parts[name]["cues"]), "selectors": chosen}
        found[name]["reaches_95_percent"] = chosen[SEARCH.selector]["ratio"] >= 0.95
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join((*TASKS, "skewed")))
    options = parser.parse_args()
    require_data()
    (RESULTS / "label_free").mkdir(parents=True, exist_ok=True)
    parts = {}
    for name in options.parts.split(","):
        parts[name] = read_result(f"label_free/{name}.json")
        if not parts[name]:
            backbone = load_backbone(MODEL)
            measured = run_skewed(backbone) if name == "skewed" else run_task(backbone, name)
            parts[name] = measured | {"machine": machine()}
            write_result(f"label_free/{name}.json", parts[name])
    settings = {"model": MODEL, "selector": SEARCH.selector, "calibration": SEARCH.calibration, "test_rows": TEST_ROWS}
    whole = {"settings": settings, "versions": versions(), "summary": summary(parts)}
    if "skewed" in parts:
        priors = parts["skewed"]["priors"]
        whole["skewed"] = {
            name: {
                key: row[SEARCH.calibration]["chosen"][SEARCH.selector][key]
                for key in ("accuracy", "macro_f1", "ratio")
            }
            for name, row in priors.items()
        }
    write_result("label_free.json", whole)


if __name__ == "__main__":
    main()
