"""Reading no more examples than a method wants, in the time that it has for that."""

import itertools

import pytest
import torch

from conftest import LABELS, make_task, records
from cuecraft.artifact import HardPrompt
from cuecraft.core.errors import CuecraftWarning
from cuecraft.data import Record
from cuecraft.methods import prepare as reading
from cuecraft.methods.prepare import make_problem
from cuecraft.methods.problem import ReadingLimit

WORDS = "a joy from start to finish it was good bad great awful".split()


def many(count, rare=1):
    """So many texts, all different; every `rare`-th one and the first are of the rarer class."""
    pairs = itertools.islice(itertools.product(WORDS, WORDS, WORDS), count)
    return [Record({"text": " ".join(words)}, LABELS[n % (rare + 1) == 0]) for n, words in enumerate(pairs)]


def share(part):
    return float(part.labels.double().mean())


def test_the_examples_are_a_stratified_part_in_their_own_order(causal):
    train, dev = many(200, 3), many(80, 3)
    with pytest.warns(CuecraftWarning, match="70 of 280 labelled examples are used"):
        problem = make_problem(causal, make_task(), train, dev, reading=ReadingLimit(70, 0.25))
    assert (len(problem.train), len(problem.dev)) == (50, 20)
    texts = [record.fields["text"] for record in train]
    places = [texts.index(example.fields["text"]) for example in problem.train.context.examples]
    assert places == sorted(set(places))
    for place, label in zip(places, problem.train.labels.tolist(), strict=True):
        assert LABELS[label] == train[place].label
    assert problem.data["train"].rows == 50
    assert 0.25 <= share(problem.train) <= 0.5  # classes in turn: a rare one comes first


def test_what_is_read_in_parts_is_what_is_read_at_once(causal, recwarn):
    rows = many(150)
    parts = make_problem(causal, make_task(), rows, rows[:10], reading=ReadingLimit(1000, 0.25))
    whole = make_problem(causal, make_task(), rows, rows[:10])
    prompt = HardPrompt(whole.initial_ids)
    with torch.no_grad():
        found, expected = (causal.class_logits(p.train.context, prompt) for p in (parts, whole))
    assert torch.allclose(found, expected, atol=1e-5)
    assert parts.data == whole.data
    assert not [warning for warning in recwarn if warning.category is CuecraftWarning]


def test_it_stops_when_its_share_of_the_time_is_over(causal, monkeypatch):
    seconds, read, plain = [0.0], [], reading.label_context

    def label_context(*args):
        read.append(len(args[2]))
        found = plain(*args)
        seconds[0] += 1 + len(args[2]) / 32
        return found

    monkeypatch.setattr(reading.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(reading, "label_context", label_context)
    with pytest.warns(CuecraftWarning, match="of 800 labelled examples"):
        _, (train, dev) = reading.read_within(
            causal, make_task(), (many(600), many(200)), 0, ReadingLimit(1000, 0.25), 40.0
        )
    # Of 10 s, 7.5 are for the training examples and 2.5 for dev: parts grow until 64, and none begins afterwards.
    assert read == [4, 4, 8, 16, 32, 64, 4, 4, 8]
    assert (len(train), len(dev)) == (128, 16)


def test_small_parts_keep_two_of_each_class(causal):
    with pytest.warns(CuecraftWarning):
        problem = make_problem(causal, make_task(), many(100), many(8), reading=ReadingLimit(20, 0.25))
    assert problem.dev.labels.bincount().tolist() == [2, 2]


def test_no_dev_set_stays_no_dev_set(causal):
    problem = make_problem(causal, make_task(), records()[:2], [], reading=ReadingLimit(20, 0.25))
    assert problem.dev is None
