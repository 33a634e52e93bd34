"""A comparison's folder, its cells and steps, and trials that are run and repeated."""

import json
from dataclasses import replace
from typing import ClassVar

import pytest

from conftest import make_examples, tiny_problem
from cuecraft.core.errors import CompareError, CuecraftWarning
from cuecraft.core.events import TrainStep
from cuecraft.methods import make_method
from cuecraft.methods.problem import CalibrationKind, Method, Selection, label_context, score
from cuecraft.methods.untuned import starting_point
from cuecraft.study.compare.comparison import Folder, cell_key
from cuecraft.study.compare.schema import Step
from cuecraft.study.compare.trial import repeat_trial, run_trial


def test_a_folder_has_one_process_at_a_time_and_none_of_another_kind(tmp_path):
    folder = Folder(tmp_path / "out")
    with folder.locked(), pytest.raises(CompareError, match="another cuecraft compare is at work"), folder.locked():
        pass
    with folder.locked():
        pass  # free again
    half = folder.path / "cells" / ".a-seed-1.json-x.tmp"
    half.write_text("{")
    with Folder(folder.path).locked():
        assert not half.exists()
    (tmp_path / "mine").mkdir()
    Folder(tmp_path / "mine")
    (tmp_path / "mine" / "photo.png").touch()
    with pytest.raises(CompareError, match="no comparison's folder"):
        Folder(tmp_path / "mine")


def test_a_cell_of_another_key_is_out_of_date_and_not_damaged(tmp_path):
    folder = Folder(tmp_path)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a-seed-1.json").write_text(json.dumps({"key": "old", "of": "another schema"}))
    assert folder.read("a", 1, "new") is None
    with pytest.warns(CuecraftWarning, match="is damaged"):
        assert folder.read("a", 1, "old") is None
    assert folder.read("b", 1, "old") is None
    assert cell_key({"a": 1, "b": [2]}) == cell_key({"b": [2], "a": 1}) != cell_key({"a": 1, "b": [3]})


def test_steps_take_what_they_know_and_leave_out_what_is_no_number():
    step = Step.of({"phase": "search", "step": 3, "train_loss": float("nan"), "accepted": False, "position": 2}, 9)
    assert step == Step(phase="search", step=3, train_loss=None, accepted=False)
    assert Step.model_validate_json(step.model_dump_json()) == step
    assert Step.of({}, 9).step == 9


class Steps(Method):
    """Reports steps with losses of a list, until it is told to stop; then an end."""

    name: ClassVar[str] = "steps"
    losses: ClassVar[list[float]] = []

    def fit(self, problem):
        start = starting_point(problem, problem.initial_ids, CalibrationKind.NONE)
        selection = Selection(problem)
        selection.see(start, score(problem.backbone, start, problem.train), TrainStep("untuned", 0))
        count = 0
        for step, loss in enumerate(self.losses, start=1):
            if problem.out_of_time():
                break
            count = step
            selection.note(TrainStep("steps", step, train_loss=loss))
        selection.note(TrainStep("end", count))
        return selection.outcome(start)


@pytest.mark.parametrize(
    ("again", "ticks", "expected"),
    [
        ([0.5, 0.4, 0.3], [], (True, 5)),  # to the end: start, three steps, end
        ([0.5, 0.4, 0.3], [0, 0, 9], (True, 2)),  # told to stop before the second step: its own end is not compared
        ([0.5, 0.4 + 1e-16 + 1e-15, 0.3], [], (False, 5)),
        ([0.5, 0.9, 0.9], [0, 0, 9], (True, 2)),  # the difference comes later than was looked at
        ([0.5, 0.4], [], (False, 5)),
        ([0.9], [0, 9], (True, 1)),  # no time at all: the start is compared
        ([float("nan")], [], (False, 5)),
    ],
)
def test_a_second_run_is_compared_as_far_as_it_had_time(causal, monkeypatch, again, ticks, expected):
    problem = tiny_problem(causal)
    monkeypatch.setattr(Steps, "losses", [0.5, 0.4, 0.3])
    trial = run_trial("steps", Steps(), problem, problem.dev)
    monkeypatch.setattr(Steps, "losses", again)
    clock = iter(ticks)
    repeat = repeat_trial(trial, problem, lambda: next(clock, ticks[-1] if ticks else 0))
    assert (repeat.same, repeat.steps) == expected


def test_a_trial_tells_its_own_listener_and_keeps_the_predictions(causal):
    heard = []
    problem = replace(tiny_problem(causal), report=heard.append)
    test = label_context(causal, problem.task, make_examples())
    trial = run_trial("tuned", make_method("prompt-tuning", {"epochs": 2}), problem, test)
    assert heard == list(trial.events) == trial.outcome.trace
    logits = trial.outcome.best.logits(causal, test.context)
    assert trial.predictions.tolist() == logits.argmax(-1).tolist()
    assert trial.test == score(causal, trial.outcome.best, test)
