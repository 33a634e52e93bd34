"""Hybrid tuning: search for words, refine them into vectors; then save, load and predict.

One sees the words that the search found, what tuning gained over the untuned template on texts that were not trained
on, and two predictions of the artifact after it was read back from disk. About five minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cuecraft import PromptClassifier
from cuecraft.data import k_shot_split, read_records, subsample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--data", default="demo:movie-sentences", help="a file with text and label, or demo: data")
    parser.add_argument("--shots", type=int, default=8, help="rows of each class")
    parser.add_argument("--steps", type=int, default=8, help="of the search")
    parser.add_argument("--epochs", type=int, default=10, help="of tuning")
    parser.add_argument("--out", type=Path, default=Path("runs/example-hybrid"))
    args = parser.parse_args()

    split = k_shot_split(read_records(args.data), args.shots, seed=0, with_dev=False)
    test = subsample(split.rest, 100, seed=0)
    texts, labels = [dict(record.fields) for record in split.train], [record.label for record in split.train]
    held_out, truth = [dict(record.fields) for record in test], [record.label for record in test]

    options = {"search.steps": args.steps, "tune.epochs": args.epochs}
    classifier = PromptClassifier(args.model, "hybrid", method_options=options)
    classifier.fit(texts, labels)
    print(f"words found: {classifier.artifact_.manifest.words!r}")
    for name, accuracy in classifier.accuracies(held_out, truth).items():
        print(f"{name:>10}: accuracy {accuracy:.3f} on {len(test)} other texts")

    print(f"saved {args.out}, hash {classifier.save(args.out)[:12]}")
    loaded = PromptClassifier.load(args.out)
    for text, row in zip(held_out[:2], loaded.predict_proba(held_out[:2]), strict=True):
        shares = ", ".join(f"{name} {share:.2f}" for name, share in zip(loaded.classes_, row, strict=True))
        print(f"{shares}: {text['text']}")


if __name__ == "__main__":
    main()
