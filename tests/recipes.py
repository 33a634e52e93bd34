"""Tiny recipes of every method, for the tests of runs."""

from __future__ import annotations

import json

import yaml

from conftest import LABELS, TEXTS
from cuecraft.recipe import load_recipe

TUNED = {
    "zero-shot": {"calibration": "fitted"},
    "autoprompt": {"steps": 6, "candidates": 8, "prompt_length": 4},
    "straight-through": {"steps": 8, "prompt_length": 4},
    "prompt-tuning": {"epochs": 6, "learning_rate": 0.1},
    "p-tuning": {"epochs": 6, "encoder_width": 8, "encoder_learning_rate": 0.01},
    "prefix-tuning": {"epochs": 6, "encoder_width": 8, "encoder_learning_rate": 0.01},
    "p-tuning-v2": {"epochs": 6, "learning_rate": 0.1},
    "deep-cue": {"epochs": 6},
    "hybrid": {"search": {"steps": 3, "candidates": 6}, "tune": {"epochs": 5}},
    "soup": {"members": 2, "deep": {"epochs": 4}},
    "linear-probe": {},
    "embedding-probe": {},
    "lora": {"epochs": 5, "learning_rate": 0.01},
    "lora-prompt": {"epochs": 5, "learning_rate": 0.01},
    "full": {"epochs": 5, "learning_rate": 0.001},
    "auto": {"preset": "fast"},
    "label-free": {"variants": 2, "mutations": 3, "candidates": 4},
}
JOBS = (*TUNED, "multitask")


def write_data(folder):
    """Write the eight texts, with labels, and as another task of the same texts."""
    rows = [{"text": text, "label": LABELS[label]} for text, label in TEXTS]
    others = [{"text": text, "label": "war" if len(text.split()) > 5 else "love"} for text, _ in TEXTS]
    for name, found in (("train", rows), ("other", others)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


def settings(name, folder, model, **more):
    """A recipe of a method, or of `multitask`, as a dictionary."""
    train = str(folder / "train.jsonl")
    found = {
        "name": name,
        "description": f"{name} on eight texts",
        "seed": 3,
        "threads": 1,
        "model": {"name": str(model)},
        "checkpoint": {"seconds": 0.0},
    }
    if name == "multitask":
        tasks = {part: {"train": str(folder / f"{part}.jsonl")} for part in ("train", "other")}
        return found | {"job": "multitask", "tasks": tasks, "multitask": {"epochs": 5}} | more
    options = dict(TUNED[name])
    if name == "embedding-probe":
        options["encoder"] = str(model)
    found |= {
        "data": {"train": train, "dev": train, "test": train},
        "task": {"template": "{text}{prompt: it was}{mask}"},
        "tune": {"method": name, **options},
    }
    if name == "label-free":
        found["data"] = {"train": train}
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
