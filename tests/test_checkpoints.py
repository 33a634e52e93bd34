"""A training that is killed and goes on ends with the bits of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from conftest import LABELS, TEXTS, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.core.checkpoints import Checkpoints, Keeping
from cuecraft.core.errors import MethodError, StoppedError
from cuecraft.core.storage import write_text
from cuecraft.methods import make_method
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.prepare import with_checkpoints
from cuecraft.methods.problem import CalibrationKind, Selection
from cuecraft.methods.train.deep import OffsetTraining
from cuecraft.methods.untuned import starting_point

RESUMED = {
    "autoprompt": {"steps": 6, "candidates": 8, "prompt_length": 4},
    "autoprompt fluent": {"steps": 6, "candidates": 8, "prompt_length": 4, "fluency": 0.1},
    "straight-through": {"steps": 8, "prompt_length": 4},
    "prompt-tuning": {"epochs": 6, "learning_rate": 0.1},
    "p-tuning": {"epochs": 6, "encoder": "lstm", "encoder_width": 8, "encoder_learning_rate": 0.01},
    "p-tuning mlp": {"epochs": 6, "encoder": "mlp", "encoder_width": 8, "encoder_learning_rate": 0.01},
    "prefix-tuning": {"epochs": 6, "encoder_width": 8, "encoder_learning_rate": 0.01},
    "p-tuning-v2": {"epochs": 6, "learning_rate": 0.1},
    "deep-cue": {"epochs": 6},
    "deep-cue soft": {"epochs": 6, "verbalizer": "soft"},
    "contrastive": {"epochs": 3, "folds": 2, "learning_rates": [0.3, 0.1], "batch_size": 4},
    "hybrid": {"search.steps": 2, "search.candidates": 4, "tune.epochs": 6},
    "soup": {"members": 2, "deep.epochs": 4},
    "lora": {"epochs": 6, "learning_rate": 0.01},
    "lora-prompt": {"epochs": 6, "learning_rate": 0.01},
    "full": {"epochs": 6, "learning_rate": 0.001},
    "full contrastive": {"loss": "contrastive", "epochs": 3, "batch_size": 4, "learning_rate": 0.001},
    "auto": {},
}
#: One for each owner of state: the searches, the loop with each kind of trained tensors and each criterion, and what
#: joins trainings. `auto` is stopped in test_auto_limits.py, the multitask training in test_family.py.
OWNERS = {
    ("autoprompt", "causal"),
    ("straight-through", "causal"),
    ("p-tuning", "sequence"),
    ("prefix-tuning", "causal"),
    ("deep-cue", "sequence"),
    ("deep-cue soft", "causal"),
    ("contrastive", "sequence"),
    ("full contrastive", "causal"),
    ("lora-prompt", "causal"),
    ("hybrid", "causal"),
    ("soup", "sequence"),
}
RESUMABLE = [
    pytest.param(name, kind, marks=() if (name, kind) in OWNERS else pytest.mark.slow)
    for name in RESUMED
    for kind in ("causal", "sequence")
    if (name, kind) not in (("autoprompt fluent", "sequence"), ("deep-cue soft", "sequence"))  # which have no words
]


class KilledError(Exception):
    """Stands for a kill: nothing after it is run."""


def kept(folder, **more):
    """A state after every step."""
    return Checkpoints(Keeping(folder, seconds=0.0, **more), "key")


def artifact_of(backbone, name, folder=None, stop_after=None):
    """Run a method; with a number of events after which it is killed."""
    seen = []

    def report(event):
        seen.append(event)
        if len(seen) == stop_after:
            raise KilledError

    problem = tiny_problem(backbone, report=report)
    method = make_method(name.split()[0], RESUMED[name])
    checkpoints = kept(folder) if folder else None
    return make_artifact(problem, method.fit(replace(problem, checkpoints=checkpoints)), method), len(seen)


@pytest.mark.parametrize(("name", "kind"), RESUMABLE)
def test_killed_and_resumed_gives_the_same_bits(name, kind, request, tmp_path):
    backbone = request.getfixturevalue(kind)
    whole, events = artifact_of(backbone, name)
    for stop in (events // 2, 3):
        with pytest.raises(KilledError):
            artifact_of(backbone, name, tmp_path / "state", stop)
    resumed, again = artifact_of(backbone, name, tmp_path / "state")
    assert again < events  # it went on, and did not begin anew
    assert resumed.save(tmp_path / "b") == whole.save(tmp_path / "a")
    assert list(resumed.trace) == list(whole.trace)
    finished, once_more = artifact_of(backbone, name, tmp_path / "state")
    assert once_more <= again
    assert finished.save(tmp_path / "c") == whole.save(tmp_path / "a")


@pytest.mark.parametrize("name", ["autoprompt", "straight-through", "deep-cue"])
def test_a_state_is_kept_whenever_it_is_asked_to_stop(name, causal, tmp_path):
    # Whether to stop is asked after a step and before the next one: at each place it may come true first.
    whole = artifact_of(causal, name)[0].save(tmp_path / "whole")
    method = make_method(name, RESUMED[name])
    for number in range(6):
        times = iter([False] * number)
        keeping = Keeping(tmp_path / str(number), seconds=3600, stop=lambda left=times: next(left, True))
        with pytest.raises(StoppedError):
            method.fit(with_checkpoints(tiny_problem(causal), keeping, "key"))
        assert list(keeping.folder.iterdir()), number
        resumed = artifact_of(causal, name, keeping.folder)[0]
        assert resumed.save(tmp_path / f"resumed-{number}") == whole


def test_a_state_of_another_run_or_a_damaged_one_is_refused(causal_folder, tmp_path):
    texts, labels = [text for text, _ in TEXTS], [LABELS[label] for _, label in TEXTS]
    options = {"epochs": 2, "encoder_width": 8}

    def fit(seed):
        classifier = PromptClassifier(str(causal_folder), "p-tuning", method_options=options, seed=seed)
        return classifier.fit(texts, labels, checkpoints=tmp_path / "state")

    fit(0)
    with pytest.raises(MethodError, match="belongs to another run"):
        fit(1)
    state = next((tmp_path / "state").iterdir())
    state.write_bytes(state.read_bytes()[:20])
    with pytest.raises(MethodError, match="damaged"):
        fit(0)


CHILD = """
import sys, json, torch
from pathlib import Path
torch.set_num_threads(1)
from cuecraft import PromptClassifier
from cuecraft.core.checkpoints import Keeping
folder, state, out, encoder, slow = sys.argv[1:]
texts, labels = json.loads(sys.stdin.read())
def report(event):
    if slow == "slow":
        import time; time.sleep(0.2)
options = {"epochs": 60, "patience": 60, "encoder": encoder, "encoder_width": 16}
classifier = PromptClassifier(folder, "p-tuning", method_options=options)
classifier.fit(texts, labels, report=report, checkpoints=Keeping(Path(state), seconds=0.0) if state != "-" else None)
print(classifier.save(out))
"""


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_p_tuning_survives_sigkill(encoder, causal_folder, tmp_path):
    data = json.dumps([[text for text, _ in TEXTS], [LABELS[label] for _, label in TEXTS]])

    def start(state, out, pace):
        arguments = [sys.executable, "-c", CHILD, str(causal_folder), str(state), str(tmp_path / out), encoder, pace]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)
        process.stdin.write(data)
        process.stdin.close()
        return process

    whole = start("-", "whole", "fast")
    expected = whole.stdout.read().strip()
    assert whole.wait() == 0
    state = tmp_path / "state"
    reached = []
    for _ in range(3):
        process = start(state, "resumed", "slow")
        begun = len(reached) and reached[-1]
        while epoch_of(state) < begun + 3:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached.append(epoch_of(state))
    assert 0 < reached[0] < reached[1] < reached[2] < 60
    last = start(state, "resumed", "fast")
    assert last.stdout.read().strip() == expected
    assert last.wait() == 0


def epoch_of(state: Path) -> int:
    """The epoch that a state on disk has reached; -1 where there is none."""
    try:
        with safe_open(next(state.glob("*.safetensors")), "pt") as file:
            return json.loads(file.metadata()["document"])["epoch"]
    except (StopIteration, OSError):
        return -1


def test_a_state_holds_no_pickle(causal, tmp_path):
    artifact_of(causal, "p-tuning", tmp_path / "state")
    names = {path.name for path in (tmp_path / "state").rglob("*") if path.is_file()}
    assert names == {"01-p-tuning.safetensors"}


def test_without_a_dev_set_it_resumes_too(causal, tmp_path):
    def run(folder=None, stop=None):
        def report(event):
            if event["step"] == stop:
                raise KilledError

        problem = replace(tiny_problem(causal, report=report), dev=None)
        if folder:
            problem = replace(problem, checkpoints=kept(folder))
        return make_method("p-tuning", RESUMED["p-tuning"]).fit(problem)

    whole = run()
    with pytest.raises(KilledError):
        run(tmp_path / "state", 3)
    resumed = run(tmp_path / "state")
    assert torch.equal(whole.best.prompt.embeddings, resumed.best.prompt.embeddings)


def test_a_resumed_training_goes_on_counting_epochs_without_a_better_loss(causal, tmp_path):
    def run(stop=None, **more):
        def report(event):
            if (event["phase"], event["step"]) == ("prompt-tuning", stop):
                raise KilledError

        problem = replace(tiny_problem(causal, report=report), **more)
        return make_method("prompt-tuning", {"epochs": 60, "patience": 3, "learning_rate": 1.0}).fit(problem).trace

    whole = run()
    last = max(event["step"] for event in whole if event["phase"] == "prompt-tuning")
    assert last < 60  # it was stopped early
    with pytest.raises(KilledError):
        run(last - 1, checkpoints=kept(tmp_path))
    assert run(checkpoints=kept(tmp_path)) == whole


def test_states_are_kept_as_often_as_asked_and_when_asked_to_stop(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("cuecraft.core.checkpoints.time.monotonic", lambda: now[0])
    asked_to_stop = []
    slot = Checkpoints(Keeping(tmp_path, steps=3, seconds=10.0, stop=lambda: bool(asked_to_stop)), "key").slot("a")
    found = []
    for step in range(1, 10):
        now[0] = 2.0 * step
        if slot.due():
            found.append(step)
            slot.save({"step": step}, {})
    assert found == [5]  # after three steps and ten seconds: at 10 s, and not before 20 s again
    now[0] = 30.0
    assert slot.due()
    slot.save({"step": 10}, {})
    now[0] = 60.0
    assert [slot.due() for _ in range(3)] == [False, False, True]  # ten seconds are over, three steps are not
    slot.save({"step": 13}, {})
    asked_to_stop.append(True)
    assert slot.due()
    with pytest.raises(StoppedError):
        slot.save({"step": 14}, {})
    assert slot.load()[0]["step"] == 14


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_candidates_of_unequal_size_side_by_side_are_resumed_within_an_epoch(stop, causal, tmp_path):
    problem = replace(tiny_problem(causal), dev=None)
    pool = tiny_problem(causal).pool
    options = OffsetTraining(epochs=3, batch_size=2, learning_rate=0.1)
    start = starting_point(problem, problem.initial_ids, CalibrationKind.NONE)

    def trained(keeping=None):
        checkpoints = keeping and Checkpoints(keeping, "key")
        sizes = {5: 1, 8: 2}
        own = [
            replace(problem, train=pool.select(list(range(rows))), seed=seed, checkpoints=checkpoints)
            for rows, seed in sizes.items()
        ]
        selections = [Selection(part) for part in own]
        options.refine_side_by_side([(start, selection) for selection in selections])
        return [(found.best.prompt.offsets, found.trace) for found in selections]

    whole = trained()
    times = iter([False] * 2 * stop)
    with pytest.raises(StoppedError):
        trained(Keeping(tmp_path, seconds=3600, stop=lambda: next(times, True)))
    for (offsets, trace), (again, again_trace) in zip(whole, trained(Keeping(tmp_path, seconds=3600)), strict=True):
        assert torch.equal(offsets, again)
        assert trace == again_trace
    for rows, (offsets, _) in zip((5, 8), whole, strict=True):
        assert offsets.abs().max() > 1e-3, rows


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    steps, plain = [], Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: steps.append(os.fstat(handle).st_ino))
    monkeypatch.setattr(Path, "replace", lambda self, target: steps.append("replace") or plain(self, target))
    write_text(tmp_path / "state", "of a training")
    assert steps == [(tmp_path / "state").stat().st_ino, "replace", tmp_path.stat().st_ino]
