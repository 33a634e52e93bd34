"""Labelled examples nearest to a text; the oracle chooses them anew and reads the text behind them alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bulk import artifact as written
from bulk import classify, messages, rows_of, write_jsonl
from conftest import LABELS, TEXTS, make_examples, make_task, records
from cuecraft import PromptClassifier
from cuecraft.artifact import HardPrompt
from cuecraft.core.errors import DataError, MethodError, PromptError
from cuecraft.export.peft_export import require_prompt_first
from cuecraft.methods import make_method
from cuecraft.methods.prepare import make_problem
from cuecraft.serving.artifacts import ServedPrompt, Shelf
from cuecraft.serving.engine import Engine
from cuecraft.task import Example, Shot
from serving import FIRST, X, Y, answered
from tiny_backbones import assert_close

MASKED = "{text}{prompt: it was}{mask}."
POOL = tuple(Shot((("text", text),), label) for text, label in TEXTS)
ASKED = ["a joy of a film", "never a bore", "dull plot and cold actors", "warm"]
TEMPLATES = {"causal": "{text}{prompt: it was}{mask}", "first": FIRST, "masked": MASKED}


def backbone_of(kind, request):
    return request.getfixturevalue("masked" if kind == "masked" else "causal")


@torch.no_grad()
def nearest_by_hand(backbone, task, text, count):
    """The nearest examples, the nearest last, by single passes over the plain texts."""
    plain = replace(task, shots=(), nearest=None)

    def feature(own):
        context = backbone.context([Example({"text": own})], plain)
        prompt = HardPrompt(context.renderer.prompt_ids)
        return backbone.features(context, prompt)[0].double().numpy()

    features = np.stack([feature(dict(shot.fields)["text"]) for shot in task.shots])
    center = features.mean(0)
    moved, own = features - center, feature(text) - center
    cosines = moved @ own / np.linalg.norm(moved, axis=1) / np.linalg.norm(own)
    rows = [row for row in np.argsort(-cosines) if dict(task.shots[row].fields)["text"] != text]
    return tuple(task.shots[row] for row in rows[:count][::-1])


def answers(backbone, task, texts, keep_bytes=None):
    context = backbone.context([Example({"text": text}) for text in texts], task, keep_bytes)
    with torch.no_grad():
        return backbone.class_logits(context, HardPrompt(context.renderer.prompt_ids)).double().log_softmax(-1)


@pytest.mark.parametrize("keep_bytes", [None, 0])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_each_text_is_read_behind_the_examples_nearest_to_it(kind, keep_bytes, request):
    backbone, task = backbone_of(kind, request), make_task(TEMPLATES[kind], shots=POOL, nearest=3)
    texts, chosen = [*ASKED, TEXTS[2][0]], []
    for text in texts:
        chosen.append(nearest_by_hand(backbone, task, text, 3))
    assert len(set(chosen)) > 1
    expected = torch.cat(
        [
            answers(backbone, replace(task, shots=own, nearest=None), [text])
            for own, text in zip(chosen, texts, strict=True)
        ]
    )
    assert_close(answers(backbone, task, texts, keep_bytes), expected, 1e-4)


def test_a_text_never_sees_its_own_label(causal):
    """The labels of all examples are turned round one by one; a text's own answer stays, and others' change."""
    task = make_task(shots=POOL, nearest=len(POOL), reserve=6)
    before = answers(causal, task, X)
    for row in range(len(POOL)):
        turned = tuple(replace(shot, gold=1 - shot.gold) if n == row else shot for n, shot in enumerate(POOL))
        moved = (answers(causal, replace(task, shots=turned), X) - before).abs().amax(1)
        assert moved[row] < 1e-6
        assert moved[[n for n in range(len(X)) if n != row]].min() > 1e-6


def test_of_two_alike_both_are_left_out(causal):
    twice = (*POOL, replace(POOL[0], gold=1 - POOL[0].gold))
    task = make_task(shots=twice, nearest=len(twice))
    rows = causal.renderer(task)._nearest.rows(make_examples(TEXTS[:1]))[0]
    assert sorted(rows) == list(range(1, len(POOL)))


def test_a_number_of_examples_that_are_not_there_is_refused():
    for count in (0, 3):
        with pytest.raises(DataError, match=f"nearest is {count}, of 2 examples; give 1 to 2"):
            make_task(shots=POOL[:2], nearest=count)


@pytest.mark.filterwarnings("ignore:.* texts were cut")
def test_every_text_has_the_room_that_the_longest_examples_leave(causal):
    task = make_task(shots=POOL, nearest=2, max_tokens=110)
    renderer = causal.renderer(task)
    lengths = sorted(len(causal.renderer(make_task(shots=(shot,))).shared_ids) for shot in POOL)
    plain = causal.renderer(make_task(max_tokens=110))
    assert renderer.capacity() == plain.capacity() - sum(lengths[-2:])
    long = Example({"text": "x" * (renderer.capacity() + 1)})
    pieces, cut = renderer.fitted([long, Example({"text": "x" * renderer.capacity()})])
    assert cut == [True, False]
    assert max(map(len, pieces)) <= 110 - 32


def in_context(backbone, **parts):
    options = {"method_options": {"shots": 2, "choice": "nearest"}, "seed": 3, **parts}
    return PromptClassifier(backbone, "in-context", **options).fit(X, Y, dev=(X, Y))


@pytest.mark.parametrize("kind", TEMPLATES)
def test_calibration_is_fitted_to_answers_behind_others_labels(kind, request):
    backbone = backbone_of(kind, request)
    own = in_context(backbone, template=TEMPLATES[kind])
    task = own.artifact_.task
    assert (task.nearest, len(task.shots)) == (2, len(X))
    raw = torch.cat(
        [
            answers(backbone, replace(task, shots=nearest_by_hand(backbone, task, text, 2), nearest=None), [text])
            for text in X
        ]
    )
    calibration = own.artifact_.calibration
    assert_close(torch.from_numpy(own.predict_proba(X)).log(), calibration.apply(raw).log_softmax(-1), 1e-4)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_an_artifact_answers_alike_everywhere(kind, request, tmp_path):
    backbone = backbone_of(kind, request)
    own = in_context(backbone, template=TEMPLATES[kind])
    expected = own.predict_proba(ASKED)
    own.save(tmp_path / "own")
    again = PromptClassifier.load(tmp_path / "own", backbone)
    assert again.artifact_.manifest.task.nearest == 2
    assert np.abs(again.predict_proba(ASKED) - expected).max() < 1e-5
    assert "the 2 nearest of 8 labelled examples" in (tmp_path / "own" / "README.md").read_text()
    served = ServedPrompt.over(backbone, "own", [again.artifact_])
    assert np.abs(answered(served, ASKED) - expected).max() < 1e-4


def test_an_engine_answers_texts_that_come_one_by_one(causal):
    own = in_context(causal)
    shelf = Shelf(causal)
    shelf.put("own", [own.artifact_])
    engine = Engine(shelf)
    try:
        futures = [engine.submit([{"text": text}], ["own"]) for text in ASKED]
        found = [future.result(60)[0].probabilities for future in futures]
    finally:
        engine.close()
    assert np.abs(np.array(found) - own.predict_proba(ASKED)).max() < 1e-4


def test_bulk_answers_are_those_of_the_classifier(causal_folder, tmp_path):
    own = written(causal_folder, tmp_path / "prompt", "in-context", shots=2, choice="nearest")
    texts = messages(30)
    classify(tmp_path / "prompt", write_jsonl(tmp_path / "in.jsonl", texts), tmp_path / "out")
    assert [row["label"] for row in rows_of(tmp_path / "out")] == own.predict(texts).tolist()


def test_graphs_and_adapters_are_refused_in_one_line(causal, tmp_path):
    own = in_context(causal)
    with pytest.raises(PromptError, match="which only the model itself finds; tune with choice=seed"):
        causal.ready(own.artifact_.prompt, own.artifact_.task).renderer.frame()
    with pytest.raises(Exception, match="8 labelled examples stand before the prompt"):
        require_prompt_first(causal, make_task(FIRST, shots=POOL, nearest=2))


def test_the_command_line_exports_no_graph_of_it(command, causal_folder, tmp_path):
    written(causal_folder, tmp_path / "own", "in-context", shots=2, choice="nearest")
    code, _, err = command("export", "own", "--format", "onnx", "--out", "graph")
    assert code == 2
    assert "tune with choice=seed" in err.splitlines()[-1]
    code, out, err = command("predict", "own", "a joy", "--json")
    assert code == 0, err
    assert json.loads(out)["predictions"][0]["label"] in LABELS


def test_too_few_examples_are_told_with_what_to_give(causal):
    problem = make_problem(causal, make_task(), records(), records(), seed=1)
    with pytest.raises(MethodError, match=r"8 examples .* there are 8 training examples.*; give more, or shots=7$"):
        make_method("in-context", {"shots": 8, "choice": "nearest", "calibration": "none"}).fit(problem)


@pytest.mark.filterwarnings("ignore:.* texts were cut")
def test_examples_that_do_not_fit_are_refused_with_how_many_would(causal):
    problem = make_problem(causal, make_task(max_tokens=100), records(), records(), seed=1)
    with pytest.raises(PromptError, match=r"7 examples .* do not fit into 100 tokens .* so give shots=\d$") as caught:
        make_method("in-context", {"shots": 7, "choice": "nearest"}).fit(problem)
    count = int(str(caught.value)[-1])
    found = make_method("in-context", {"shots": count, "choice": "nearest"}).fit(problem)
    assert found.best.reader.task.nearest == count
