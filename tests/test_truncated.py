"""Texts that are cut are told of one by one, alike by `predict`, bulk rows, a server and in Python."""

import json

import numpy as np
import pytest

from bulk import classify, rows_of, write_jsonl
from conftest import LABELS, TEXTS
from cuecraft import PromptClassifier
from cuecraft.artifact.predictor import PromptEnsemble
from cuecraft.core.errors import CuecraftWarning
from cuecraft.data import Record
from cuecraft.serving.artifacts import Shelf
from cuecraft.serving.engine import Engine
from cuecraft.serving.http.wire import answer_document
from cuecraft.task import Example

X, Y = [text for text, _ in TEXTS], [LABELS[label] for _, label in TEXTS]
MOST = 60


@pytest.fixture(scope="module")
def limit(causal):
    """Letters of the longest text that is not cut: as many as the token ids of ever longer ones still hold."""
    (letter,) = causal.tokenizer("x").input_ids
    renderer = causal.renderer(fitted(causal).task_)
    kept = [renderer.fitted([Example({"text": "x" * n})])[0][0].before.count(letter) for n in range(1, MOST)]
    most = max(kept)
    assert 1 < most < MOST - 1
    assert kept == [min(n, most) for n in range(1, MOST)]
    return most


def fitted(model, **parts):
    return PromptClassifier(model, "zero-shot", max_tokens=MOST, **parts).fit(X, Y)


def three(limit):
    """A text one below the limit, at it, and one above."""
    return ["x" * (limit - 1), "x" * limit, "x" * (limit + 1)], [False, False, True]


@pytest.mark.filterwarnings("ignore:.*cut")
def test_every_way_to_ask_tells_which_texts_were_cut(limit, causal_folder, command, tmp_path):
    texts, expected = three(limit)
    own = fitted(str(causal_folder))
    own.save(tmp_path / "own")
    assert own.truncated(texts).tolist() == expected
    assert own.truncated([{"text": text} for text in texts]).dtype == bool
    code, out, err = command("predict", "own", *texts, "--json")
    assert code == 0, err
    assert [row["truncated"] for row in json.loads(out)["predictions"]] == expected
    code, out, err = command("predict", "own", *texts)
    assert [line.endswith("(cut at its end to fit)") for line in out.splitlines()] == expected
    source = write_jsonl(tmp_path / "in.jsonl", texts)
    classify(tmp_path / "own", source, tmp_path / "rows")
    assert [row["truncated"] for row in rows_of(tmp_path / "rows")] == expected
    shelf = Shelf(own.backbone_)
    shelf.put("own", [own.artifact_])
    engine = Engine(shelf)
    try:
        answers = engine.ask([{"text": text} for text in texts], ["own"])
    finally:
        engine.close()
    assert [answer_document(answer, None)["truncated"] for answer in answers] == expected


@pytest.mark.filterwarnings("ignore:.*cut")
def test_a_cut_text_is_answered_as_its_beginning(limit, causal):
    (_, whole, cut), _ = three(limit)
    shares = fitted(causal).predict_proba([whole, cut])
    assert np.abs(shares[0] - shares[1]).max() < 1e-6


@pytest.mark.filterwarnings("ignore:.*cut")
def test_rows_of_several_prompts_tell_it_of_each(limit, causal_folder, tmp_path):
    texts, expected = three(limit)
    for name, most in (("short", MOST), ("long", None)):
        PromptClassifier(str(causal_folder), "zero-shot", max_tokens=most).fit(X, Y).save(tmp_path / name)
    prompts = {name: tmp_path / name for name in ("short", "long")}
    source = write_jsonl(tmp_path / "in.jsonl", texts)
    classify(prompts, source, tmp_path / "rows")
    rows = rows_of(tmp_path / "rows")
    assert [row["short.truncated"] for row in rows] == expected
    assert [row["long.truncated"] for row in rows] == [False] * 3
    arrow = pytest.importorskip("pyarrow.parquet")
    classify(prompts, source, tmp_path / "table", output="parquet")
    table = arrow.read_table(next((tmp_path / "table").glob("part-*.parquet")))
    assert table.column("short.truncated").to_pylist() == expected


@pytest.mark.filterwarnings("ignore:.*cut")
def test_answers_that_are_kept_from_an_earlier_block_tell_it_too(limit, causal_folder, tmp_path):
    texts, expected = three(limit)
    fitted(str(causal_folder)).save(tmp_path / "own")
    source = write_jsonl(tmp_path / "in.jsonl", texts * 40)  # several blocks; each text is computed once
    document = classify(tmp_path / "own", source, tmp_path / "rows", block_mb=0.001)
    rows = rows_of(tmp_path / "rows")
    assert document["computed"] == 3
    assert [row["truncated"] for row in rows] == expected * 40


def test_an_ensemble_tells_it_where_one_member_cuts(limit, causal):
    texts, expected = three(limit)
    long = PromptClassifier(causal, "zero-shot").fit(X, Y)
    assert PromptEnsemble([long, fitted(causal)]).truncated(iter(texts)).tolist() == expected
    assert PromptEnsemble([long]).truncated(texts).tolist() == [False] * 3


def test_asking_which_are_cut_warns_of_nothing_and_predicting_does(limit, causal, recwarn):
    texts, expected = three(limit)
    own = fitted(causal)
    recwarn.clear()
    assert own.truncated(texts).tolist() == expected
    assert not recwarn.list
    with pytest.warns(CuecraftWarning, match="1 of 3 texts were cut"):
        own.predict_proba(texts)


@pytest.mark.filterwarnings("ignore:.*cut")
def test_an_exported_classifier_tells_it_as_its_artifact_does(limit, causal, untraced, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    from cuecraft.export import GraphRequest, export_graph
    from cuecraft.export.runtime import ExportedClassifier

    texts, expected = three(limit)
    records = [Record({"text": text}) for text in X]
    wanted = GraphRequest("onnx", "fp32", "cut", records, 0.0)
    export_graph({"own": fitted(causal).artifact_}, causal, tmp_path / "out", wanted)
    assert ExportedClassifier.load(tmp_path / "out").truncated(texts).tolist() == expected
