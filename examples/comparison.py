"""Methods side by side on one task, over several seeds: what `cuecraft compare` does, from Python.

One sees a table of accuracies with intervals, times and sizes; `compare.json` and `report.html` lie in the folder that
is named last. Finished parts are kept, and the same call goes on from them. About two minutes on two CPU cores.
"""

from __future__ import annotations

import argparse

from cuecraft.study.compare.comparison import run_comparison
from cuecraft.study.compare.config import load_config
from cuecraft.study.compare.formats import text_tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--data", default="demo:movie-sentences", help="a file with text and label, or demo: data")
    parser.add_argument("--methods", default="zero-shot,prompt-tuning,deep-cue")
    parser.add_argument("--seeds", default="13,21")
    parser.add_argument("--shots", type=int, default=8, help="rows of each class to train on, and as many for dev")
    parser.add_argument("--test-size", type=int, default=100)
    parser.add_argument("--out", default="runs/example-comparison")
    args = parser.parse_args()

    flags = {"task": args.data, "model": args.model, "methods": args.methods, "seeds": args.seeds, "out": args.out}
    config = load_config(None, flags | {"shots": args.shots, "test_size": args.test_size})
    document, files = run_comparison(config, lambda part: lambda event: None)
    for table in text_tables(document):
        print(" | ".join(table.header))
        for row in table.rows:
            print(" | ".join(row))
    print(f"least dev loss: {document.best}")
    print("written:", ", ".join(str(path) for path in files))


if __name__ == "__main__":
    main()
