"""The time limit holds in every phase: on a clock that goes on by a second with every pass over the model."""

import json
import warnings
from dataclasses import replace

import pytest

from conftest import LABELS, TEXTS
from cuecraft import load_backbone
from cuecraft.api.estimators import PromptClassifier
from cuecraft.artifact import Calibration, load_artifact
from cuecraft.backbone import Budget
from cuecraft.core import deadline
from cuecraft.core.errors import CuecraftWarning
from cuecraft.methods import prepare
from cuecraft.methods import prepare as reading
from cuecraft.runs import run_tune
from cuecraft.runs.spec import RunFiles, RunSpec, method_section
from cuecraft.task.sections import ModelSection
from products import in_turn
from test_tune import FAST

#: Passes that may follow the limit: the one under way, and those of what has to be there (a class head, one answer).
LATE = 24
METHODS = sorted(set(FAST) - {"embedding-probe"})
REFUSED = [(method, "sequence") for method in ("first-order", "zero-shot", "in-context")]


class Clock:
    """Stands in for the module `time`."""

    now = 0.0

    def monotonic(self):
        return self.now

    perf_counter = monotonic


@pytest.fixture
def clocked(monkeypatch, request):
    """Make a backbone whose every pass takes a second of the clock that limits are measured by."""
    clock, hooks = Clock(), []
    for module in (deadline, prepare, reading):
        monkeypatch.setattr(module, "time", clock)

    def tick(*ignored):
        clock.now += 1.0

    def make(kind):
        backbone = request.getfixturevalue(kind)
        hooks.append(backbone.model.register_forward_pre_hook(tick))
        base = backbone.model.base_model
        if base is not backbone.model:
            hooks[-1].remove()
            hooks[-1] = base.register_forward_pre_hook(tick)
        small = load_backbone(backbone)
        monkeypatch.setattr(small, "budget", replace(Budget.of_device(backbone.device), tokens=24, tree=24))
        return small

    make.clock = clock
    yield make
    for hook in hooks:
        hook.remove()


def rows(count):
    return [f"{TEXTS[n % 8][0]} {n}" for n in range(count)], [LABELS[TEXTS[n % 8][1]] for n in range(count)]


def tune_spec(backbone, folder, method="hybrid", options=None, unlabeled=False, **given):
    """A run over `train.jsonl` and `test.jsonl` of a folder."""
    data = {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    model = ModelSection.model_construct(name=backbone, head=None, device="auto", dtype="auto", local_files_only=True)
    tune = method_section("label-free" if unlabeled else method, options or {})
    return RunSpec(model=model, data=data, tune=tune, **given)


def fitted(backbone, method, limit, **options):
    """A classifier that was fitted to forty texts within a limit, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CuecraftWarning)
        made = PromptClassifier(backbone, method, method_options=FAST[method], time_limit=limit, **options)
        return made.fit(*rows(40)), " ".join(str(one.message) for one in caught)


@pytest.mark.parametrize(("method", "kind"), in_turn(METHODS, ["causal", "masked", "sequence"], refused=REFUSED))
def test_no_method_goes_on_after_its_time(method, kind, clocked):
    backbone, clock = clocked(kind), clocked.clock
    for limit in (0, 30, 90):
        begun = clock.now
        found, _ = fitted(backbone, method, limit)
        assert clock.now - begun <= limit + LATE
        assert found.artifact_.calibration is not None


@pytest.mark.parametrize("method", ["autoprompt", "auto"])
def test_a_search_of_label_words_ends_too(method, clocked):
    backbone, clock = clocked("causal"), clocked.clock
    for limit in (0, 60, 90):
        begun = clock.now
        fitted(backbone, method, limit, label_words="auto")
        assert clock.now - begun <= limit + LATE


@pytest.mark.parametrize(("kind", "method"), [("causal", "deep-cue"), ("masked", "prompt-tuning")])
def test_what_was_not_calibrated_in_time_says_so(kind, method, clocked):
    backbone = clocked(kind)
    found, said = fitted(backbone, method, 0)
    assert "the time limit ended before the untuned prompt was calibrated: it ships uncalibrated" in said
    assert found.artifact_.calibration == Calibration.none(2)
    assert not found.outcome_.is_tuned
    found, said = fitted(backbone, method, 5000)
    assert "uncalibrated" not in said
    assert found.artifact_.calibration != Calibration.none(2)


def test_a_class_head_of_a_run_without_time_is_there_and_says_so(clocked):
    found, said = fitted(clocked("sequence"), "deep-cue", 0)
    assert "a class head of one example a class" in said
    assert found.predict_proba(rows(2)[0]).shape == (2, 2)


@pytest.mark.parametrize("limit", [0, 40, 150, 600])
@pytest.mark.parametrize("unlabeled", [False, True])
def test_tuning_and_testing_share_the_limit(limit, unlabeled, clocked, tmp_path):
    backbone, clock = clocked("causal"), clocked.clock
    texts, labels = rows(120)
    for name, part in (("train", range(40)), ("test", range(40, 120))):
        lines = [json.dumps({"text": texts[n], "label": labels[n]}) for n in part]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    own = {"method": "prompt-tuning", "options": {"epochs": 1000, "patience": 1000}}
    if unlabeled:
        own = {"unlabeled": True, "task": {"classes": LABELS}, "options": {"mutations": 1000}}
    spec = tune_spec(backbone, tmp_path, time_limit=limit, **own)
    begun = clock.now
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CuecraftWarning)
        document = run_tune(spec, RunFiles(tmp_path / "out"), lambda name: lambda event: None)
    assert clock.now - begun <= limit + LATE
    answered, said = document["test_rows"], " ".join(str(one.message) for one in caught)
    assert (answered < 80) == (f"{answered} of 80 test rows were answered within the time limit" in said)
    assert (answered == 0) == (document["metrics"]["test_accuracy"] is None)
    manifest = load_artifact(tmp_path / "out").manifest
    assert (manifest.data["test"].rows if answered else 0) == answered
    assert limit < 600 or answered == 80


def test_a_limit_that_is_not_reached_changes_nothing(clocked):
    backbone = clocked("causal")
    free, bound = (fitted(backbone, "prompt-tuning", limit)[0] for limit in (None, 10_000))
    assert free.artifact_.manifest.metrics == bound.artifact_.manifest.metrics
    assert free.predict_proba(rows(8)[0]) == pytest.approx(bound.predict_proba(rows(8)[0]), abs=1e-6)


def test_many_classes_of_several_words_cost_no_pass_after_the_limit(clocked):
    """Where the time ends before the untuned prompt is calibrated, nothing is read for it afterwards."""
    backbone, clock = clocked("causal"), clocked.clock
    names = [f"class number {n} of some words" for n in range(40)]
    texts, labels = zip(*[(f"{TEXTS[n % 8][0]} {n}", names[n % 40]) for n in range(120)], strict=True)
    begun = clock.now
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CuecraftWarning)
        found = PromptClassifier(backbone, "zero-shot", time_limit=150).fit(texts, labels)
    assert found.outcome_.best.is_cut  # so it was not calibrated
    assert clock.now - begun <= 150 + 2
