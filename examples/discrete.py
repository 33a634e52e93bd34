"""AutoPrompt: which words make a frozen model answer best?

One sees the loss fall as words are swapped, the best prompt in words, and its accuracy on texts that the search did not
see. About two minutes on two CPU cores.
"""

from __future__ import annotations

import argparse

from cuecraft import AutoPrompt, PromptClassifier, load_backbone
from cuecraft.data import k_shot_split, read_records, subsample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--data", default="demo:movie-sentences", help="a file with text and label, or demo: data")
    parser.add_argument("--shots", type=int, default=8, help="rows of each class")
    parser.add_argument("--iterations", type=int, default=12)
    args = parser.parse_args()

    split = k_shot_split(read_records(args.data), args.shots, seed=0, with_dev=False)
    rows = [{"text": record.fields["text"], "label": record.label} for record in split.train]
    backbone = load_backbone(args.model)
    search = AutoPrompt(model=backbone, train_dataset=rows, batch_size=32, num_tokens=5, iterations=args.iterations)
    best = search.search()
    for event in search.outcome_.trace:
        prompt = event.get("prompt", "no swap was better")
        print(f"step {event['step']:>2}  loss {event['train_loss']:.3f}  {prompt!r}")

    test = subsample(split.rest, 100, seed=0)
    classifier = PromptClassifier.of(search.artifact_, backbone)
    accuracy = classifier.score([dict(record.fields) for record in test], [record.label for record in test])
    print(f"best prompt: {best!r}, accuracy on {len(test)} other texts: {accuracy:.3f}")


if __name__ == "__main__":
    main()
