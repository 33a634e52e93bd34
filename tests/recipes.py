"""Tiny recipes of every method and job, for the tests of runs."""

from __future__ import annotations

import json

import yaml

from conftest import LABELS, TEXTS
from cuecraft.runs import load_recipe

TUNED = {
    "zero-shot": {"calibration": "fitted"},
    "in-context": {"shots": 2},
    "autoprompt": {"steps": 10, "candidates": 8, "prompt_length": 8},
    "straight-through": {"steps": 10, "prompt_length": 4},
    "prompt-tuning": {"epochs": 10, "patience": 10, "learning_rate": 0.1},
    "p-tuning": {"epochs": 10, "patience": 10, "encoder_width": 8, "encoder_learning_rate": 0.01},
    "prefix-tuning": {"epochs": 10, "patience": 10, "encoder_width": 8, "encoder_learning_rate": 0.01},
    "p-tuning-v2": {"epochs": 10, "patience": 10, "learning_rate": 0.1},
    "deep-cue": {"epochs": 10, "patience": 10, "batch_size": 2},
    "first-order": {"folds": 4},
    "contrastive": {"epochs": 4, "folds": 2, "learning_rates": [0.3], "batch_size": 4},
    "hybrid": {"search": {"steps": 6, "candidates": 6, "prompt_length": 6}, "tune": {"epochs": 6}},
    "soup": {"members": 2, "deep": {"epochs": 6}},
    "linear-probe": {},
    "embedding-probe": {},
    "lora": {"epochs": 8, "patience": 8, "learning_rate": 0.01},
    "lora-prompt": {"epochs": 8, "patience": 8, "learning_rate": 0.01},
    "full": {"epochs": 8, "patience": 8, "learning_rate": 0.001},
    "auto": {"preset": "fast"},
    "label-free": {"variants": 2, "mutations": 4, "candidates": 4},
}
JOBS = (*TUNED, "seeds", "multitask", "compare")
#: What keeps no state and is made again from its start.
STATELESS = ("zero-shot", "in-context", "first-order", "linear-probe", "embedding-probe", "label-free", "compare")
_PARTS = {"train": TEXTS[:5], "dev": TEXTS[5:], "test": TEXTS[2:]}


def _lines(rows):
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)


def write_data(folder):
    """Write texts to train on, to choose by and to test on; another task of theirs; and a folder to compare on."""
    named = {part: [(text, LABELS[label]) for text, label in rows] for part, rows in _PARTS.items()}
    films = folder / "films"
    (films / "seed-1").mkdir(parents=True, exist_ok=True)
    for part, rows in named.items():
        for path in (folder / f"{part}.jsonl", (films if part == "test" else films / "seed-1") / f"{part}.jsonl"):
            path.write_text(_lines(rows))
    (folder / "other.jsonl").write_text(
        _lines([(text, "war" if len(text.split()) > 5 else "love") for text, _ in TEXTS])
    )


def settings(name, folder, model, **more):
    """A recipe of a method, or of another job, as a dictionary."""
    found = {
        "name": name,
        "description": f"{name} on eight texts",
        "seed": 3,
        "threads": 1,
        "model": {"name": str(model)},
    }
    if name == "compare":
        tuned = {"name": "tuned", "method": "deep-cue", "options": {"epochs": 3}}
        found |= {"job": "compare", "data": {"task": str(folder / "films")}, "seeds": [1]}
        return found | {"methods": ["zero-shot", tuned]} | more
    found["checkpoint"] = {"seconds": 0.0}
    if name == "multitask":
        tasks = {part: {"train": str(folder / f"{part}.jsonl")} for part in ("train", "other")}
        return found | {"job": "multitask", "tasks": tasks, "multitask": {"epochs": 6}} | more
    if name == "seeds":
        found["seeds"] = [1, 2]
    method = "deep-cue" if name == "seeds" else name
    options = dict(TUNED[method])
    if name == "embedding-probe":
        options["encoder"] = str(model)
    found |= {
        "data": {part: str(folder / f"{part}.jsonl") for part in _PARTS},
        "task": {"template": "{text}{prompt: it was}{mask}"},
        "tune": {"method": method, **options},
    }
    if name == "label-free":
        found["data"] = {"train": str(folder / "train.jsonl")}
        found["task"]["label_words"] = {label: [label] for label in LABELS}
    return found | more


def write_recipe(name, folder, model, **more):
    """Write a recipe and its data; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings(name, folder, model, **more), sort_keys=False))
    return path


def recipe(name, folder, model, **more):
    """Write a recipe and its data, and read it."""
    return load_recipe(write_recipe(name, folder, model, **more))
