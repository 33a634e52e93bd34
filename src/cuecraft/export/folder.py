"""Writing an exported folder: trace, make the asked precision, measure what it answers, keep or refuse."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from importlib.util import find_spec
from itertools import islice, product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer

from cuecraft.artifact import Artifact
from cuecraft.backbone import AnyBackbone, CausalBackbone
from cuecraft.core.errors import ExportError, named
from cuecraft.core.events import Event, Progress
from cuecraft.core.storage import MANIFEST, file_sha256, unwritable, write_folder
from cuecraft.data import Record, fingerprint
from cuecraft.export.folding import Folded, FoldedSeveral, check_together, fold, shares
from cuecraft.export.graph import EXTERNAL, GRAPH, JAVASCRIPT, PYTHON, require_onnx, write_examples, write_graph
from cuecraft.export.quantise import OPENVINO_GRAPH, Batches, Recipe, recipes_of
from cuecraft.export.runtime import ExportedModel, RuntimeOptions
from cuecraft.export.runtime.manifest import (
    TOKENIZER,
    AgreementEntry,
    ExportManifest,
    FieldEntry,
    GraphPrompt,
    IdsEntry,
    ModelEntry,
    TokensEntry,
    TriedEntry,
    is_export,
)
from cuecraft.export.runtime.model import FoldedPrompt, feed_of
from cuecraft.export.runtime.sessions import open_session
from cuecraft.task import AnswerSpace, Field
from cuecraft.task.rendering import Pieces
from cuecraft.task.token_text import control_tokens

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


def own_texts(artifacts: Sequence[Artifact]) -> list[Record]:
    """Return texts made of artifacts' own words, for what is only a check: many short ones, and ever longer ones."""
    classes = [words for artifact in artifacts for words in artifact.task.answers.options.values()]
    words = list(dict.fromkeys(word for own in classes for word in own))
    fields = artifacts[0].task.template.field_names
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
                    f"{target}: exists and was not exported by cuecraft; choose another {named('out')} or remove it"
                )
        where = unwritable(target.absolute().parent)
    except OSError as error:
        raise ExportError(
            f"{str(target)[:100]}: is no folder ({error.strerror or error}); choose another {named('out')}"
        ) from None
    if where is not None:
        raise ExportError(f"{target}: {where} cannot be written to; choose another {named('out')}")


def _check_answers(artifacts: Mapping[str, Artifact]) -> None:
    """Raise an error where a graph cannot answer as artifacts do: several prompts each, open, own or many answers."""
    for name, artifact in artifacts.items():
        artifact.require_single("a graph")
        answers = artifact.task.answers
        if answers.is_open:
            raise ExportError(
                "any word may be the answer, and a graph answers with options alone; tune with candidates"
            )
        if answers.asks_options:
            raise ExportError(
                "each text brings options of its own, and a graph has those that all share; serve the artifact"
            )
        if answers.at == "words":
            raise ExportError(
                "a graph gives one answer to a text, and these are labels of its words; serve the artifact"
            )
        if len(artifacts) > 1 and not answers.adds_up:
            raise ExportError(f"prompt {name!r} answers with sets, each label by itself; export it alone")


def export_graph(
    artifacts: Mapping[str, Artifact],
    backbone: AnyBackbone,
    target: Path,
    request: GraphRequest,
    report: Callable[[Event], None] = lambda event: None,
) -> ExportManifest:
    """Write artifacts as one graph with all that is needed to ask it.

    Args:
        artifacts: name -> a prompt and its task. Several share one graph, which reads a text once for all that are
            asked: prompts behind the text of a causal model, with label words of one token each.
        backbone: the model that they were made for, on the CPU in float32.
        target: folder to write.
        request: what the graph should be.
        report: progress callback, called with each step.

    Raises:
        ExportError: a package is missing, the model cannot be written so, the prompts cannot share a graph, too few
            texts, or no way to the precision keeps enough labels.
        ArtifactError: another backbone, or several prompts that answer together.
        TemplateError: the prompt stands between two fields.
    """
    _check_answers(artifacts)
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
    for artifact in artifacts.values():
        artifact.check_backbone(backbone)
    if not hasattr(backbone.tokenizer, "backend_tokenizer"):
        raise ExportError(f"the tokenizer of {backbone.name} is written in Python alone; export its prompt to PEFT")
    if backbone.dtype_name != "float32" or backbone.device.type != "cpu":
        raise ExportError(f"a graph needs float32 weights on the CPU; leave {named('dtype')} and {named('device')} out")
    making = _Making(artifacts, _reader(artifacts, backbone), request, report)
    folded = making.folded()
    # Next to what is there already: where nothing is written, no folder is made.
    nearest = next(place for place in target.absolute().parents if place.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=nearest) as scratch:
            report(Progress("tracing", 0, 1 + len(recipes)))
            source = write_graph(folded, Path(scratch))
            chosen = making.chosen(recipes, source, Path(scratch))
            manifest = making.completed(chosen)

            def fill(fresh: Path) -> None:
                for path in chosen.folder.iterdir():
                    path.rename(fresh / path.name)

            write_folder(target, fill)
    except OSError as error:
        raise ExportError(f"{target}: cannot be written ({error}); free space or use another {named('out')}") from error
    return manifest


def _reader(artifacts: Mapping[str, Artifact], backbone: AnyBackbone) -> AnyBackbone:
    """Return the backbone with the weights that an artifact has tuned merged into it, or as it is.

    Raises:
        ExportError: one of several artifacts has weights of its own.
    """
    readers = {name: artifact.reader(backbone) for name, artifact in artifacts.items()}
    tuned = {name: reader for name, reader in readers.items() if reader is not None}
    if not tuned:
        return backbone
    name, reader = next(iter(tuned.items()))
    if len(artifacts) > 1:
        raise ExportError(f"prompt {name!r} changes the model's weights, so it shares no graph; export it alone")
    return reader.held()


@dataclass(frozen=True)
class _Made:
    """What a recipe made.

    Args:
        folder: with the graph.
        manifest: as far as it is known.
    """

    folder: Path
    manifest: ExportManifest


def _agreement(answers: AnswerSpace, found: np.ndarray, expected: np.ndarray) -> float:
    """Return the share of texts with the likeliest option that is expected; of sets, with the same set."""
    if answers.adds_up:
        return float((found.argmax(1) == expected.argmax(1)).mean())
    decided = [[own.value for own in answers.decide(values, ())] for values in (found, expected)]
    return float(np.mean([one == other for one, other in zip(*decided, strict=True)]))


class _NoNumbersError(Exception):
    """What a graph answers is not finite."""


class _Making:
    """An export in progress.

    Args:
        artifacts: name -> a prompt and its task.
        backbone: what reads the texts.
        request: what is wanted.
        report: progress callback, called with each step.
    """

    def __init__(
        self,
        artifacts: Mapping[str, Artifact],
        backbone: AnyBackbone,
        request: GraphRequest,
        report: Callable[[Event], None],
    ) -> None:
        self._artifacts, self._backbone, self._request, self._report = artifacts, backbone, request, report
        self._ready = {name: backbone.ready(own.prompt, own.task) for name, own in artifacts.items()}
        if len(artifacts) > 1:
            check_together(backbone, self._ready)
        records, split = list(request.texts), _CALIBRATION if request.precision == "int8" else 0
        self._calibration, self._compared = records[:split], records[split:]
        self._prompts = [self._folded_prompt(number, name) for number, name in enumerate(artifacts)]
        self._expected = [self._answered(name) for name in artifacts]

    def folded(self) -> Folded | FoldedSeveral:
        """Return the module that becomes the graph."""
        own = [(self._ready[name], artifact.calibration) for name, artifact in self._artifacts.items()]
        if len(own) == 1:
            return fold(self._backbone, *own[0])
        assert isinstance(self._backbone, CausalBackbone)  # the others were refused
        return FoldedSeveral(self._backbone, own).eval()

    def _answered(self, name: str) -> np.ndarray:
        """Return PyTorch's probabilities `[N, C]` of the texts that are compared."""
        ready, artifact = self._ready[name], self._artifacts[name]
        logits = self._backbone.mixed_logits([(ready, pieces) for pieces in self._pieces(name, self._compared)])
        calibrated = [shares(artifact.calibration.apply(own.double()), artifact.task.answers) for own in logits]
        return torch.stack(calibrated).numpy()

    def _pieces(self, name: str, records: Sequence[Record]) -> list[Pieces]:
        return self._ready[name].renderer.fitted(self._artifacts[name].task.examples(records))[0]

    def _folded_prompt(self, number: int, name: str) -> FoldedPrompt:
        ready, own = self._ready[name], self._artifacts[name].manifest
        renderer, frame = ready.renderer, ready.renderer.frame()
        capacity, between = renderer.capacity(), sum(len(part) for part in frame.span if not isinstance(part, Field))
        entry = GraphPrompt(
            name=name,
            artifact_sha256=own.artifact_sha256,
            task=own.task,
            prompt_length=ready.length,
            constant_ids=len(frame.opening) + len(frame.closing) + ready.length,
            max_text_tokens=None if capacity is None else capacity + between,
        )
        return FoldedPrompt(number, renderer, frame, entry)

    def chosen(self, recipes: Sequence[Recipe], source: Path, scratch: Path) -> _Made:
        """Return the work of the first recipe that keeps enough labels; the best where none has to.

        Raises:
            ExportError: none does.
        """
        floor, tried = self._request.floor, []
        best: _Made | None = None
        for number, recipe in enumerate(recipes, start=1):
            self._report(Progress(recipe.name, number, 1 + len(recipes)))
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
            remedy = f"another {named('format')}" if self._request.precision == "fp32" else "fp32"
            raise ExportError(
                f"{self._request.precision} keeps {manifest.agreement.labels:.1%} of the labels of "
                f"{len(self._compared)} texts at best ({manifest.recipe}), and {floor:.1%} are asked for; "
                f"lower {named('min_agreement')}, or export in {remedy}"
            )
        return replace(best, manifest=manifest)

    def completed(self, made: _Made) -> ExportManifest:
        """Write what stands next to the graph; return the manifest."""
        tokenizer = Tokenizer.from_str(self._backbone.tokenizer.backend_tokenizer.to_str())
        if control := control_tokens(self._backbone.tokenizer):
            tokenizer.add_special_tokens(control)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.save(str(made.folder / TOKENIZER))
        write_examples(made.folder, self._request.format)
        files = {path.name: file_sha256(path) for path in sorted(made.folder.iterdir())}
        manifest = made.manifest.model_copy(update={"files": files}).signed()
        (made.folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return manifest

    def _batches(self) -> Batches:
        """Return the texts to calibrate by, a batch each, for all prompts."""
        first, count = self._prompts[0], len(self._prompts)
        asked = None if count == 1 else range(count)
        pieces = self._pieces(first.entry.name, self._calibration)
        return [feed_of([first.frame.inner(own)], "right", asked) for own in pieces]

    def _measured(self, draft: ExportManifest, folder: Path) -> AgreementEntry:
        """Compare what a graph answers with what PyTorch answered.

        Raises:
            ExportError: it is in float32, and differs.
            _NoNumbersError: what it answers is not finite.
        """
        session = open_session(folder, draft, RuntimeOptions(device="cpu"))
        model = ExportedModel(folder, draft, session, {own.entry.name: own for own in self._prompts})
        rows = [(own, piece) for own in self._prompts for piece in self._pieces(own.entry.name, self._compared)]
        logits, count = model.mixed_logits(rows), len(self._compared)
        # Of several prompts those figures count that are worst.
        labels, difference = 1.0, 0.0
        for number, expected in enumerate(self._expected):
            found = np.exp(np.stack(logits[number * count : (number + 1) * count]))
            if not np.isfinite(found).all():
                raise _NoNumbersError
            labels = min(labels, _agreement(self._prompts[number].entry.task.answers, found, expected))
            difference = max(difference, float(np.abs(found - expected).max()))
        if draft.precision == "fp32" and difference > _FLOAT32:
            raise ExportError(
                f"the graph of {draft.backbone.name} answers otherwise than PyTorch (probabilities differ by "
                f"{difference:.2g}); it was not written: report this, or export the prompt alone"
            )
        return AgreementEntry(
            texts=len(self._compared),
            sha256=fingerprint(self._compared),
            labels=labels,
            max_difference=difference,
            floor=self._request.floor,
        )

    def _draft(self, recipe: Recipe) -> ExportManifest:
        backbone, request, first = self._backbone, self._request, self._prompts[0]
        tokenizer, made_for = backbone.tokenizer, next(iter(self._artifacts.values())).manifest.backbone
        span: list[FieldEntry | IdsEntry] = []
        for part in first.frame.span:
            if isinstance(part, Field):
                prefix = first.renderer.field_prefix(part)
                span.append(FieldEntry(field=part.name, prefix=prefix, strip=bool(part.prefix)))
            else:
                span.append(IdsEntry(ids=list(part)))
        return ExportManifest(
            format=request.format,
            precision=request.precision,
            recipe=recipe.name,
            graph=recipe.graph,
            backbone=ModelEntry(
                name=made_for.name, head=made_for.head, sha256=made_for.sha256, max_positions=backbone.max_positions
            ),
            prompts=[own.entry for own in self._prompts],
            padding="left" if isinstance(backbone, CausalBackbone) else "right",
            span=span,
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
