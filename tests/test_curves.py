"""The curves of accuracy against seconds (benchmarks/curves.py): what is kept after each epoch, means, the picture."""

import importlib
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conftest import tiny_problem
from cuecraft.methods import make_method
from cuecraft.methods.problem import Selection, score


@pytest.fixture
def benchmark(monkeypatch):
    """Import a benchmark by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize("name", ["deep-cue", "lora"])
def test_after_each_epoch_the_best_on_dev_so_far_is_kept_as_it_was(benchmark, causal, labelled, name):
    """What is kept must not change with further training, so dev loss is measured again when all is over."""
    curves = benchmark("curves")
    problem = tiny_problem(causal)
    method = make_method(name, {"epochs": 6, "learning_rate": 0.1})
    steps = curves.training_steps(method, problem, labelled)
    outcome = method.fit(problem)
    losses = [event["dev_loss"] for event in outcome.trace if event["phase"] == name]
    assert [step.epoch for step in steps] == list(range(7))
    assert [step.dev_loss for step in steps] == pytest.approx(list(accumulate(losses, min)))
    assert len({step.dev_loss for step in steps}) > 2  # it learns, so there are several to mix up
    for step in steps:
        assert score(causal, step.shipped, problem.dev).loss == pytest.approx(step.dev_loss, abs=1e-6)
    seconds = [step.seconds for step in steps]
    assert seconds == sorted(seconds)
    assert Selection.see.__name__ == "see"  # nothing listens any more


def test_of_an_adapter_too(benchmark):
    accuracy = benchmark("accuracy")
    losses = [0.9, 0.7, 0.8, 0.6, *[0.65] * 8, 0.1]  # patience ends it before the last one
    weight = torch.nn.Parameter(torch.zeros(1))
    loop = SimpleNamespace(model=torch.nn.Module(), texts=range(4), epoch=lambda order: weight.data.add_(1))
    loop.model.weight = weight

    def predict(examples):  # whose cross-entropy against class 0 is the loss of this epoch
        wanted = torch.tensor(losses[int(weight)], dtype=torch.float64)
        return torch.stack([-wanted, (1 - (-wanted).exp()).log()])[None]

    run = accuracy.PeftRun(loop, predict, [SimpleNamespace(gold=0)], seed=0)
    seen = []
    found = accuracy.fit_peft(run, lambda epoch, loss, kept: seen.append((epoch, round(loss, 6), kept[0].item())))
    best = [(0.9, 0), (0.7, 1), (0.7, 1), *[(0.6, 3)] * 9]
    assert seen == [(epoch, loss, at) for epoch, (loss, at) in enumerate(best)]
    assert found == (pytest.approx(0.6), 3)
    assert weight.item() == 3


def test_what_ships_for_long_is_scored_once(benchmark):
    curves = benchmark("curves")
    first, second = object(), object()
    steps = [curves.Step(0, 1.0, 0.9, first), curves.Step(1, 2.0, 0.9, first), curves.Step(2, 3.0, 0.5, second)]
    asked = []

    def accuracy(shipped):
        asked.append(shipped)
        return {first: 0.25, second: 0.75}[shipped]

    points = curves.curve(steps, 10.0, accuracy)
    assert asked == [first, second]
    assert [(point["seconds"], point["accuracy"]) for point in points] == [(11, 0.25), (12, 0.25), (13, 0.75)]


def test_a_mean_curve_holds_what_each_run_had_reached(benchmark):
    mean_curve = benchmark("curves_picture").mean_curve
    one = [(1.0, 0.5), (3.0, 0.7), (9.0, 0.8)]
    other = [(2.0, 0.1), (4.0, 0.3)]  # ends first, and keeps its last accuracy
    assert mean_curve([one, other]) == [
        (2.0, pytest.approx(0.3)),
        (3.0, pytest.approx(0.4)),
        (4.0, pytest.approx(0.5)),
        (9.0, pytest.approx(0.55)),
    ]


def test_the_picture_is_the_same_again_and_its_labels_do_not_overlap(benchmark, tmp_path, monkeypatch):
    text_of = pytest.importorskip("matplotlib.text").Text.get_window_extent  # an annotation's own has its line in it
    picture = benchmark("curves_picture")
    machine = {"cpu": "a processor", "threads": 2}
    about = [{"task": "trec", "seed": seed, "machine": machine} for seed in (13, 21)]
    epochs = [{"seconds": 5.0 + n, "accuracy": 0.5 + n / 100} for n in range(20)]
    runs = [own | {"method": method, "epochs": epochs} for own in about for method in picture.LINES]
    ends = [own | {"method": method, "seconds": 24.0, "accuracy": 0.69} for own in about for method in picture.MARKS]
    written = []

    def place(figure, panel, labels):
        placed(figure, panel, labels)
        written.extend(text_of(text) for text in panel.texts)

    placed = picture.place_labels
    monkeypatch.setattr(picture, "place_labels", place)
    for name in ("one.svg", "other.svg"):
        picture.draw({"runs": runs, "ends": ends}, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()
    boxes = written[:6]  # all methods end at one point
    assert len(written) == 12
    assert not [(n, m) for n in range(6) for m in range(n) if boxes[n].overlaps(boxes[m])]
