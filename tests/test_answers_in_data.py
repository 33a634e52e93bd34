"""Answers of any kind in files and in Python: reading, inference of the kind, groups, fingerprints, the task made."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import pytest

from cuecraft.core.errors import DataError, MethodError
from cuecraft.data import (
    BadRows,
    Reading,
    Record,
    fingerprint,
    holdout,
    k_shot_split,
    read_partly_labelled,
    read_records,
)
from cuecraft.data.texts import as_records
from cuecraft.methods.prepare import make_problem, make_task
from cuecraft.task import AnswerSpace, Decision, Task, Template, Verbalizer
from cuecraft.task.answers import ANSWERS, AnswerColumns, AnswerOptions, asked_answers
from cuecraft.task.answers.inferring import inferred_kind
from cuecraft.task.answers.labels import LabelOptions
from cuecraft.task.answers.words import distinct_words


class PlaceOptions(AnswerOptions):
    kind: Literal["places"] = "places"
    most: int = 9


@dataclass(frozen=True)
class Places(AnswerSpace):
    """The place of the right one of a row's own options; strata are odd and even places."""

    kind: ClassVar[str] = "places"
    primary: ClassVar[str] = "accuracy"
    options_kind: ClassVar[type[AnswerOptions]] = PlaceOptions
    columns: ClassVar[tuple[str, ...]] = ("answer", "label")
    brings_options: ClassVar[bool] = True

    most: int

    @classmethod
    def read(cls, where, row, columns):
        value = row.get(columns.label_in(row, cls.columns))
        options = cls.read_options(where, row, columns)
        if not str(value).isdigit() or int(value) >= len(options):
            raise DataError(f"{where}: {value!r} is no place among {len(options)} options; fix it")
        return int(value), options

    @classmethod
    def read_options(cls, where, row, columns):
        given = row.get(columns.options)
        given = given.split(columns.separator) if isinstance(given, str) and columns.separator else given
        if not isinstance(given, list):
            raise DataError(f"{where}: no options; give a list")
        return tuple(given)

    @classmethod
    def of(cls, records, asked, label_words):
        return cls(max(record.label for record in records) if asked.most == 9 else asked.most)

    options: ClassVar[dict] = {}

    def options_of(self, example):
        return {option: (option,) for option in example.options}

    def gold(self, record):
        if record.label > self.most:
            raise DataError(f"place {record.label} is beyond {self.most}")
        return record.label

    def label(self, gold):
        return gold

    def probabilities(self, values):
        return values

    def decide(self, probabilities, examples):
        return [Decision(0, 1.0, {}) for _ in examples]

    def measure(self, decisions, golds):
        return {"accuracy": 0.0}

    def strata(self, golds):
        return [gold % 2 for gold in golds]


@pytest.fixture(autouse=True)
def places(monkeypatch):
    monkeypatch.setitem(ANSWERS, "places", Places)


@pytest.fixture
def rows(tmp_path):
    def put(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else "\n".join(map(json.dumps, content)))
        return path

    return put


def test_a_file_is_read_by_the_kind_of_its_answers(rows):
    content = [{"text": "a", "choices": ["x", "y"], "answer": 1}, {"text": "b", "choices": ["z"], "answer": 0}]
    expected = [Record({"text": "a"}, 1, options=("x", "y")), Record({"text": "b"}, 0, options=("z",))]
    assert read_records(rows("a.jsonl", content), label_column=Places.in_rows()) == expected
    named = Places.in_rows(AnswerColumns("right", "among", "|"))
    path = rows("a.csv", "text,right,among\na,1,x|y\nb,0,z\n")
    assert read_records(path, label_column=named) == expected
    assert [record.row for record in read_records(path, label_column=named)] == [1, 2]
    partly = rows("b.jsonl", [{"text": "a", "choices": ["x", "y"]}, *content])
    assert read_partly_labelled(partly, label_column=Places.in_rows()) == [
        Record({"text": "a"}, options=("x", "y")),
        *expected,
    ]


def test_parquet_reads_the_columns_of_any_usual_name(rows, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"text": ["a"], "other": [{"x": 1}], "label": [1], "choices": [["x", "y"]]})
    parquet.write_table(table, tmp_path / "a.parquet")
    found = read_records(tmp_path / "a.parquet", label_column=Places.in_rows())
    assert found == [Record({"text": "a"}, 1, options=("x", "y"))]


def test_a_bad_row_is_one_line_with_its_place_or_is_left_out(rows):
    path = rows("a.jsonl", [{"text": "a", "choices": ["x"], "answer": 5}, {"text": "b", "choices": ["z"], "answer": 0}])
    with pytest.raises(DataError, match=r"a\.jsonl line 1: 5 is no place among 1 options; fix it$"):
        read_records(path, label_column=Places.in_rows())
    bad = BadRows()
    with pytest.warns(match="1 bad row left out"):
        found = read_records(path, label_column=Places.in_rows(), reading=Reading(bad=bad))
    assert [record.fields["text"] for record in found] == ["b"]


def test_texts_of_python_bring_options_that_are_no_field():
    texts = [{"text": "a", "choices": ["x", "y"]}, {"text": "b", "choices": ["z"]}]
    expected = [Record({"text": "a"}, options=("x", "y")), Record({"text": "b"}, options=("z",))]
    task = Task(Template("{text}{prompt}{mask}"), Places(9))
    assert task.records(texts) == expected
    assert [example.options for example in task.examples(expected)] == [("x", "y"), ("z",)]
    labelled = as_records(texts, [1, 0], answers=Places.in_rows())
    assert labelled == [replace(own, label=label) for own, label in zip(expected, (1, 0), strict=True)]
    with pytest.raises(DataError, match="row 2: None is no place"):
        as_records(texts, [1, None], answers=Places.in_rows())
    with pytest.raises(DataError, match="2 texts but 1 labels"):
        as_records(texts, [1], answers=Places.in_rows())


def test_fingerprints_of_labels_stay_and_options_count():
    record = Record({"text": "a", "b": "c"}, "yes", 0.5)
    line = json.dumps([[["b", "c"], ["text", "a"]], "yes", 0.5]).encode() + b"\n"
    assert fingerprint([record]) == hashlib.sha256(line).hexdigest()
    several = [record, replace(record, label=1), replace(record, label=("yes",)), replace(record, options=("x",))]
    assert len({fingerprint([own]) for own in several}) == 4


def test_groups_are_the_strata_and_labels_are_drawn_as_by_their_names(causal):
    labels = [Record({"text": str(row)}, "abc"[row % 3]) for row in range(30)]
    task = Task(Template("{text}{prompt}{mask}"), Verbalizer.from_labels(["a", "b", "c"]))
    names = task.groups(labels)
    assert names == [record.label for record in labels]
    assert holdout(labels, 0.3, 1, names) == holdout(labels, 0.3, 1)
    assert k_shot_split(labels, 2, 1, groups=names) == k_shot_split(labels, 2, 1)
    numbered = [Record({"text": str(row)}, row, options=("x",) * 9) for row in range(10)]
    places = Task(Template("{text}{prompt}{mask}"), Places(9))
    kept, held = holdout(numbered, 0.4, 0, places.groups(numbered))
    assert sorted(record.label % 2 for record in held) == [0, 0, 1, 1]
    assert len(kept) == 6
    assert len(k_shot_split(numbered, 1, 0, groups=places.groups(numbered)).train) == 2
    with pytest.raises(DataError, match="row 1 has no label"):
        holdout([Record({"text": "a"})], 0.4, 0, [None])


def test_a_task_is_made_of_what_is_asked_of_its_answers(causal):
    records = [Record({"text": text}, label) for text, label in (("good", "b"), ("bad", "a"), ("so", "a"))]
    assert make_task(causal, records).answers == Verbalizer.from_labels(["a", "b"])
    asked = LabelOptions(classes=("b", "a"))
    assert make_task(causal, records, answers=asked).answers == Verbalizer.from_labels(["b", "a"])
    numbered = [replace(record, label=row, options=("x", "y", "z")) for row, record in enumerate(records)]
    assert make_task(causal, numbered, answers=PlaceOptions()).answers == Places(2)
    assert make_task(causal, numbered, answers=Places(4)).answers == Places(4)
    with pytest.raises(DataError, match="row 3: place 2 is beyond 1"):
        make_problem(causal, make_task(causal, numbered, answers=Places(1)), numbered)
    assert Verbalizer.of(records, LabelOptions(), distinct_words).words == (("a",), ("b",))


def test_what_is_asked_of_answers_is_a_kind_with_options():
    assert asked_answers("labels") == LabelOptions()
    assert asked_answers({"kind": "labels", "classes": "b,a"}) == LabelOptions(classes=("b", "a"))
    assert asked_answers({"kind": "places", "most": "4"}).most == 4
    with pytest.raises(MethodError, match="unknown kind of answers 'place'; there are labels"):
        asked_answers("place")
    with pytest.raises(MethodError, match="answers of kind places has no option 'least'; it has kind, most"):
        asked_answers({"kind": "places", "least": 4})
    with pytest.raises(MethodError, match="answers of kind places, option 'most'"):
        asked_answers({"kind": "places", "most": "many"})


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ([{"label": "a"}, {"label": "b"}], "labels"),
        ([{"label": 1}, {"label": 2.0}], "labels"),
        ([{"label": True}], "labels"),
        ([{"label": 1.5}, {"label": 2}], "ordinal"),
        ([{"choices": ["x", "y"], "answer": 0}], "choices"),
        ([{"choices": ["x", "y"], "label": 0}], "choices"),
        ([{"labels": []}, {"labels": ["a"]}], "multilabel"),
        ([{"label": ["a"]}], "multilabel"),
        ([{"spans": []}, {"spans": [{"label": "a", "start": 0, "end": 1}]}], "tokens"),
        ([{"subject": "x", "answer": str(row)} for row in range(30)], "cloze"),
        ([{"subject": "x", "answer": ["a", "b"]}], "cloze"),
        ([{"text": "x", "answer": "yes", "label": "a"} for row in range(30)], "labels"),
        ([{"text": "x", "answer": "yes"}], "labels"),
        # Stray columns next to the one that has the label.
        ([{"label": "a", "stars": 4, "spans": [], "labels": ["b"], "answer": "c", "tags": ["d"]}], "labels"),
        ([{"label": "a", "choices": None}], "labels"),
        ([{"labels": ["a"], "tags": ["films"], "stars": None}], "multilabel"),
        ([{"answer": "y", "choices": ["x", "y"], "stars": 4, "labels": ["b"]}], "choices"),
        ([{"answer": str(n % 2), "choices": ["x", "y"]} for n in range(9)], "choices"),
        (
            [*[{"label": n % 2, "choices": ["x", "y"]} for n in range(8)], {"label": 2, "choices": ["x", "y"]}],
            "choices",
        ),
        ([{"text": "x"}], "labels"),
        ([], "labels"),
    ],
)
def test_the_kind_is_inferred_from_columns_and_values(found, kind):
    assert inferred_kind(found, AnswerColumns())[0] == kind


def test_a_named_column_says_the_kind_and_two_kinds_are_asked_about():
    both = [{"labels": ["a"], "spans": []}]
    with pytest.raises(DataError, match="say which with"):
        inferred_kind(both, AnswerColumns())
    assert inferred_kind(both, AnswerColumns("labels"))[0] == "multilabel"
    assert inferred_kind([{"stars": 1.5, "label": "a"}], AnswerColumns("stars"))[0] == "ordinal"


@pytest.mark.parametrize(
    ("row", "seen"),
    [
        (
            {"label": "good", "choices": ["x", "y"]},
            "go with 3 of 3 answers .row 1: answer 'good' in 'label' is none of its 2",
        ),
        ({"label": 5, "choices": ["x", "y"]}, "row 1: answer 5 in 'label' is none of its 2 options"),
        ({"label": "x", "choices": "a form"}, "row 1: 'choices' is 'a form', and no list of options"),
        ({"answer": "a", "choices": ["a"]}, "row 1: only one option in 'choices'"),
        ({"labels": ["a"], "stars": 3}, "multilabel: .* ordinal: 'stars' has numbers"),
        ({"labels": ["a"], "answer": "b"}, "multilabel: .* cloze: 'answer' has 1 different strings"),
        ({"spans": [], "score": 0.5}, "tokens: .* ordinal: 'score' has numbers"),
        ({"spans": [], "answer": ["a", "b"]}, "tokens: .* cloze: 'answer' has several right answers"),
        ({"answer": "a", "rating": 3}, "cloze: .* ordinal: 'rating' has numbers"),
        ({"tags": ["O"], "tokens": ["a"], "labels": ["b"]}, "multilabel: .* tokens: 'tags' has a tag for each word"),
    ],
)
def test_stray_columns_that_leave_a_doubt_are_asked_about(row, seen):
    with pytest.raises(DataError, match=f"{seen}.*; say wh(at|ich) .*answers"):
        inferred_kind([{"text": "x"} | row] * 3, AnswerColumns())


@pytest.mark.parametrize("column", ["number", "score", "stars", "rating"])
def test_numbers_in_their_usual_columns_are_numbers(column):
    rows = [{"text": "a", column: 1}, {"text": "b", column: 5}]
    assert inferred_kind(rows, AnswerColumns())[0] == "ordinal"
    assert inferred_kind([row | {"label": "good"} for row in rows], AnswerColumns())[0] == "labels"
    assert inferred_kind([*rows, {"text": "c", column: "five"}], AnswerColumns())[0] == "labels"
    assert inferred_kind([*rows, {"text": "c"}, {"text": "d", column: None}], AnswerColumns())[0] == "ordinal"
    assert inferred_kind([{"text": "a", column: own} for own in ("1", "4.5", "")], AnswerColumns())[0] == "ordinal"


@pytest.mark.parametrize("column", ["answer", "answers", "stars", "rating", "tags"])
def test_answers_that_show_no_kind_are_asked_about(column):
    """A few strings may be classes, or words to be said."""
    rows = [{"text": "a", column: "Paris"}, {"text": "b", column: "Rome"}]
    assert inferred_kind(rows, AnswerColumns())[0] == "labels"
    with pytest.raises(DataError, match=f"no column 'label'; for classes in '{column}' give .*, for other answers"):
        Verbalizer.read("row 1", rows[0], AnswerColumns())
    assert Verbalizer.read("row 1", rows[0], AnswerColumns(column)) == ("Paris", ())


ONE = {
    "choices": {"choices": ["x", "y"], "answer": 0},
    "multilabel": {"labels": ["a"]},
    "tokens": {"spans": [{"label": "a", "start": 0, "end": 1}]},
    "labels": {"label": "a"},
    "ordinal": {"stars": 3},
}


@pytest.mark.parametrize("kind", ONE)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_row_without_its_column_changes_no_kind_wherever_it_stands(kind, place):
    rows = [{"text": "a"} | ONE[kind] for _ in range(3)]
    rows[place] = {"text": "b"}
    assert inferred_kind(rows, AnswerColumns())[0] == kind
