"""Writing an exported folder: trace, make the asked precision, measure what it answers, keep or refuse."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from importlib.util import find_spec
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer

from cuecraft.backbone import AnyBackbone, CausalBackbone, Pieces, ReadyPrompt
from cuecraft.data import Record, fingerprint
from cuecraft.errors import ExportError
from cuecraft.export.examples import JAVASCRIPT, PYTHON, write_examples
from cuecraft.export.folding import fold
from cuecraft.export.graph import EXTERNAL, GRAPH, require_onnx, write_graph
from cuecraft.export.precision import OPENVINO_GRAPH, Recipe, recipes_of
from cuecraft.export.rows import Batches
from cuecraft.manifests import MANIFEST
from cuecraft.prompts import Artifact
from cuecraft.runtime import ExportedModel, RuntimeOptions
from cuecraft.runtime.manifest import (
    TOKENIZER,
    AgreementEntry,
    ExportManifest,
    FieldEntry,
    IdsEntry,
    ModelEntry,
    TokensEntry,
    TriedEntry,
    is_export,
)
from cuecraft.runtime.model import FoldedPrompt
from cuecraft.runtime.sessions import open_session
from cuecraft.storage import file_sha256, unwritable, write_folder
from cuecraft.task import Field

_OWN = {MANIFEST, TOKENIZER, GRAPH, EXTERNAL, OPENVINO_GRAPH, "model.bin", PYTHON, JAVASCRIPT}
_PACKAGES = ("cuecraft", "torch", "transformers", "tokenizers", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf")
_CALIBRATION = 128  # texts that recipes may look at
_LEAST = 100  # texts that int8 is judged by, at least
MOST_TEXTS = 1000
_FLOAT32 = 1e-3  # a graph in float32 that differs more is wrong


@dataclass(frozen=True)
class GraphRequest:
    """What a graph should be.

    Args:
        format: `onnx` or `openvino`.
        precision: `fp32`, `fp16` or `int8`.
        truncation: what the runtime does with longer texts: `cut` or `refuse`.
        texts: unlabelled texts of the task that agreement is measured on, and int8 chosen by.
        floor: share of labels that has to stay, 0 to 1; None to take the best whatever it is.
    """

    format: Literal["onnx", "openvino"]
    precision: Literal["fp32", "fp16", "int8"]
    truncation: Literal["cut", "refuse"]
    texts: Sequence[Record]
    floor: float | None


def own_texts(artifact: Artifact) -> list[Record]:
    """Return texts made of an artifact's own words, for what is only a check: many short ones, and ever longer ones."""
    words = list(dict.fromkeys(word for own in artifact.task.verbalizer.words for word in own))
    fields = artifact.task.template.field_names
    short = islice((line for count in range(1, 7) for line in product(words, repeat=count)), 64)
    long = [words * times for times in (4, 16, 64)]
    return [Record(dict.fromkeys(fields, line)) for line in dict.fromkeys(" ".join(own) for own in [*short, *long])]


def check_graph_target(target: Path) -> None:
    """Raise ExportError where something stands that no export has written, or nothing can be written."""
    try:
        if target.exists():
            names = {path.name for path in target.iterdir()} if target.is_dir() else set()
            if not is_export(target) or not names <= _OWN:
                raise ExportError(
                    f"{target}: exists and was not exported by cuecraft; choose another --out or remove it"
                )
        where = unwritable(target.absolute().parent)
    except OSError as error:
        raise ExportError(
            f"{str(target)[:100]}: is no folder ({error.strerror or error}); choose another --out"
        ) from None
    if where is not None:
        raise ExportError(f"{target}: {where} cannot be written to; choose another --out")


def export_graph(
    artifact: Artifact,
    backbone: AnyBackbone,
    target: Path,
    request: GraphRequest,
    report: Callable[[dict[str, Any]], None] = lambda event: None,
) -> ExportManifest:
    """Write an artifact as one graph with all that is needed to ask it.

    Args:
        artifact: the prompt and its task.
        backbone: the model that it was made for, on the CPU in float32.
        target: folder to write.
        request: what the graph should be.
        report: is told of each step.

    Raises:
        ExportError: a package is missing, the model cannot be written so, too few texts, or no way to the precision
            keeps enough labels.
        ArtifactError: another backbone.
        TemplateError: the prompt stands between two fields.
    """
    if request.precision == "int8" and len(request.texts) < _CALIBRATION + _LEAST:
        raise ExportError(
            f"{len(request.texts)} texts are too few to judge int8 by; give {_CALIBRATION + _LEAST} or more "
            f"({_CALIBRATION} to calibrate, the others to compare answers)"
        )
    if not request.texts:
        raise ExportError("there are no texts to compare answers on; give some")
    require_onnx()
    recipes = recipes_of(request.format, request.precision)
    check_graph_target(target)
    artifact.check_backbone(backbone)
    if not hasattr(backbone.tokenizer, "backend_tokenizer"):
        raise ExportError(f"the tokenizer of {backbone.name} is written in Python alone; export its prompt to PEFT")
    if backbone.dtype_name != "float32" or backbone.device.type != "cpu":
        raise ExportError("a graph is made from float32 weights on the CPU; leave --dtype and --device out")
    reader = artifact.reader(backbone)
    own = backbone if reader is None else reader.held()
    making = _Making(artifact, own, own.ready(artifact.prompt, artifact.task), request, report)
    # Beside what is there already: where nothing is written, no folder is made.
    nearest = next(place for place in target.absolute().parents if place.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=nearest) as scratch:
            report({"phase": "tracing", "step": 0, "total": 1 + len(recipes)})
            source = write_graph(fold(own, making.ready, artifact.calibration), Path(scratch))
            chosen = making.chosen(recipes, source, Path(scratch))
            manifest = making.completed(chosen)

            def fill(fresh: Path) -> None:
                for path in chosen.folder.iterdir():
                    path.rename(fresh / path.name)

            write_folder(target, fill)
    except OSError as error:
        raise ExportError(f"{target}: cannot be written ({error}); make room or choose another --out") from error
    return manifest


@dataclass(frozen=True)
class _Made:
    """What a recipe made.

    Args:
        folder: with the graph.
        manifest: as far as it is known.
    """

    folder: Path
    manifest: ExportManifest


class _NoNumbersError(Exception):
    """What a graph answers is not finite."""


class _Making:
    """An export under way.

    Args:
        artifact: the prompt and its task.
        backbone: what reads the texts.
        ready: the prompt.
        request: what is wanted.
        report: is told of each step.
    """

    def __init__(
        self,
        artifact: Artifact,
        backbone: AnyBackbone,
        ready: ReadyPrompt,
        request: GraphRequest,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self.ready = ready
        self._artifact, self._backbone, self._request, self._report = artifact, backbone, request, report
        frame = ready.renderer.frame()
        self._prompt = FoldedPrompt(ready.renderer, frame, ready.length)
        records, split = list(request.texts), _CALIBRATION if request.precision == "int8" else 0
        self._calibration, self._compared = records[:split], records[split:]
        logits = backbone.mixed_logits([(ready, pieces) for pieces in self._pieces(self._compared)])
        calibrated = [artifact.calibration.apply(own.double()).softmax(-1) for own in logits]
        self._expected = torch.stack(calibrated).numpy()

    def _pieces(self, records: Sequence[Record]) -> list[Pieces]:
        return self.ready.renderer.fitted(self._artifact.task.examples(records))[0]

    def chosen(self, recipes: Sequence[Recipe], source: Path, scratch: Path) -> _Made:
        """Return the work of the first recipe that keeps enough labels; the best where none has to.

        Raises:
            ExportError: none does.
        """
        floor, tried = self._request.floor, []
        best: _Made | None = None
        for number, recipe in enumerate(recipes, start=1):
            self._report({"phase": recipe.name, "step": number, "total": 1 + len(recipes)})
            folder = scratch / f"recipe-{number}"
            folder.mkdir()
            recipe.make(source, folder, self._batches())
            try:
                found = self._measured(self._draft(recipe), folder)
            except _NoNumbersError:
                tried.append(TriedEntry(recipe=recipe.name, labels=0.0, max_difference=1.0))
                shutil.rmtree(folder)
                continue
            tried.append(TriedEntry(recipe=recipe.name, labels=found.labels, max_difference=found.max_difference))
            draft = self._draft(recipe).model_copy(update={"agreement": found, "tried": list(tried)})
            made = _Made(folder, draft)
            if floor is not None and found.labels >= floor:
                return made
            worse = best
            if best is None or found.labels > best.manifest.agreement.labels:
                best = made
            else:
                worse = made
            if worse is not None:
                shutil.rmtree(worse.folder)  # a graph may take gigabytes
        if best is None:
            raise ExportError(f"{self._request.precision} gives no numbers for some texts; export in fp32")
        manifest = best.manifest.model_copy(update={"tried": tried})
        if floor is not None:
            remedy = "another --format" if self._request.precision == "fp32" else "fp32"
            raise ExportError(
                f"{self._request.precision} keeps {manifest.agreement.labels:.1%} of the labels of "
                f"{len(self._compared)} texts at best ({manifest.recipe}), and {floor:.1%} are asked for; "
                f"lower --min-agreement, or export in {remedy}"
            )
        return replace(best, manifest=manifest)

    def completed(self, made: _Made) -> ExportManifest:
        """Write what stands beside the graph; return the manifest."""
        tokenizer = Tokenizer.from_str(self._backbone.tokenizer.backend_tokenizer.to_str())
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.save(str(made.folder / TOKENIZER))
        write_examples(made.folder, self._request.format)
        files = {path.name: file_sha256(path) for path in sorted(made.folder.iterdir())}
        manifest = made.manifest.model_copy(update={"files": files}).signed()
        (made.folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return manifest

    def _batches(self) -> Batches:
        """Return the texts to calibrate by, a batch each."""
        texts = [self._prompt.frame.inner(pieces) for pieces in self._pieces(self._calibration)]
        return [(np.array([ids], np.int64), np.ones((1, len(ids)), np.int64)) for ids in texts]

    def _measured(self, draft: ExportManifest, folder: Path) -> AgreementEntry:
        """Compare what a graph answers with what PyTorch answered.

        Raises:
            ExportError: it is in float32, and differs.
            _NoNumbersError: what it answers is not finite.
        """
        session = open_session(folder, draft, RuntimeOptions(device="cpu"))
        model = ExportedModel(folder, draft, session, self._prompt)
        found = np.exp(np.stack(model.mixed_logits([(self._prompt, own) for own in self._pieces(self._compared)])))
        if not np.isfinite(found).all():
            raise _NoNumbersError
        difference = float(np.abs(found - self._expected).max())
        if draft.precision == "fp32" and difference > _FLOAT32:
            raise ExportError(
                f"the graph of {draft.backbone.name} answers otherwise than PyTorch (probabilities differ by "
                f"{difference:.2g}); it was not written: report this, or export the prompt alone"
            )
        return AgreementEntry(
            texts=len(self._compared),
            sha256=fingerprint(self._compared),
            labels=float((found.argmax(1) == self._expected.argmax(1)).mean()),
            max_difference=difference,
            floor=self._request.floor,
        )

    def _draft(self, recipe: Recipe) -> ExportManifest:
        artifact, backbone, request, frame = self._artifact, self._backbone, self._request, self._prompt.frame
        tokenizer, renderer, made_for = backbone.tokenizer, self.ready.renderer, artifact.manifest.backbone
        span: list[FieldEntry | IdsEntry] = []
        for part in frame.span:
            if isinstance(part, Field):
                prefix = renderer.field_prefix(part)
                span.append(FieldEntry(field=part.name, prefix=prefix, strip=bool(part.prefix)))
            else:
                span.append(IdsEntry(ids=list(part)))
        around = len(frame.opening) + len(frame.closing)
        room, between = renderer.room(), sum(len(part) for part in frame.span if not isinstance(part, Field))
        return ExportManifest(
            format=request.format,
            precision=request.precision,
            recipe=recipe.name,
            graph=recipe.graph,
            artifact_sha256=artifact.manifest.artifact_sha256,
            backbone=ModelEntry(
                name=made_for.name, head=made_for.head, sha256=made_for.sha256, max_positions=backbone.max_positions
            ),
            task=artifact.manifest.task,
            prompt_length=self.ready.length,
            constant_ids=around + self.ready.length,
            padding="left" if isinstance(backbone, CausalBackbone) else "right",
            span=span,
            max_text_tokens=None if room is None else room + between,
            truncation=request.truncation,
            tokens=TokensEntry(
                mask=getattr(tokenizer, "mask_token_id", None), unknown=getattr(tokenizer, "unk_token_id", None)
            ),
            agreement=AgreementEntry(texts=0, sha256="", labels=0, max_difference=0, floor=request.floor),
            tried=[],
            versions={name: _version(name) for name in _PACKAGES if find_spec(name) is not None},
            files={},
        )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a package may bring a module of another name, as onnxruntime-gpu does
        return str(getattr(import_module(name), "__version__", "unknown"))
