"""What `auto` does on rows that no benchmark reports on: where its design is decided.

    python benchmarks/auto_study.py [--task sst-2] [--splits 13,21,42] [--preset good] [--limit 600]
                                    [--model demo:minilm] [--method contrastive] [--option epochs=10]

Of SST-2, 16 examples of each class to train on and 16 for dev are drawn from the training file of sst2-full, and asked
are sentences of its dev file. Of AG News and TREC, the examples are those of a few-shot split, and asked are the
training and dev rows of the other splits, where every class is as frequent as any other. Prints all that was tried, the
verdict, and the scores of the untuned and the shipped prompt on these rows; keeps no result file.
"""

from __future__ import annotations

import argparse
import time

from common import DATA, require_data

from cuecraft.backbone import load_backbone
from cuecraft.core.deadline import Deadline
from cuecraft.data import Record, k_shot_split, read_records
from cuecraft.methods import make_method
from cuecraft.methods.prepare import make_problem, make_task
from cuecraft.methods.problem import label_context, score

MODEL, SHOTS, ROWS = "demo:smollm2-135m", 16, 300
SEEDS = (13, 21, 42)


def rows_of(task: str, split: int) -> tuple[list[Record], list[Record], list[Record]]:
    """Return the training rows of a split, its dev rows, and other rows, none of them a test row."""
    if task == "sst-2":
        drawn = k_shot_split(read_records(DATA.parent / "sst2-full" / "train.jsonl"), SHOTS, 1000 + split)
        return drawn.train, drawn.dev, read_records(DATA.parent / "sst2-full" / "dev.jsonl")[:ROWS]
    parts = {
        seed: [read_records(DATA / task / f"seed-{seed}" / f"{n}.jsonl") for n in ("train", "dev")] for seed in SEEDS
    }
    train, dev = parts[split]
    taken = {record.fields["text"] for record in [*train, *dev]}
    others = {r.fields["text"]: r for seed in SEEDS if seed != split for part in parts[seed] for r in part}
    return train, dev, [record for text, record in others.items() if text not in taken][:ROWS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sst-2", choices=("sst-2", "agnews", "trec"))
    parser.add_argument("--splits", default=",".join(map(str, SEEDS)))
    parser.add_argument("--preset", default="good")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--method", default="auto", choices=("auto", "contrastive"))
    parser.add_argument("--option", action="append", default=[], help="of the method, NAME=VALUE; repeat")
    parser.add_argument("--limit", type=float, help="seconds that a split may take")
    options = parser.parse_args()
    require_data()
    backbone = load_backbone(options.model)
    given = dict(word.split("=", 1) for word in options.option)
    own = {"preset": options.preset} if options.method == "auto" else {}
    method = make_method(options.method, own | given)
    for split in map(int, options.splits.split(",")):
        train, dev, others = rows_of(options.task, split)
        task = make_task(backbone, train)
        asked = label_context(backbone, task, task.examples(others))
        begun = time.perf_counter()
        problem = make_problem(backbone, task, train, dev, seed=split, deadline=Deadline(options.limit))
        outcome = method.fit(problem)
        print(f"{options.task} {split}: {time.perf_counter() - begun:.0f} s, {len(outcome.best.prompts)} prompts")
        for row in outcome.tried:
            print(f"  {row.loss:.3f} {row.score:.3f} {row.folds} {row.rows} {row.seconds:6.1f} {row.name}")
        assert outcome.verdict is not None
        print(f"  {outcome.verdict.ships} ships: {outcome.verdict.reason}")
        for name, candidate in (("untuned", outcome.start), ("shipped", outcome.best)):
            found = score(backbone, candidate, asked)
            print(
                f"  {name}: log-loss {found.loss:.3f}, accuracy {found.primary:.3f} on {len(asked)} other rows",
                flush=True,
            )


if __name__ == "__main__":
    main()
