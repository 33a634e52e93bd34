"""Jobs over small files with the tiny causal model, for the tests of `cuecraft classify`."""

import json
import random

from conftest import LABELS, TEXTS, WORDS
from cuecraft import PromptClassifier
from cuecraft.core.options import make_options
from cuecraft.serving.bulk.cluster import run_classify
from cuecraft.serving.bulk.job import ClassifyCommand

X = [text for text, _ in TEXTS]
Y = [LABELS[label] for _, label in TEXTS]
SMALL = {"block_mb": 0.002, "window": 8, "readers": 0}


def artifact(causal_folder, folder, method="zero-shot", **options):
    """Write an artifact of the tiny model; return its classifier."""
    own = PromptClassifier(str(causal_folder), method, method_options=options).fit(X, Y)
    own.save(folder)
    return own


def messages(count, seed=0, distinct=None):
    """Return messages of a few words and a number; `distinct` of them at most, but for the number."""
    chance = random.Random(seed)
    pool = [" ".join(chance.choices(WORDS, k=chance.randint(2, 5))) for _ in range(distinct or count)]
    return [f"{chance.choice(pool)} {chance.randrange(100)}" for _ in range(count)]


def write_jsonl(path, texts, broken=0):
    """Write texts as JSON lines; every so many lines a broken one."""
    lines = [json.dumps({"n": n, "message": text}) + "\n" for n, text in enumerate(texts)]
    for at in range(broken - 1, len(lines), broken) if broken else ():
        lines[at] = "{broken\n"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def classify(prompts, inputs, out, report=lambda progress: None, **options):
    """Run a job; return its document."""
    own = {
        "prompts": prompts if isinstance(prompts, dict) else {"prompt": prompts},
        "inputs": tuple(map(str, inputs if isinstance(inputs, list) else [inputs])),
        "out": out,
        "fields": ("message",),
    }
    return run_classify(make_options(ClassifyCommand, own | SMALL | options), report, lambda: None)


def rows_of(out, kind="part"):
    """Return all rows of a job's answers, in order; `quarantine` for what was put aside."""
    folder = out / "quarantine" if kind == "quarantine" else out
    return [json.loads(line) for path in sorted(folder.glob("part-*.jsonl")) for line in path.open(encoding="utf-8")]


def text_at(row):
    """Return the text of a row, read anew from where its id says."""
    path, _, offset = row["id"].rpartition(":")
    with open(path, "rb") as handle:
        handle.seek(int(offset))
        return json.loads(handle.readline())["message"]
