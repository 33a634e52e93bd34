"""What one contrastive training does on rows that no benchmark reports on: where its defaults are decided.

    python benchmarks/contrastive_study.py TASK:SPLIT OPTION=VALUE,... [OPTION=VALUE,...]

Trains one prompt on all examples of a split, train and dev together, for each set of options of `ContrastiveTraining`
and `length`, its positions. Then class heads are fitted to features of unit length, part of the way from the start, and
the other rows of `auto_study` are asked. Prints log-loss and accuracy by the share of the way (0 is the start) and
scikit-learn's C; keeps no result file.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import torch
from auto_study import rows_of
from common import require_data

from cuecraft.artifact.calibration import HeadFit, fitted_head
from cuecraft.backbone import FeatureScale, load_backbone
from cuecraft.backbone.columns import class_scores
from cuecraft.methods.auto.crossfit import Latest
from cuecraft.methods.auto.starts import BarePrefix, BareWords
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.contrastive import ContrastiveTraining, PromptOf
from cuecraft.methods.gradients import features_of
from cuecraft.methods.prepare import make_problem, make_task
from cuecraft.methods.problem import Labelled, Problem, label_context
from cuecraft.methods.search.space import filled_ids
from cuecraft.methods.train.soup import part_of_the_way

MODEL = "demo:minilm"
SHARES, PENALTIES = (0.0, 0.25, 0.5, 0.75, 1.0), (1.0, 10.0, 100.0)


@torch.no_grad()
def answers(problem: Problem, candidate: Candidate, asked: Labelled) -> str:
    """Return log-loss and accuracy on other rows by the penalty of the head."""
    own, others = (features_of(problem.backbone, candidate, data) for data in (problem.train, asked))
    classes, found = problem.task.verbalizer.num_classes, []
    for penalty in PENALTIES:
        head = fitted_head(own, problem.train.labels, classes, HeadFit(penalty, scale=FeatureScale.UNIT))
        score = asked.scores(class_scores(others, head)).mean
        found.append(f"{score.loss:.3f} {score.primary:.3f}")
    return "  ".join(found)


def main() -> None:
    require_data()
    name, _, split = sys.argv[1].partition(":")
    backbone = load_backbone(MODEL)
    train, dev, others = rows_of(name, int(split))
    task = make_task(backbone, train)
    asked = label_context(backbone, task, task.examples(others))
    problem = make_problem(backbone, task, train, dev, seed=int(split))
    problem = replace(problem, train=problem.pool, dev=None)
    for words in sys.argv[2:]:
        options = dict(word.split("=") for word in words.split(","))
        ids = filled_ids(problem, int(options.pop("length", 8)))
        training = ContrastiveTraining.model_validate(options)
        start = (BarePrefix if training.of is PromptOf.PREFIX else BareWords).of("words", ids).candidate(problem)
        latest, begun = Latest(problem), time.process_time()
        training.refine_side_by_side([(start, latest)])
        assert latest.best is not None
        losses = [event["train_loss"] for event in latest.trace]
        print(f"{name} {split} {words}: {time.process_time() - begun:.0f} s, loss {losses[0]:.2f} -> {losses[-1]:.2f}")
        for share in SHARES:
            moved = part_of_the_way(start, latest.best, share, backbone.embed)
            print(f"  {share:.2f}  {answers(problem, moved, asked)}", flush=True)


if __name__ == "__main__":
    main()
