"""Exported graphs next to PyTorch: size, load time, latency, throughput, labels; writes benchmarks/results/export.json.

    python benchmarks/export.py [--models demo:minilm,demo:smollm2-135m] [--graphs onnx-fp32,onnx-int8] [--rounds 5]
        [--parts tune,export,measure,several] [--work runs/bench-export]

A prompt is tuned on the 16-shot training rows of SST-2 (seed 13). int8 is chosen by unlabelled training sentences of
SST-2; the 500 test rows that labels are compared on choose nothing. What was tuned and exported is kept in `--work`, so
that the parts can be run one after the other, model by model, and an interrupted part goes on where it was. Speeds are
of `predict_proba`, token ids included, all runs in turns in one process. `onnx-fp16-cuda` and `onnx-fp16-tensorrt`
measure a GPU, and say so where there is none. `several` (causal models): prompts of three kinds (tuned for a moment;
their answers do not matter here, their shapes do) under eight names in one graph and each in its own, one text asked
at a time, and 16 texts at once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DATA, ROOT, machine, of_its_kind, read_result, require_data, rounds, seconds, write_result

from cuecraft import PromptClassifier
from cuecraft.artifact import Artifact, load_artifact
from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.core.errors import ExportError
from cuecraft.core.events import Event
from cuecraft.data import Record, read_records, subsample
from cuecraft.export import GraphRequest, export_graph, own_texts
from cuecraft.export.runtime import ExportedClassifier, ExportedModel, RuntimeOptions, is_export, read_export

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "demo:minilm": ("prompt-tuning", {}),
    "demo:smollm2-135m": ("prompt-tuning", {"prompt_length": 4}),
}
FLOOR = 0.99
PROMPTS, LAST = 8, "{text}{prompt: It was}{mask}"
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("zero-shot", {}),
    ("prompt-tuning", {"epochs": 4, "prompt_length": 4, "learning_rate": 0.1}),
    ("deep-cue", {"epochs": 4, "learning_rate": 0.1}),
]
ROWS, CHOOSING, BATCH, ONES, BATCHES = 500, 628, 32, 40, 4


def artifact_of(name: str, work: Path) -> Path:
    """Tune a prompt, unless it is there."""
    folder = work / name.partition(":")[2]
    if not folder.is_dir():
        rows = {part: read_records(DATA / "sst-2" / "seed-13" / f"{part}.jsonl") for part in ("train", "dev")}
        train, dev = (([r.fields["text"] for r in own], [r.label for r in own]) for own in rows.values())
        method, options = METHODS[name]
        PromptClassifier(name, method, method_options=options, seed=13).fit(*train, dev=dev).save(folder)
    return folder


def sentences() -> list[Record]:
    """Return unlabelled training sentences of SST-2."""
    rows = read_records(DATA.parent / "sst2-full" / "train.jsonl")
    texts = list(dict.fromkeys(row.fields["text"] for row in rows))
    return subsample([Record({"text": text}) for text in texts], CHOOSING, 0)


def export(name: str, graph: str, work: Path) -> None:
    """Export a graph, unless it is there of this very prompt; one that keeps too few labels is kept, and reported."""
    target = work / f"{name.partition(':')[2]}-{graph}"
    kind, precision = graph.split("-")[:2]
    artifact = load_artifact(artifact_of(name, work))
    if is_export(target) and read_export(target).prompts[0].artifact_sha256 == artifact.manifest.artifact_sha256:
        return
    backbone = load_backbone(name, artifact.manifest.backbone.head, "cpu", True, "float32")
    begun = time.perf_counter()
    texts = sentences()

    def report(event: Event) -> None:
        print(name, graph, event.phase, flush=True)

    def run(floor: float | None) -> None:
        wanted = GraphRequest(kind, precision, "cut", texts, floor)  # type: ignore[arg-type]
        export_graph({"own": artifact}, backbone, target, wanted, report)

    try:
        run(FLOOR)
    except ExportError as error:
        print(f"{name} {graph}: {error}", flush=True)
        run(None)
    print(name, graph, f"exported in {time.perf_counter() - begun:.0f} s", flush=True)


def classifiers(name: str, graphs: list[str], work: Path) -> dict[str, Callable[[], Any]]:
    """Return what loads each classifier."""
    folder = artifact_of(name, work)
    found: dict[str, Callable[[], Any]] = {
        "pytorch": lambda: PromptClassifier.load(folder, device="cpu", dtype="float32")
    }
    for graph in graphs:
        kind, precision, *device = graph.split("-")
        source = work / f"{folder.name}-{kind}-{precision}"
        options = RuntimeOptions(device=device[0] if device else "cpu")
        found[graph] = lambda source=source, options=options: ExportedClassifier.load(source, options)
    return found


def measured(name: str, graphs: list[str], work: Path, count: int) -> dict[str, Any]:
    rows = subsample(read_records(DATA / "sst-2" / "test.jsonl"), ROWS, 0)
    texts = [row.fields["text"] for row in rows]
    truth = np.array([row.label for row in rows])
    loaded, result = {}, {}
    for graph, load in classifiers(name, graphs, work).items():
        begun = time.perf_counter()
        try:
            loaded[graph] = load()
        except ExportError as error:  # a device that is not here
            print(f"{name} {graph}: skipped: {error}", flush=True)
            continue
        result[graph] = {"load_seconds": time.perf_counter() - begun}
    expected = loaded["pytorch"].predict_proba(texts)
    for graph, own in loaded.items():
        shares = own.predict_proba(texts)
        result[graph] |= {
            "agreement": float((shares.argmax(1) == expected.argmax(1)).mean()),
            "max_difference": float(np.abs(shares - expected).max()),
            "accuracy": float((own.classes_[shares.argmax(1)] == truth).mean()),
        }
        print(name, graph, result[graph], flush=True)
    # Batches of texts of about one length, as length-sorted batches are; spread over all lengths.
    ordered = sorted(texts, key=len)
    starts = np.linspace(0, len(ordered) - BATCH, BATCHES).astype(int)
    batches = [ordered[start : start + BATCH] for start in starts]
    ones = texts[:ONES]
    many = {
        graph: lambda own=own: BATCH * BATCHES / seconds(lambda: [own.predict_proba(batch) for batch in batches])
        for graph, own in loaded.items()
    }
    rates = rounds(many, count)
    single: dict[str, list[float]] = {graph: [] for graph in loaded}
    for text in [ones[0], *ones]:
        for graph, own in loaded.items():
            single[graph].append(seconds(lambda own=own, text=text: own.predict_proba([text])))
    for graph in loaded:
        times = single[graph][1:]  # the first warms up
        result[graph] |= {
            "texts_per_second": rates[graph],
            "to_pytorch": rates[graph] / rates["pytorch"],
            "p50_ms": 1000 * statistics.median(times),
            "p95_ms": 1000 * statistics.quantiles(times, n=20)[-1],
        }
    return {graph: own | described(name, graph, work) for graph, own in result.items()}


def several(name: str, work: Path, count: int) -> dict[str, Any]:
    """Return texts a second under one prompt and under eight, over one graph for all and over graphs of their own."""
    backbone = load_backbone(name, device="cpu", local_files_only=True, dtype="float32")
    if backbone.head_kind != "causal":
        return {}
    texts = [own.fields["text"] for own in sentences()]
    artifacts = made_prompts(backbone, texts[:16])
    folder, alone = work / f"{name.partition(':')[2]}-several", work / f"{name.partition(':')[2]}-alone"
    wanted = GraphRequest("onnx", "fp32", "cut", own_texts(list(artifacts.values())), FLOOR)
    first = next(iter(artifacts))
    for target, own in ((folder, artifacts), (alone, {first: artifacts[first]})):
        export_graph(own, backbone, target, wanted)
    ready = [backbone.ready(own.prompt, own.task) for own in artifacts.values()]
    many, one = ExportedModel.load(folder), ExportedModel.load(alone)
    of_one, of_all = list(one.prompts.values()), list(many.prompts.values())
    ways: dict[str, Callable[[Sequence[str]], Any]] = {
        "pytorch, all": lambda texts: backbone.mixed_logits(rows_of(ready, texts)),
        # One graph stands for the graphs of all: its prompt is the shortest.
        "own graphs, all": lambda texts: [one.mixed_logits(rows_of(of_one, texts)) for _ in artifacts],
        "one graph, all": lambda texts: many.mixed_logits(rows_of(of_all, texts)),
        "own graph, one": lambda texts: one.mixed_logits(rows_of(of_one, texts)),
        "one graph, one": lambda texts: many.mixed_logits(rows_of(of_all[:1], texts)),
    }
    found: dict[str, Any] = {"constant_ids": [own.entry.constant_ids for own in of_all]}
    for asked, parts in (("one text at a time", [[text] for text in texts[16:24]]), ("16 texts", [texts[16:32]])):
        found[asked] = rounds({way: partial(rate_of, run, parts) for way, run in ways.items()}, count)
        print(name, asked, found[asked], flush=True)
    return found | {"machine": machine(), "threads": cores()}


def made_prompts(backbone: AnyBackbone, texts: Sequence[str]) -> dict[str, Artifact]:
    found = [
        (method, of_its_kind(PromptClassifier(backbone, method, template=LAST, method_options=options), texts))
        for method, options in KINDS
    ]
    own = [found[number % len(found)] for number in range(PROMPTS)]
    return {f"{method}-{number}": classifier.artifact_ for number, (method, classifier) in enumerate(own)}


def rows_of(prompts: Sequence[Any], texts: Sequence[str]) -> list[Any]:
    """Return rows as `mixed_logits` takes them: each text with each prompt."""
    found = []
    for prompt in prompts:
        examples = prompt.renderer.task.examples([Record({"text": text}) for text in texts])
        found += [(prompt, pieces) for pieces in prompt.renderer.fitted(examples)[0]]
    return found


def rate_of(run: Callable[[Sequence[str]], Any], parts: Sequence[Sequence[str]]) -> float:
    """Return texts a second."""
    return sum(map(len, parts)) / seconds(lambda: [run(part) for part in parts])


def described(name: str, graph: str, work: Path) -> dict[str, Any]:
    """Return what a folder's manifest says of how it came about."""
    folder = work / name.partition(":")[2]
    if graph == "pytorch":
        backbone = load_backbone(name, local_files_only=True)
        return {"bytes": sum(own.numel() * own.element_size() for own in backbone.model.parameters())}
    source = folder.with_name(f"{folder.name}-{'-'.join(graph.split('-')[:2])}")
    manifest = read_export(source)
    graphs = [path for path in source.iterdir() if path.name.startswith("model.")]
    return {
        "bytes": sum(path.stat().st_size for path in graphs),
        "recipe": manifest.recipe,
        "chosen_on": manifest.agreement.model_dump(),
        "tried": [own.model_dump() for own in manifest.tried],
        "versions": manifest.versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="demo:minilm,demo:smollm2-135m")
    parser.add_argument("--graphs", default="onnx-fp32,onnx-int8,openvino-fp32,openvino-int8")
    parser.add_argument("--parts", default="tune,export,measure,several")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-export")
    options = parser.parse_args()
    require_data()
    graphs = options.graphs.split(",")
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.models.split(","):
        if "tune" in options.parts:
            artifact_of(name, options.work)
        if "export" in options.parts:
            for graph in dict.fromkeys("-".join(own.split("-")[:2]) for own in graphs):
                export(name, graph, options.work)
        if "measure" in options.parts:
            found = measured(name, graphs, options.work, options.rounds)
            result = read_result("export.json")
            result[name] = result.get(name, {}) | {"graphs": found, "machine": machine(), "threads": cores()}
            write_result("export.json", result)
        if "several" in options.parts and (found := several(name, options.work, options.rounds)):
            result = read_result("export.json")
            result[name] = result.get(name, {}) | {"several": found}
            write_result("export.json", result)


def cores() -> dict[str, int]:
    from cuecraft.export.runtime.sessions import cores as of_graphs

    return {"pytorch": torch.get_num_threads(), "graphs": of_graphs()}


if __name__ == "__main__":
    main()
