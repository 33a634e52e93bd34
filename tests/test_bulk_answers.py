"""`classify` of answers of any kind: values, confidences and options, by JSON lines and Parquet, joined and resumed."""

import json

import pytest
from pyarrow import parquet

from bulk import classify, rows_of
from cuecraft.artifact import load_artifact
from cuecraft.artifact.predictor import Predictor
from cuecraft.backbone import load_backbone
from cuecraft.core.errors import BulkError
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.prepare import make_problem
from cuecraft.methods.registry import make_method
from cuecraft.task import Task, Template
from cuecraft.task.answers import ANSWERS
from test_answer_space import CASES, TEMPLATE, records

KINDS = [kind for kind in CASES if kind in ANSWERS and CASES[kind]()[0].at == "answer"]


@pytest.fixture(scope="module")
def backbone(causal_folder):
    return load_backbone(str(causal_folder), "causal")


@pytest.fixture(scope="module")
def folders(backbone, tmp_path_factory):
    """An artifact of each kind, and what it answers to its rows, some of them twice."""
    found, folder = {}, tmp_path_factory.mktemp("bulk")
    for kind in KINDS:
        space, labels = CASES[kind]()
        rows = records(labels, space)
        problem = make_problem(backbone, Task(Template(TEMPLATE), space), rows, rows)
        method = make_method("zero-shot", {"calibration": "fitted"})
        make_artifact(problem, method.fit(problem), method).save(folder / kind)
        artifact = load_artifact(folder / kind)
        twice = [*rows, *rows[:3]]
        decisions = Predictor.of(artifact, backbone).decide(artifact.task.examples(twice))
        found[kind] = folder / kind, twice, [json.loads(json.dumps(own.document())) for own in decisions]
    return found


def written(path, rows):
    lines = [{**row.fields, **({"choices": list(row.options)} if row.options else {})} for row in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def check(found, expected, begin=""):
    assert found[f"{begin}value"] == (
        pytest.approx(expected["value"], abs=1e-4) if isinstance(expected["value"], float) else expected["value"]
    )
    assert found[f"{begin}confidence"] == pytest.approx(expected["confidence"], abs=2e-6)
    assert found[f"{begin}options"] == pytest.approx(expected["options"], abs=2e-6)
    assert found.get(f"{begin}interval") == expected.get("interval")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "labels"])
@pytest.mark.parametrize("dedupe", ["exact", "off"])
def test_rows_have_the_answers_of_the_predictor(kind, dedupe, folders, tmp_path):
    folder, rows, expected = folders[kind]
    source = written(tmp_path / "in.jsonl", rows)
    document = classify(folder, source, tmp_path / "out", fields=(), dedupe=dedupe)
    assert (document["read"], document["classified"]) == (len(rows), len(rows))
    assert document["computed"] == (len(rows) - 3 if dedupe == "exact" else len(rows))
    for found, own in zip(rows_of(tmp_path / "out"), expected, strict=True):
        check(found, own)
        assert found["truncated"] is False
    again = classify(folder, source, tmp_path / "out", fields=(), dedupe=dedupe, resume=True)
    assert again["classified"] == len(rows)


def test_kinds_over_one_read_kept_fields_and_parquet(folders, tmp_path):
    """Each prompt's columns begin with its name; a row without options is put aside, alone."""
    _, rows, expected = folders["choices"]
    source = written(tmp_path / "in.jsonl", rows)
    broken = '{"text": "a"}\n{"text": "a", "choices": ["x", "x"]}\n{"text": "a", "choices": "x"}\n'
    source.write_text(broken + source.read_text())
    prompts = {kind: folders[kind][0] for kind in ("choices", "labels", "ordinal")}
    document = classify(prompts, source, tmp_path / "out", fields=(), keep=("text", "value"))
    assert document["reasons"] == {"no options that can be chosen among": 3}
    found = rows_of(tmp_path / "out")
    for row, own, ordinal, record in zip(found, expected, folders["ordinal"][2], rows, strict=True):
        check(row, own, "choices.")
        check(row, ordinal, "ordinal.")
        assert row["text"] == record.fields["text"]
        assert row["labels.label"] in [0, 1, 2]
        assert "labels.value" not in row
    classify(prompts, source, tmp_path / "parquet", fields=(), output="parquet")
    tables = [parquet.read_table(path).to_pylist() for path in sorted((tmp_path / "parquet").glob("*.parquet"))]
    for table, row in zip([row for own in tables for row in own], found, strict=True):
        for name in ("choices.value", "choices.options", "ordinal.interval"):
            assert json.loads(table[name]) == row[name]
        assert table["choices.confidence"] == pytest.approx(row["choices.confidence"])
        assert table["labels.label"] == str(row["labels.label"])


def test_a_student_learns_labels_alone(folders, tmp_path):
    folder, rows, _ = folders["choices"]
    source = written(tmp_path / "in.jsonl", rows)
    with pytest.raises(BulkError, match=r"prompt 'prompt' answers with choices, and a student .* learns labels alone"):
        classify(folder, source, tmp_path / "out", fields=(), cascade=True)
    assert not (tmp_path / "out").exists()
