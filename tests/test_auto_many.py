"""`auto` with many classes: what it learns from, what it tries, and what that costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from cuecraft.artifact.predictor import Predictor
from cuecraft.core.errors import CuecraftWarning
from cuecraft.data import Record
from cuecraft.methods import make_method
from cuecraft.methods.auto import many
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.held_out import stratified_folds
from cuecraft.methods.prepare import make_problem, make_task, read_within
from cuecraft.methods.problem import ReadingLimit

WORDS = "good bad great awful joy bore warm cold dull bright love war film plot story sentiment".split()
NAMES = [f"{one} {other}" for one in WORDS[:6] for other in WORDS[6:11]]  # 30
#: Small, and otherwise as with any other sizes.
SMALL = {"_TEXTS": 400}


def rows(per_class=2, names=NAMES):
    texts = ["it was {}", "{} from start to finish", "never {}", "the {} of it"]
    return [Record({"text": texts[n].format(name)}, name) for name in names for n in range(per_class)]


@pytest.fixture(params=["causal", "sequence"])
def problem(request, monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(many, name, value)
    backbone = request.getfixturevalue(request.param)
    task = make_task(backbone, rows())
    return make_problem(backbone, task, rows(), [replace(own) for own in rows(4)[2::4]])


def test_so_many_classes_are_many(problem):
    assert many.has_many(problem)
    few = make_task(problem.backbone, rows(names=NAMES[: many.MOST_FEW]))
    assert not many.has_many(replace(problem, task=few))
    assert many.has_many(replace(problem, task=replace(few, norm="siblings")))


def test_names_are_texts_that_every_fold_learns_from_and_none_holds_out(problem):
    pool = problem.pool
    folds = stratified_folds(pool.golds.strata, many.FOLDS, 0)
    found = many.lesson(problem, pool, folds)
    assert [fold.held_out for fold in found.folds] == [fold.held_out for fold in folds]
    named = many._named_examples(problem)
    assert [own.fields["text"] for own in named.context.examples] == list(problem.task.verbalizer.labels)
    if len(found.pool) > len(pool):
        extra = set(range(len(pool), len(pool) + len(NAMES)))
        assert all(extra <= set(fold.train) for fold in found.folds)


def test_names_are_taken_where_they_lower_the_held_out_loss(problem):
    """The oracle is scikit-learn, fold by fold, with and without the names among the texts."""
    pool = problem.pool
    folds = stratified_folds(pool.golds.strata, many.FOLDS, 0)
    found = many.lesson(problem, pool, folds)
    with torch.no_grad():
        prompt = found.heads.start.bare(problem)
        x = problem.backbone.features(pool.context, prompt).double().numpy()
        z = problem.backbone.features(many._named_examples(problem).context, prompt).double().numpy()
    x, z = (own / np.linalg.norm(own, axis=1, keepdims=True) for own in (x, z))
    y, numbers = pool.labels.numpy(), np.arange(len(NAMES))

    def loss(c, with_names):
        losses = []
        for train, held in folds:
            own, labels = (np.r_[x[train], z], np.r_[y[train], numbers]) if with_names else (x[train], y[train])
            model = LogisticRegression(C=c, max_iter=1000).fit(own, labels)
            losses += list(-np.log(model.predict_proba(x[held])[range(len(held)), y[held]]))
        return np.mean(losses)

    losses = {has: min(loss(c, has) for c in many.HEADS) for has in (False, True)}
    assert (len(found.pool) > len(pool)) == (losses[True] < losses[False])
    assert found.heads.held_out.score.loss == pytest.approx(min(losses.values()), abs=1e-4)


def test_it_trains_what_reads_no_label_words_and_ships_it(problem):
    method = make_method("auto", {})
    outcome = method.fit(problem)
    names = [row.name for row in outcome.tried]
    trained = ["deep-cue 0.1" if problem.backbone.has_words else "contrastive prefix 0.05"]
    for name in (*trained, "class head"):
        assert any(own.startswith(name) for own in names), (name, names)
    assert not any("chat" in own or "first-order" in own or own.startswith("words") for own in names)
    assert all(row.rows == len(problem.pool) for row in outcome.tried)
    assert outcome.is_tuned or problem.backbone.has_words
    predictor = Predictor.of(make_artifact(problem, outcome, method), problem.backbone)
    with torch.no_grad():
        own = outcome.best.logits(problem.backbone, problem.train.context).double().softmax(-1)
    texts = [example.fields["text"] for example in problem.train.context.examples]
    assert np.allclose(predictor.predict_proba(texts), own.numpy(), atol=1e-5)


def test_epochs_fall_with_the_texts(problem):
    def epochs(texts):
        return [own.training.epochs for own in many.trainings(problem, texts)]

    more = 0 if problem.backbone.has_words else 2
    assert [epochs(texts) for texts in (10_000, 133, 10)] == [[own + more] for own in (2, 3, 6)]


def test_words_that_the_user_wants_searched_are_read(causal):
    problem = make_problem(causal, make_task(causal, rows()), rows(), rows(4)[2::4])
    assert make_method("auto", {}).spares_words(problem)
    assert not make_method("auto", {"label_words": "search"}).spares_words(problem)


def test_more_texts_are_read_where_there_are_more_classes(sequence):
    task = make_task(sequence, rows())
    for of_each, count in ((0, 60 + 30), (3, 72 + 30)):  # two of each class at least
        with pytest.warns(CuecraftWarning, match=f"{count} of 150"):
            contexts, _ = read_within(sequence, task, (rows(4), rows(1)), 0, ReadingLimit(10, 0.25, of_each), None)
        assert sum(map(len, contexts)) == count
    limit = make_method("auto", {}).reading_limit()
    assert limit.of_each * 77 >= 1540
    assert limit.of_each * 20 <= limit.examples
