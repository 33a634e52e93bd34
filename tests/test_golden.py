"""Golden runs: a tiny recipe of each method gives the steps that were written down, and the same bits when repeated.

`CUECRAFT_WRITE=1 python -m pytest tests/test_golden.py` writes them anew; look at the difference before you commit it.
"""

import json
import os
from pathlib import Path

import pytest

from cuecraft.runs import RunFolder, compare_runs, differences, run_recipe
from cuecraft.runs.jobs import job_of
from recipes import JOBS, recipe

GOLDEN = Path(__file__).parent / "golden"
#: Of float32 losses on another machine. Words and decisions have to be equal.
TOLERANCE = 2e-4
_KEPT = ("phase", "step", "accepted", "token_ids", "configuration", "fold", "tried", "member", "prompt")
_LOSSES = ("train_loss", "dev_loss")


def golden(asked, finished):
    """What is held against what was written down: every step's decisions and losses, and the metrics."""
    steps = {
        name: [
            {key: event[key] for key in _KEPT if key in event}
            | {key: round(event[key], 5) for key in _LOSSES if key in event}
            for event in events
            if event.get("phase") != "verdict"
        ]
        for name, events in job_of(asked, finished.folder).trajectories()
    }
    return {"steps": steps, "metrics": {name: round(value, 5) for name, value in finished.record.metrics.items()}}


@pytest.mark.parametrize("name", JOBS)
def test_a_run_takes_the_steps_that_it_took_and_repeats_itself_bit_for_bit(name, causal_folder, tmp_path):
    asked = recipe(name, tmp_path, causal_folder)
    first, second = (run_recipe(asked, tmp_path / part) for part in ("a", "b"))
    repeated = compare_runs(RunFolder(first.folder), RunFolder(second.folder))
    assert repeated.is_exact, repeated
    assert not differences(RunFolder(first.folder), RunFolder(second.folder))
    found = golden(asked, first)
    path = GOLDEN / f"{name}.json"
    if os.environ.get("CUECRAFT_WRITE"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    expected = json.loads(path.read_text(encoding="utf-8"))
    assert list(found["steps"]) == list(expected["steps"])
    for part, steps in expected["steps"].items():
        assert len(found["steps"][part]) == len(steps)
        for one, other in zip(found["steps"][part], steps, strict=True):
            losses = {key: other[key] for key in _LOSSES if key in other}
            assert {key: value for key, value in one.items() if key not in _LOSSES} == {
                key: value for key, value in other.items() if key not in _LOSSES
            }
            assert {key: one.get(key) for key in losses} == pytest.approx(losses, abs=TOLERANCE), one
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-4)
