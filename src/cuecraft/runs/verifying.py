"""`cuecraft verify` and `cuecraft runs diff`: two runs of a recipe side by side, what is equal and what is not."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from cuecraft.artifact.manifest import BackboneEntry, DataEntry
from cuecraft.core.environment import HASH_SEED, PROGRAM, fixed_environment
from cuecraft.core.errors import CuecraftError, RunError
from cuecraft.core.events import Document
from cuecraft.core.signals import stoppable
from cuecraft.core.yaml_files import flattened
from cuecraft.runs.jobs import Job, job_of
from cuecraft.runs.reading import shown_keys
from cuecraft.runs.record import RECIPE, RunFolder, RunRecord, Surroundings
from cuecraft.runs.spec import TOLERANCE, Recipe

Verdict = Literal["equal", "within tolerance", "differs", "not compared"]
#: Parts of the names of scores; other metrics are shown.
_SCORES = ("train_", "dev_", "test_", "held_out_", "accuracy", "macro_f1")


@dataclass(frozen=True)
class CheckedRow:
    """One thing that was compared.

    Args:
        what: its name.
        verdict: how it compares.
        before: of the first run, as shown.
        now: of the other run.
    """

    what: str
    verdict: Verdict
    before: str = ""
    now: str = ""


@dataclass(frozen=True)
class RunComparison:
    """How two runs compare.

    Args:
        rows: what was compared, in order.
        is_same: data, backbone and metrics are the same, within tolerance.
        is_exact: steps and results are equal, bit for bit, too.
        reason: one line.
    """

    rows: tuple[CheckedRow, ...]
    is_same: bool
    is_exact: bool
    reason: str

    def document(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return asdict(self)


def verify(path: Path, keep: Path | None, started: Callable[[str], object]) -> RunComparison:
    """Run a finished run's recipe again in a process of its own and compare.

    Args:
        path: of the run.
        keep: where the second run goes; None to throw it away.
        started: called with each part of the work.

    Raises:
        CuecraftError: no finished run is here, its recipe cannot be read, or running it again failed.
    """
    folder = RunFolder(path.absolute())
    record, surroundings = folder.finished(), folder.surroundings()
    home = Path(surroundings.folder)
    if not home.is_dir():
        raise RunError(f"{path}: was run in {home}, which is not there; make it, or the paths of the data mean nothing")
    target = keep.absolute() if keep is not None else None
    with chdir(home), stoppable():
        job = job_of(folder.recipe(), folder.path)
        started("reading the data")
        data = _data_rows(record.data, job.data())
        stored = _stored_rows(record, job)
        wrong = [row for row in (*data, *stored) if row.verdict == "differs"]
        if wrong:
            rest = [CheckedRow(what, "not compared") for what in ("backbone", "steps", "metrics")]
            what = "the data changed" if wrong[0] in data else "the stored result is not what the run made"
            reason = f"{what}: {', '.join(row.what for row in wrong)}"
            return RunComparison((*data, *stored, *rest), False, False, reason)
        with tempfile.TemporaryDirectory(prefix="cuecraft-verify-") as scratch:
            target = target or Path(scratch, "run")
            started("running it again")
            _run_again(folder.path, target, surroundings)
            return compare_runs(folder, RunFolder(target))


def _stored_rows(record: RunRecord, job: Job) -> list[CheckedRow]:
    """Compare the results that lie in the folder with the hashes of those that the run made."""
    try:
        found = job.stored()
    except CuecraftError as error:
        return [CheckedRow("stored result", "differs", "as the run made it", str(error))]
    return _hash_rows("stored result", record.artifacts, found)


def _hash_rows(what: str, before: Mapping[str, str], now: Mapping[str, str]) -> list[CheckedRow]:
    return [
        _row(f"{what}: {name}", before.get(name, "none")[:12], now.get(name, "none")[:12]) for name in {**before, **now}
    ]


def _data_rows(before: Mapping[str, DataEntry], now: Mapping[str, DataEntry]) -> list[CheckedRow]:
    """Compare row counts and hashes of each part of the data."""
    return [
        _row(f"data: {name}", _shown_data(before.get(name)), _shown_data(now.get(name))) for name in {**before, **now}
    ]


def _shown_data(entry: DataEntry | None) -> str:
    return "none" if entry is None else f"{entry.rows} rows, {entry.sha256[:12]}"


def _row(what: str, before: str, now: str) -> CheckedRow:
    return CheckedRow(what, "equal" if before == now else "differs", before, now)


def _run_again(path: Path, target: Path, surroundings: Surroundings) -> None:
    """Run a recipe again in a process of its own, with as many threads and the same seed of hashes.

    Raises:
        RunError: it failed.
    """
    words = [*PROGRAM, "run", str(path / RECIPE), f"threads={surroundings.threads}", "--out", str(target), "--json"]
    environment = fixed_environment() | {HASH_SEED: str(surroundings.determinism.get(HASH_SEED, "0"))}
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            _, told = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        lines = told.decode(errors="replace").strip().splitlines()
        reason = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
        raise RunError(f"{path}: running it again failed ({reason.removeprefix('error: ')})")


def compare_runs(first: RunFolder, second: RunFolder) -> RunComparison:
    """Compare two finished runs: data, backbone, steps, results, metrics.

    Raises:
        CuecraftError: a folder holds no finished run.
    """
    before, now, recipe = first.finished(), second.finished(), first.recipe()
    data = _data_rows(before.data, now.data)
    backbone = _row("backbone", _shown_backbone(before.backbone), _shown_backbone(now.backbone))
    steps = _first_difference(first, second)
    results = _hash_rows("result", before.artifacts, now.artifacts)
    metrics = _metric_rows(before, now, recipe)
    rows = (*data, backbone, steps, *results, *metrics)
    decisive = [row for row in (*data, backbone, *metrics) if row.verdict == "differs"]
    is_exact = all(row.verdict == "equal" for row in rows)
    return RunComparison(rows, not decisive, is_exact, _reason(decisive, steps, is_exact))


def _reason(decisive: Sequence[CheckedRow], steps: CheckedRow, is_exact: bool) -> str:
    if is_exact:
        return "the same, bit for bit"
    where = "" if steps.verdict == "equal" else f"; the first step that differs: {steps.before} -> {steps.now}"
    if not decisive:
        return f"the same within tolerance{where}"
    return f"differs in {', '.join(row.what for row in decisive)}{where}"


def _shown_backbone(entry: BackboneEntry | None) -> str:
    return "none" if entry is None else f"{entry.name}, {entry.dtype}, {entry.sha256[:12]}"


def _metric_rows(before: RunRecord, now: RunRecord, recipe: Recipe) -> list[CheckedRow]:
    """Compare metrics: scores within the recipe's tolerance; others are shown."""
    tolerance = recipe.expect.tolerance if recipe.expect else TOLERANCE
    rows = []
    for name in {**before.metrics, **now.metrics}:
        one, other = before.metrics.get(name), now.metrics.get(name)
        verdict: Verdict = "equal" if one == other else "differs"
        if verdict == "differs" and one is not None and other is not None:
            if abs(one - other) <= tolerance + 1e-9:
                verdict = "within tolerance"
            elif not any(part in name for part in _SCORES):
                verdict = "not compared"
        rows.append(CheckedRow(name, verdict, *("none" if value is None else f"{value:.4f}" for value in (one, other))))
    return rows


def _first_difference(first: RunFolder, second: RunFolder) -> CheckedRow:
    """Return the row that names the first step in which two runs differ."""
    parts = dict(job_of(first.recipe(), first.path).trajectories())
    others = dict(job_of(second.recipe(), second.path).trajectories())
    count = sum(map(len, parts.values()))
    for name in {**parts, **others}:
        pairs = zip_longest(parts.get(name, ()), others.get(name, ()))
        for number, (one, other) in enumerate(pairs):
            if one != other:
                return CheckedRow("steps", "differs", *_shown_difference(f"{name}, event {number}", one, other))
    return CheckedRow("steps", "equal", f"{count} steps", f"{count} steps")


def _shown_difference(place: str, one: Document | None, other: Document | None) -> tuple[str, str]:
    """Return a step with the first of its values that differs, and that value of the other run."""
    event = one or other or {}
    step = f"{place} ({event.get('phase', '')} {event.get('step', '')})"
    if one is None or other is None:
        return f"{step}: {'there' if one else 'not there'}", "there" if other else "not there"
    key = next(key for key in {**one, **other} if one.get(key) != other.get(key))
    return f"{step}: {key} {one.get(key)}", str(other.get(key))


def differences(first: RunFolder, second: RunFolder) -> list[tuple[str, str, str]]:
    """Return what two runs were asked for and were made on, where that differs: key, of the first, of the second.

    Raises:
        CuecraftError: a folder holds no run.
    """
    for folder in (first, second):
        folder.record()
    asked = [{f"recipe {key}": value for key, value in shown_keys(own.recipe()).items()} for own in (first, second)]
    made = [flattened(own.surroundings().model_dump(exclude={"later"})) for own in (first, second)]
    before, now = ({**asked[n], **made[n]} for n in (0, 1))
    return [
        (key, str(before.get(key, "none")), str(now.get(key, "none")))
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]
