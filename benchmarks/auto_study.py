"""What `auto` does on splits that no benchmark reports on: where its design is decided.

    python benchmarks/auto_study.py [--splits 7,8,9] [--preset good] [--limit 600]

16 examples of each class to train on and 16 for dev, drawn from the training file of sst2-full; tested on 400 sentences
of its dev file. Prints all that was tried, the verdict, and both prompts' test scores; keeps no result file.
"""

from __future__ import annotations

import argparse
import time

from common import DATA, require_data

from cuecraft.backbone import load_backbone
from cuecraft.data import k_shot_split, read_records
from cuecraft.deadline import Deadline
from cuecraft.method import label_context, score
from cuecraft.tune import make_method
from cuecraft.tune.prepare import make_problem, make_task

MODEL, SHOTS, TEST_ROWS = "demo:smollm2-135m", 16, 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", default="7,8,9")
    parser.add_argument("--preset", default="good")
    parser.add_argument("--limit", type=float, help="seconds that a split may take")
    options = parser.parse_args()
    require_data()
    backbone = load_backbone(MODEL)
    rows = read_records(DATA.parent / "sst2-full" / "train.jsonl")
    others = read_records(DATA.parent / "sst2-full" / "dev.jsonl")[:TEST_ROWS]
    task = make_task(backbone, rows)
    test = label_context(backbone, task, task.examples(others))
    for number in map(int, options.splits.split(",")):
        split = k_shot_split(rows, SHOTS, number)
        problem = make_problem(backbone, task, split.train, split.dev, seed=1, deadline=Deadline(options.limit))
        begun = time.perf_counter()
        outcome = make_method("auto", {"preset": options.preset}).fit(problem)
        print(f"split {number}: {time.perf_counter() - begun:.0f} s", flush=True)
        for row in outcome.tried:
            print(f"  {row.name[:70]:70} loss {row.loss:.4f} accuracy {row.accuracy:.3f} folds {row.folds}")
        assert outcome.verdict is not None
        print(f"  {outcome.verdict.reason}\n  {outcome.verdict.remark or ''}")
        for name, candidate in (("untuned", outcome.start), ("shipped", outcome.best)):
            found = score(backbone, candidate, test)
            print(f"  {name}: test log-loss {found.loss:.3f}, accuracy {found.accuracy:.3f}", flush=True)


if __name__ == "__main__":
    main()
