"""What `cuecraft compare` does: methods and seeds on one task, over one read of its texts; finished cells are kept."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cuecraft.artifact import with_others
from cuecraft.artifact.manifest import BackboneEntry, DataEntry
from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.core.environment import describe, versions
from cuecraft.core.errors import CompareError, CuecraftError, CuecraftWarning, MethodError, named
from cuecraft.core.events import Started
from cuecraft.core.signals import stoppable
from cuecraft.core.storage import LOCK, SCRATCH, FolderInUseError, locked, parse_json, unwritable, write_text
from cuecraft.core.warned import errors_first
from cuecraft.methods import METHODS, make_method
from cuecraft.methods.candidate import Candidate, fresh_decisions
from cuecraft.methods.objectives import Score
from cuecraft.methods.prepare import data_entry, make_problem, make_task
from cuecraft.methods.problem import Labelled, Problem, label_context
from cuecraft.study.compare.answers import answer_entries, class_truth, shown_truth
from cuecraft.study.compare.config import (
    CompareConfig,
    ComparedMethod,
    Splits,
    contenders,
    read_splits,
    with_references,
)
from cuecraft.study.compare.report import best_name, make_rows, nearest_words, render_report, untuned_name
from cuecraft.study.compare.schema import (
    SCHEMA_VERSION,
    Cell,
    ComparedTask,
    Comparison,
    MachineEntry,
    MemoryEntry,
    RepeatEntry,
    ScoreEntry,
    SpeedEntry,
    SplitEntry,
    Step,
)
from cuecraft.study.compare.trial import Speed, Trial, answer_speed, repeat_trial, run_trial
from cuecraft.task import Task, Verbalizer
from cuecraft.task.answers import answers_document
from cuecraft.task.answers.labels import LabelOptions

DOCUMENT, REPORT = "compare.json", "report.html"
_CELLS = "cells"


def cell_key(parts: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of all that a cell depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Folder:
    """Where a comparison is kept.

    Args:
        path: need not exist yet.

    Raises:
        CompareError: something else stands there, or nothing can be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            _check_own(path)
        where = unwritable(path)
        if where is not None:
            raise CompareError(f"{path}: {where} cannot be written to; choose another {named('out')}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and keep other processes out of it.

        Raises:
            CompareError: another process is at work here.
        """
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.path))
                (self.path / _CELLS).mkdir(exist_ok=True)
            except FolderInUseError as error:
                raise CompareError(
                    f"{self.path}: another cuecraft compare is at work here; wait for it or choose another "
                    f"{named('out')}"
                ) from error
            yield

    def read(self, name: str, seed: int, key: str) -> Cell | None:
        """Return a finished cell, or None where there is none that depends on the same things.

        Warns:
            CuecraftWarning: there is one, but it cannot be read.
        """
        path = self._cell(name, seed)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError):
            text = ""
        try:
            raw = parse_json(text)
            # The key first: a cell of another schema is out of date, not damaged.
            if raw["key"] != key:
                return None
            return Cell.model_validate(raw)
        except (ValueError, KeyError, TypeError, ValidationError):
            warnings.warn(f"{path}: is damaged; the cell is run again", CuecraftWarning, stacklevel=2)
            return None

    def write(self, cell: Cell) -> None:
        """Keep a finished cell."""
        self.write_text(self._cell(cell.name, cell.seed), cell.model_dump_json() + "\n")

    def write_text(self, path: Path, text: str) -> None:
        """Write one of the folder's files, in one step.

        Raises:
            CompareError: it cannot be written.
        """
        try:
            write_text(path, text)
        except OSError as error:
            raise CompareError(
                f"{path}: cannot be written ({error}); free space or choose another {named('out')}"
            ) from error

    def _cell(self, name: str, seed: int) -> Path:
        return self.path / _CELLS / f"{name}-seed-{seed}.json"


def _check_own(path: Path) -> None:
    own = {DOCUMENT, REPORT, _CELLS, LOCK}
    if path.is_dir():
        found = {child.name for child in path.iterdir() if not child.name.endswith(SCRATCH)}
        if found <= own and (_CELLS in found or not found):
            return
    raise CompareError(f"{path}: exists and is no comparison's folder; choose another {named('out')} or remove it")


def run_comparison(
    config: CompareConfig, started: Started = lambda name: lambda event: None
) -> tuple[Comparison, list[Path]]:
    """Run what is not finished yet and write the documents; return the comparison and the files written.

    Args:
        config: what is asked for.
        started: called with each part of the work and returns the listener of its events.

    Raises:
        CuecraftError: anything that the user can fix; finished cells stay.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; the same call goes on where it stopped.
    """
    with stoppable(), errors_first(started) as heard:
        named = contenders(config)
        folder = Folder(config.folder)
        splits = read_splits(config)
        heard("loading the model")
        head = splits.asked.head(config.head)
        backbone = load_backbone(config.model, head, config.device, config.local_files_only, config.dtype)
        asked = with_references(named, backbone.head_kind)
        task = make_task(
            backbone,
            splits.known,
            config.template,
            config.label_words,
            config.max_tokens,
            LabelOptions(classes=splits.labels) if splits.labels else splits.asked.answers,
            # Of all methods, so that texts are cut alike whichever are asked for, and finished cells stay.
            max(method.longest_prompt() for method in (*map(make_method, METHODS), *(c.method for c in asked))),
            config.choice,
        )
        with folder.locked():
            run = _Run(folder, backbone, task, splits, asked, heard)
            run.run_cells()
            document = run.document(config.task_name)
            return document, _write(folder, document, heard)


@dataclass
class _Run:
    """One run of a comparison.

    Args:
        folder: where cells are kept.
        backbone: the frozen model.
        task: the task.
        splits: the examples.
        asked: the methods.
        started: called with each part.
        cells: finished, by name.
        refused: why a method does not go with the backbone, by name.
        kept: cells that an earlier run had finished.
    """

    folder: Folder
    backbone: AnyBackbone
    task: Task
    splits: Splits
    asked: Sequence[ComparedMethod]
    started: Started
    cells: dict[str, list[Cell]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    kept: int = 0

    @cached_property
    def entries(self) -> tuple[DataEntry, dict[int, SplitEntry]]:
        """Row counts and hashes of the test rows, and of each seed's own."""
        seeds = {
            seed: SplitEntry(seed=seed, train=data_entry(split.train), dev=data_entry(split.dev))
            for seed, split in self.splits.seeds.items()
        }
        return data_entry(self.splits.test), seeds

    @cached_property
    def test(self) -> Labelled:
        """The test rows, read once for all methods and seeds."""
        self.started("reading the test rows")
        return label_context(self.backbone, self.task, self.task.examples(self.splits.test))

    def run_cells(self) -> None:
        """Run every cell that no earlier run has finished, seed by seed.

        Raises:
            CuecraftError: a method that was asked for by name does not go with the backbone, or all refuse.
        """
        found = {
            (contender.name, seed): self.folder.read(contender.name, seed, self._key(contender, seed))
            for contender in self.asked
            for seed in self.splits.seeds
        }
        repeated = {name for (name, _), cell in found.items() if cell and cell.repeat}
        for seed, split in self.splits.seeds.items():
            problem: Problem | None = None  # this seed's texts are read once, and only if a method needs them
            for contender in self.asked:
                name = contender.name
                # One cell of each method carries the comparison with a second run.
                cell = found[name, seed] if name in repeated else None
                if name in self.refused:
                    continue
                if cell is not None:
                    self.kept += 1
                else:
                    problem = problem or make_problem(self.backbone, self.task, split.train, split.dev, seed=seed)
                    cell = self._try(contender, problem, name not in repeated)
                if cell is not None:
                    repeated.add(name)
                    self.cells.setdefault(name, []).append(cell)
        if not self.cells:
            name, reason = next(iter(self.refused.items()))
            raise MethodError(f"no method goes with {self.backbone.name}; {name}: {reason}")

    def _try(self, contender: ComparedMethod, problem: Problem, with_repeat: bool) -> Cell | None:
        """Run a cell and keep it; or note why the method does not go with the backbone."""
        try:
            cell = self._run_cell(contender, problem, with_repeat)
        except CuecraftError as error:
            if not contender.may_refuse:
                raise
            self.refused[contender.name] = str(error)
            self.cells.pop(contender.name, None)
            return None
        self.folder.write(cell)
        return cell

    def _run_cell(self, contender: ComparedMethod, problem: Problem, with_repeat: bool) -> Cell:
        name, seed = contender.name, problem.seed
        test = self.test
        listening = replace(problem, report=self.started(f"{name}, seed {seed}"))
        trial = run_trial(name, contender.method, listening, test)
        repeat = None
        if with_repeat:
            again = replace(problem, report=self.started(f"{name} once more"))
            repeat = repeat_trial(trial, again)
        best = trial.outcome.best
        speed = self._speed(best)
        words, tokenizer = trial.outcome.words, self.backbone.tokenizer
        return Cell(
            key=self._key(contender, seed),
            name=name,
            method=contender.method.name,
            options=contender.method.model_dump(mode="json"),
            seed=seed,
            tuned=trial.outcome.is_tuned,
            dev=_score_entry(trial.dev),
            test=_score_entry(trial.test),
            **answer_entries(trial, test),
            seconds=trial.seconds,
            memory=MemoryEntry(peak=trial.memory.peak, rise=trial.memory.rise),
            speed=SpeedEntry(
                examples_per_second=speed.examples_per_second,
                rows=speed.rows,
                latencies_ms=[1000 * seconds for seconds in speed.latencies],
            ),
            tuned_parameters=trial.tuned_parameters,
            stored_bytes=trial.stored_bytes,
            repeat=repeat and RepeatEntry(same=repeat.same, steps=repeat.steps),
            prompt=with_others(best.prompt.text(tokenizer), len(best.prompts)),
            words=words.prompt.text(tokenizer) if words else None,
            neighbours=nearest_words(best.prompt, self.backbone),
            steps=_steps(trial),
        )

    def _speed(self, candidate: Candidate) -> Speed:
        """Time a candidate's answers on test rows read fresh."""
        with warnings.catch_warnings():
            # That a text was cut was reported when the test rows were read for all; not again for each query.
            warnings.simplefilter("ignore", CuecraftWarning)
            return answer_speed(
                lambda examples: fresh_decisions(self.backbone, self.task, [candidate], examples, [self.task.answers]),
                self.task.examples(self.splits.test),
            )

    def _key(self, contender: ComparedMethod, seed: int) -> str:
        """Return the hash of everything that a cell depends on."""
        test, seeds = self.entries
        task = self.task
        chat = {} if task.template.chat is None else {"chat": vars(task.template.chat)}
        return cell_key(
            chat
            | {
                "schema": SCHEMA_VERSION,
                "versions": versions(),
                "method": contender.method.name,
                "options": contender.method.model_dump(mode="json"),
                "seed": seed,
                "backbone": [self.backbone.fingerprint(), self.backbone.head_kind, self.backbone.dtype_name],
                "device": self.backbone.device.type,
                "template": task.template.source,
                **self._answers_key(),
                "tokens": [task.max_tokens, task.reserve],
                "train": seeds[seed].train.sha256,
                "dev": seeds[seed].dev.sha256,
                "test": test.sha256,
            }
        )

    def _answers_key(self) -> dict[str, Any]:
        answers = self.task.answers
        if isinstance(answers, Verbalizer):
            return {"labels": answers.labels, "label_words": answers.words}
        return {"answers": answers_document(answers)}

    def document(self, task_name: str) -> Comparison:
        """Return the whole comparison."""
        test, seeds = self.entries
        task, backbone = self.task, self.backbone
        answers = task.answers
        truth = [answers.gold(record) for record in self.splits.test]
        return Comparison(
            task=ComparedTask(
                name=task_name,
                template=task.template.source,
                answers=answers.kind,
                primary=answers.primary,
                labels=list(answers.options),
                label_words=[list(words) for words in answers.options.values()],
                max_tokens=task.max_tokens,
                reserve=task.reserve,
            ),
            backbone=BackboneEntry.of(backbone),
            seeds=list(seeds.values()),
            test=test,
            truth=shown_truth(answers, truth),
            untuned=untuned_name(self.cells),
            best=best_name(self.cells),
            rows=make_rows(self.asked, self.cells, self.refused, class_truth(answers, truth), answers.size),
            cells=[cell for found in self.cells.values() for cell in found],
            kept_cells=self.kept,
            skipped_rows=self.splits.bad and self.splits.bad.document(),
            machine=_machine(backbone),
        )


def _score_entry(found: Score) -> ScoreEntry:
    return ScoreEntry(loss=found.loss, score=found.primary, measure=found.measure)


def _steps(trial: Trial) -> list[Step]:
    measure = trial.answers.tuning_score
    return [Step.of(event, number, measure) for number, event in enumerate(trial.outcome.trace)]


def _write(folder: Folder, document: Comparison, started: Started) -> list[Path]:
    """Write `compare.json` and, where its packages are installed, `report.html`; return the paths."""
    path, report = folder.path / DOCUMENT, folder.path / REPORT
    folder.write_text(path, document.model_dump_json() + "\n")
    started("drawing the report")
    try:
        html = render_report(document)
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "jinja2"):
            raise
        report.unlink(missing_ok=True)  # one of an earlier run would not match compare.json
        warnings.warn(
            f"no report.html: {error.name} is not installed; pip install 'cuecraft[report]'",
            CuecraftWarning,
            stacklevel=2,
        )
        return [path]
    folder.write_text(report, html)
    return [path, report]


def _machine(backbone: AnyBackbone) -> MachineEntry:
    return MachineEntry(**describe(backbone.device), date=datetime.now(UTC).date().isoformat())
