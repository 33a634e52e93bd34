"""Two tasks trained jointly, next to each trained alone, and a third added with the shared part frozen.

    make bench-multitask

SST-2 and AG News share the offsets of a deep cue (or, with --share embeddings, the prompt's vectors); TREC is added
afterwards. Alone means the same kind of prompt, of the same length, with its own default options. 500 test rows of
each task, splits of seed 13. Result: benchmarks/results/multitask_SHARE.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from common import DATA, machine, require_data, write_result

from cuecraft import PromptClassifier
from cuecraft.api.family import LabelledTexts, PromptFamily
from cuecraft.backbone import load_backbone
from cuecraft.data import read_records, subsample
from cuecraft.methods.train.multitask import MultitaskTuning
from cuecraft.study.compare import wilson_interval

MODEL = "demo:smollm2-135m"
ALONE = {"offsets": "deep-cue", "embeddings": "prompt-tuning"}
JOINT, ADDED = ("sst-2", "agnews"), "trec"


def read(task: str, part: str, seed: int) -> LabelledTexts:
    folder = DATA / task
    path = folder / "test.jsonl" if part == "test" else folder / f"seed-{seed}" / f"{part}.jsonl"
    records = subsample(read_records(path), 500 if part == "test" else None, 0)
    return [record.fields["text"] for record in records], [record.label for record in records]


def tested(classifier: PromptClassifier, test: LabelledTexts) -> dict[str, Any]:
    accuracy = float(classifier.score(*test))
    return {"test_accuracy": accuracy, "interval_95": wilson_interval(accuracy, len(test[1]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", choices=list(ALONE), default="offsets")
    parser.add_argument("--seed", type=int, default=13)
    options = parser.parse_args()
    require_data()
    backbone = load_backbone(MODEL)
    parts = {
        task: {part: read(task, part, options.seed) for part in ("train", "dev", "test")} for task in (*JOINT, ADDED)
    }
    rows: dict[str, dict[str, Any]] = {}
    begun = time.perf_counter()
    family = PromptFamily(backbone, MultitaskTuning(share=options.share), seed=options.seed)
    family.fit({task: parts[task]["train"] for task in JOINT}, {task: parts[task]["dev"] for task in JOINT})
    joint_seconds = time.perf_counter() - begun
    for task in JOINT:
        rows[f"{task}, joint"] = tested(family.classifier(task), parts[task]["test"])
        print(task, rows[f"{task}, joint"], flush=True)
    begun = time.perf_counter()
    family.add(ADDED, *parts[ADDED]["train"], dev=parts[ADDED]["dev"])
    rows[f"{ADDED}, added"] = tested(family.classifier(ADDED), parts[ADDED]["test"])
    rows[f"{ADDED}, added"]["seconds"] = round(time.perf_counter() - begun, 1)
    with tempfile.TemporaryDirectory() as folder:
        family.save(Path(folder) / "family")
        sizes = {
            str(path.relative_to(folder)): path.stat().st_size for path in sorted(Path(folder).rglob("*.safetensors"))
        }
    for task in (*JOINT, ADDED):
        for name in (ALONE[options.share], "zero-shot"):
            chosen = {"calibration": "fitted"} if name == "zero-shot" else {}
            begun = time.perf_counter()
            classifier = PromptClassifier(backbone, name, seed=options.seed, method_options=chosen)
            classifier.fit(*parts[task]["train"], dev=parts[task]["dev"])
            seconds = time.perf_counter() - begun
            key = f"{task}, {'calibrated' if name == 'zero-shot' else name + ' alone'}"
            rows[key] = tested(classifier, parts[task]["test"]) | {"seconds": round(seconds, 1)}
            print(key, rows[key], flush=True)
    settings = {"share": options.share, "seed": options.seed, "model": MODEL, "test_rows": 500}
    result = {"rows": rows, "joint_seconds": round(joint_seconds, 1), "bytes": sizes, "settings": settings}
    write_result(f"multitask_{options.share}.json", result | {"machine": machine()})


if __name__ == "__main__":
    main()
