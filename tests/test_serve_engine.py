"""The engine: answers are those of each prompt alone, whatever the batch; nothing is lost, late or computed twice."""

import threading
import time
from concurrent.futures import CancelledError
from concurrent.futures import wait as wait_for
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import TEXTS, examples
from cuecraft import PromptClassifier
from cuecraft.artifact import CalibratedPrompt, Calibration
from cuecraft.core.errors import (
    ArtifactError,
    BackboneError,
    DataError,
    DeadlineError,
    QueueFullError,
    ServeError,
    TemplateError,
)
from cuecraft.serving.artifacts import Shelf
from cuecraft.serving.engine import Engine, EngineOptions
from cuecraft.serving.requests import Watcher
from serving import X, Y, classifiers


class Noting(Watcher):
    def __init__(self):
        self.batches, self.answers, self.refusals = [], [], []

    def batched(self, rows, texts, tokens, seconds):
        self.batches.append((rows, texts))

    def answered(self, prompt, seconds, source):
        self.answers.append((prompt, source))

    def refused(self, reason, answers):
        self.refusals += [reason] * answers


def fields(*texts):
    return [{"text": text} for text in texts]


def shelf_of(backbone, names=None):
    shelf = Shelf(backbone)
    for name, classifier in classifiers(backbone).items():
        if names is None or name in names:
            shelf.put(name, [classifier.artifact_])
    return shelf


@pytest.fixture
def engine(causal):
    """An engine with a hard and a soft prompt, closed in the end."""
    made = Engine(shelf_of(causal, ("hard", "soft")), EngineOptions(max_wait_ms=0), Noting())
    yield made
    made.close()


class Gate:
    """Holds the engine's passes until it is opened."""

    def __init__(self, backbone, monkeypatch):
        self.entered, self.opened = threading.Event(), threading.Event()
        plain = backbone.mixed_logits

        def held(rows):
            self.entered.set()
            assert self.opened.wait(20)
            return plain(rows)

        monkeypatch.setattr(backbone, "mixed_logits", held)


@pytest.fixture
def gate(causal, monkeypatch):
    found = Gate(causal, monkeypatch)
    yield found
    found.opened.set()


@pytest.fixture(scope="module", params=["causal", "masked", "sequence"])
def loaded(request):
    backbone = request.getfixturevalue(request.param)
    made = Engine(shelf_of(backbone), EngineOptions(max_wait_ms=1))
    yield made, {name: own.predict_proba(X) for name, own in classifiers(backbone).items()}
    made.close()


@examples(30)
@given(data=st.data())
def test_answers_are_those_of_each_classifier_whatever_the_batch(loaded, data):
    engine, expected = loaded
    one = st.tuples(
        st.lists(st.integers(0, len(X) - 1), min_size=1, max_size=4),
        st.lists(st.sampled_from(list(expected)), min_size=1, max_size=4, unique=True),
    )
    asked = data.draw(st.lists(one, min_size=1, max_size=6))
    futures = [engine.submit(fields(*(X[row] for row in rows)), names) for rows, names in asked]
    for future, (rows, names) in zip(futures, asked, strict=True):
        found = [answer.probabilities for answer in future.result(20)]
        assert np.allclose(found, [expected[name][row] for row in rows for name in names], atol=1e-5)


def test_an_answer_names_prompt_version_and_label(engine, causal):
    (answer,) = engine.ask(fields(X[0]), ["hard"])
    classifier = classifiers(causal)["hard"]
    assert (answer.prompt, tuple(answer.decision.options)) == ("hard", ("negative", "positive"))
    assert answer.decision.value == classifier.predict(X[:1])[0]
    assert answer.version == engine.shelf.get("hard").version
    assert not answer.is_cut


def test_the_same_text_in_flight_is_answered_once(engine, gate):
    first = engine.submit(fields(X[0]), ["hard"])
    assert gate.entered.wait(20)
    futures = [engine.submit(fields(X[1]), ["hard"]) for _ in range(5)] + [engine.submit(fields(X[1]), ["soft"])]
    gate.opened.set()
    wait_for([first, *futures], 20)
    assert len({future.result()[0].probabilities for future in futures[:5]}) == 1
    assert sum(rows for rows, _ in engine.watcher.batches) == 3
    assert sorted(engine.watcher.answers) == sorted(
        [("hard", "computed"), ("hard", "computed"), ("soft", "computed"), *[("hard", "shared")] * 4]
    )


def test_one_text_under_two_prompts_is_one_text_of_the_batch(engine):
    engine.ask(fields(X[0]), ["hard", "soft"])
    assert engine.watcher.batches == [(2, 1)]


def test_a_full_queue_refuses_with_a_time_to_come_back(causal, gate):
    engine = Engine(shelf_of(causal, ("hard",)), EngineOptions(max_queue=3), Noting())
    held = engine.submit(fields(*X[:3]), ["hard"])
    assert gate.entered.wait(20)
    with pytest.raises(QueueFullError) as error:
        engine.submit(fields(X[3]), ["hard"])
    assert error.value.retry_after > 0
    assert engine.watcher.refusals == ["full"]
    with pytest.raises(ServeError, match="4 answers were asked for at once, and 3 may be waited for"):
        engine.submit(fields(*X[:4]), ["hard"])
    gate.opened.set()
    assert len(held.result(20)) == 3
    assert len(engine.ask(fields(X[3]), ["hard"])) == 1  # there is room again
    assert engine.waiting == 0
    engine.close()


def test_what_is_too_late_fails_and_is_not_computed(engine, gate):
    first = engine.submit(fields(X[0]), ["hard"])
    assert gate.entered.wait(20)
    late = engine.submit(fields(X[1]), ["hard"], timeout=0.01)
    time.sleep(0.05)
    gate.opened.set()
    with pytest.raises(DeadlineError, match="in time"):
        late.result(20)
    assert len(first.result(20)) == 1
    assert engine.watcher.batches == [(1, 1)]
    assert engine.watcher.refusals == ["deadline"]


def test_what_is_cancelled_is_not_computed_unless_another_waits(engine, gate):
    first = engine.submit(fields(X[0]), ["hard"])
    assert gate.entered.wait(20)
    alone, shared = (engine.submit(fields(X[row]), ["hard"]) for row in (1, 2))
    other = engine.submit(fields(X[2]), ["hard"])
    assert alone.cancel()
    assert shared.cancel()
    gate.opened.set()
    assert other.result(20)[0].prompt == "hard"
    with pytest.raises(CancelledError):
        alone.result()
    assert sum(rows for rows, _ in engine.watcher.batches) == 2
    assert len(first.result()) == 1


def test_a_prompt_swapped_or_dropped_answers_what_is_under_way(engine, gate, causal):
    before = engine.submit(fields(X[0]), ["soft"])
    assert gate.entered.wait(20)
    waiting = engine.submit(fields(X[1]), ["soft"])
    old = engine.shelf.get("soft").version
    engine.shelf.put("soft", [classifiers(causal)["deep"].artifact_])
    after = engine.submit(fields(X[1]), ["soft"])
    engine.shelf.drop("soft")
    with pytest.raises(ServeError, match="there is no prompt 'soft'; there are hard"):
        engine.submit(fields(X[1]), ["soft"])
    gate.opened.set()
    assert before.result(20)[0].version == waiting.result(20)[0].version == old
    (answer,) = after.result(20)
    assert answer.version != old
    assert np.allclose(answer.probabilities, classifiers(causal)["deep"].predict_proba(X[1:2])[0], atol=1e-5)


def test_a_text_that_cannot_be_read_spoils_no_other(engine, gate):
    first = engine.submit(fields(X[0]), ["hard"])
    assert gate.entered.wait(20)
    bad, good = engine.submit([{"text": ""}], ["hard"]), engine.submit(fields(X[1]), ["hard"])
    gate.opened.set()
    with pytest.raises(DataError, match="has no tokens"):
        bad.result(20)
    assert len(good.result(20)) == len(first.result(20)) == 1
    assert engine.watcher.refusals == ["invalid"]


def test_a_row_that_fails_in_the_model_spoils_no_other(engine, causal, monkeypatch):
    plain = causal.mixed_logits
    bad_text = tuple(causal.tokenizer(X[2])["input_ids"])

    def fragile(rows):
        if any(piece.before == bad_text for _, piece in rows):
            raise RuntimeError("no such kernel")
        return plain(rows)

    monkeypatch.setattr(causal, "mixed_logits", fragile)
    futures = [engine.submit(fields(text), ["hard"]) for text in X[:4]]
    with pytest.raises(RuntimeError, match="no such kernel"):
        futures[2].result(20)
    assert all(len(future.result(20)) == 1 for n, future in enumerate(futures) if n != 2)
    assert engine.waiting == 0


@pytest.mark.parametrize("part", ["decided", "fitted"])
def test_a_prompt_that_fails_in_any_way_takes_no_other_and_no_thread_with_it(engine, monkeypatch, part):
    served = engine.shelf.get("soft")

    def broken(*arguments):
        raise ZeroDivisionError

    owner = served if part == "decided" else served.members[0].ready.renderer
    object.__setattr__(owner, part, broken)
    bad, good = engine.submit(fields(X[0]), ["soft"]), engine.submit(fields(X[0]), ["hard"])
    with pytest.raises(ZeroDivisionError):
        bad.result(20)
    assert len(good.result(20)) == 1
    assert engine.is_open
    assert engine.waiting == 0


def test_answers_that_are_not_finite_are_an_error(engine):
    member = engine.shelf.get("soft").members[0]
    object.__setattr__(member, "calibration", replace(member.calibration, scale=float("inf")))
    with pytest.raises(BackboneError, match="NaN or infinity"):
        engine.ask(fields(X[0]), ["soft"])


def test_what_cannot_be_answered_in_time_is_refused_at_once(engine, gate):
    held = engine.submit(fields(X[0]), ["hard"])
    assert gate.entered.wait(20)
    engine.rate = 2.0
    with pytest.raises(QueueFullError) as error:
        engine.submit(fields(*X[1:4]), ["hard"], timeout=1.0)
    assert error.value.retry_after == pytest.approx(2.0)
    engine.submit(fields(*X[1:4]), ["hard"], timeout=3.0)
    gate.opened.set()
    assert len(held.result(20)) == 1


def test_what_is_taken_under_overload_is_answered_in_time(causal, monkeypatch):
    """Several times what can be answered: that goes on at its pace, and few are taken in vain."""
    own = causal.mixed_logits

    def slow(rows):
        time.sleep(0.005 * len(rows))
        return own(rows)

    class Slow(Noting):
        def answered(self, name, seconds, source):  # what takes time beside the model, as others on its cores do
            time.sleep(0.01)
            super().answered(name, seconds, source)

    monkeypatch.setattr(causal, "mixed_logits", slow)
    engine = Engine(shelf_of(causal, ("hard",)), EngineOptions(max_wait_ms=0), Slow())
    engine.ask(fields(X[0]), ["hard"])
    taken, refused, begun = [], 0, time.monotonic()
    while (now := time.monotonic()) < begun + 3:
        try:
            taken.append(engine.submit(fields(f"{X[0]} {now}"), ["hard"], timeout=0.5))
        except QueueFullError:
            refused += 1
        time.sleep(0.0025)
    late = sum(isinstance(future.exception(20), DeadlineError) for future in taken)
    engine.close()
    assert refused > 100
    assert late < 0.1 * len(taken)
    assert len(taken) - late > 40  # a fifth of its pace at least, on a busy machine


def test_a_request_that_is_cancelled_gives_its_room_back(causal, gate):
    engine = Engine(shelf_of(causal, ("hard",)), EngineOptions(max_queue=3, max_wait_ms=0), Noting())
    held = engine.submit(fields(X[0]), ["hard"])
    assert gate.entered.wait(20)
    assert engine.submit(fields(X[1], X[2]), ["hard"]).cancel()
    assert engine.waiting == 1
    other = engine.submit(fields(X[2], X[3]), ["hard"])
    gate.opened.set()
    assert len(other.result(20)) == 2
    assert len(held.result(20)) == 1
    assert sum(rows for rows, _ in engine.watcher.batches) == 3
    assert engine.watcher.refusals == []
    engine.close()


def test_an_artifact_whose_parts_do_not_fit_is_not_served(causal):
    artifact = classifiers(causal)["hard"].artifact_
    other = CalibratedPrompt(artifact.prompt, Calibration((0.0, 0.0, 0.0)))
    for part in ({"calibration": other.calibration}, {"others": (other,)}):
        with pytest.raises(ArtifactError, match="different numbers of options"):
            Shelf(causal).put("broken", [replace(artifact, **part)])


def test_kept_answers_are_given_again_until_the_prompt_is_another(causal):
    shelf = shelf_of(causal, ("hard", "soft"))
    engine = Engine(shelf, EngineOptions(cache_answers=2), Noting())
    for _ in range(2):
        engine.ask(fields(X[0]), ["hard"])
    assert [source for _, source in engine.watcher.answers] == ["computed", "cache"]
    shelf.put("hard", [classifiers(causal)["deep"].artifact_])
    (answer,) = engine.ask(fields(X[0]), ["hard"])
    assert np.allclose(answer.probabilities, classifiers(causal)["deep"].predict_proba(X[:1])[0], atol=1e-5)
    engine.ask(fields(X[1], X[2]), ["hard"])  # more than is kept
    engine.ask(fields(X[0]), ["hard"])
    assert [source for _, source in engine.watcher.answers][2:] == ["computed"] * 4
    engine.close()


def test_closing_answers_what_is_under_way_and_refuses_the_rest(causal, gate):
    engine = Engine(shelf_of(causal, ("hard",)), EngineOptions(max_wait_ms=0), Noting())
    held = engine.submit(fields(X[0]), ["hard"])
    assert gate.entered.wait(20)
    closing = threading.Thread(target=engine.close, args=(20.0,))
    closing.start()
    while engine.is_open:
        time.sleep(0.001)
    with pytest.raises(ServeError, match="is stopping"):
        engine.submit(fields(X[1]), ["hard"])
    gate.opened.set()
    closing.join(20)
    assert len(held.result(0)) == 1
    assert engine.watcher.refusals == ["closing"]


def test_closing_without_time_lets_what_waits_fail(causal, gate):
    engine = Engine(shelf_of(causal, ("hard",)), EngineOptions(max_wait_ms=0), Noting())
    engine.submit(fields(X[0]), ["hard"])
    assert gate.entered.wait(20)
    waiting = engine.submit(fields(X[1]), ["hard"])
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(ServeError, match="is stopping"):
        waiting.result(20)
    gate.opened.set()
    closing.join(20)
    assert not closing.is_alive()


def test_an_ensemble_answers_with_the_mean(causal):
    members = [classifiers(causal)[name] for name in ("soft", "deep")]
    shelf = Shelf(causal)
    shelf.put("both", [member.artifact_ for member in members])
    engine = Engine(shelf)
    found = [answer.probabilities for answer in engine.ask(fields(*X), ["both"])]
    assert np.allclose(found, np.mean([member.predict_proba(X) for member in members], axis=0), atol=1e-5)
    engine.close()


def test_a_long_text_says_that_it_was_cut(causal):
    classifier = PromptClassifier(causal, "zero-shot", max_tokens=48).fit(X, Y)
    shelf = Shelf(causal)
    shelf.put("short", [classifier.artifact_])
    engine = Engine(shelf)
    cut = [answer.is_cut for answer in engine.ask(fields("joy", " ".join(X)), ["short"])]
    assert cut == [False, True]
    engine.close()


def test_requests_that_ask_for_nothing_or_lack_a_field(engine):
    for texts, prompts in (([], ["hard"]), (fields(X[0]), [])):
        with pytest.raises(ServeError, match="nothing was asked for"):
            engine.submit(texts, prompts)
    with pytest.raises(TemplateError, match="names field 'text'"):
        engine.submit([{"title": "a", "body": "b"}], ["hard"])


def test_the_shelf_takes_no_bad_ids_no_foreign_prompts_and_not_too_many(causal, masked):
    artifact = classifiers(causal)["hard"].artifact_
    shelf = Shelf(causal, most=1)
    for name in ("", "../up", "a b", "x" * 65, ".hidden"):
        with pytest.raises(ServeError, match="cannot be one"):
            shelf.put(name, [artifact])
    with pytest.raises(ArtifactError, match="was made for a masked backbone"):
        shelf.put("foreign", [classifiers(masked)["hard"].artifact_])
    shelf.put("one", [artifact])
    shelf.put("one", [artifact])  # a swap needs no more room
    with pytest.raises(ServeError, match="which is the limit"):
        shelf.put("two", [artifact])
    with pytest.raises(ArtifactError, match="one template"):
        Shelf(causal).put("mixed", [artifact, classifiers(causal)["hard-first"].artifact_])
    assert [served.describe()["classes"] for served in shelf.all()] == [["negative", "positive"]]


def test_many_threads_get_their_own_answers(engine, causal):
    expected = {name: classifiers(causal)[name].predict_proba(X) for name in ("hard", "soft")}
    wrong = []

    def client(seed):
        random = np.random.default_rng(seed)
        for _ in range(10):
            row, name = int(random.integers(len(X))), ("hard", "soft")[int(random.integers(2))]
            (answer,) = engine.ask(fields(X[row]), [name])
            if not np.allclose(answer.probabilities, expected[name][row], atol=1e-5):
                wrong.append((row, name))

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert len(engine.watcher.answers) == 80
    assert len(TEXTS) == len(X)
