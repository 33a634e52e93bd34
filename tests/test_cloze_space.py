"""Cloze answers as an answer space: rows, what is asked for, measures, strata, losses; no model."""

import json

import numpy as np
import pytest
import torch

from cuecraft.core.errors import DataError, LabelWordError, MethodError
from cuecraft.data import Record
from cuecraft.methods.objectives import Golds, objective_of
from cuecraft.task import Decision
from cuecraft.task.answers import AnswerColumns, asked_answers
from cuecraft.task.answers.cloze import Cloze


def test_measures_are_those_of_a_few_lines_of_numpy():
    random = np.random.default_rng(0)
    names = tuple(f"word{n}" for n in range(30))
    shares = random.dirichlet(np.ones(30), size=50)
    golds = [tuple(random.choice(names, size=1 + row % 3, replace=False).tolist()) for row in range(50)]
    space = Cloze("candidates", names)
    found = space.measure(space.decide(shares, [None] * 50), golds)
    ranks = np.array(
        [min(1 + (row > row[names.index(own)]).sum() for own in gold) for row, gold in zip(shares, golds, strict=True)]
    )
    assert list(found) == ["precision_at_1", "precision_at_10", "mean_reciprocal_rank"]
    assert found["precision_at_1"] == pytest.approx((ranks == 1).mean())
    assert found["precision_at_10"] == pytest.approx((ranks <= 10).mean())
    assert found["mean_reciprocal_rank"] == pytest.approx((1 / ranks).mean())
    top = Decision("a", 0.5, {"a": 0.5, "b": 0.2})
    assert Cloze().measure([top, top, top], [("b",), ("c",), ("a", "b")]) == pytest.approx(
        {"precision_at_1": 1 / 3, "precision_at_10": 2 / 3, "mean_reciprocal_rank": 0.5}
    )


def read(row, separator=None):
    return Cloze.read("facts.jsonl row 3", row, AnswerColumns(separator=separator))


def test_rows_of_files_are_read():
    assert read({"answer": " Paris "}) == ("Paris", ())
    assert read({"answers": ["Paris", "Lutetia", "Paris"]}) == (("Paris", "Lutetia"), ())
    assert read({"label": "Paris|Lutetia", "choices": "Paris|Rome"}, "|") == (("Paris", "Lutetia"), ("Paris", "Rome"))
    assert read({"answer": 1999}) == ("1999", ())
    for row in ({"answer": None}, {"answer": " "}, {"answer": []}, {"answer": ["Paris", ""]}):
        with pytest.raises(DataError, match=r"facts\.jsonl row 3: answer column 'answer' is empty"):
            read(row)
    with pytest.raises(DataError, match="no column 'answer'"):
        read({"object": "Paris"})
    with pytest.raises(DataError, match=r"facts\.jsonl row 3"):
        read({"answer": {"name": "Paris"}})


def test_spaces_are_made_of_what_is_asked_for(tmp_path):
    records = [Record({"text": "a"}, "Paris"), Record({"text": "b"}, ("Rome", "Roma")), Record({"text": "c"}, "Paris")]
    answers = ("Paris", "Rome", "Roma")
    assert Cloze.of(records, asked_answers("cloze"), None) == Cloze(seen=answers)
    seen = Cloze.of(records, asked_answers({"kind": "cloze", "candidates": "seen"}), None)
    assert seen == Cloze("candidates", answers, answers)
    assert seen.gold(records[1]) == ("Rome", "Roma")
    assert seen.label(seen.gold(records[1])) == ("Rome", "Roma")
    assert seen.label(seen.gold(records[0])) == "Paris"
    path = tmp_path / "cities.txt"
    path.write_text("Paris\n\nRome\nOslo\n", encoding="utf-8")
    listed = Cloze.of(records, asked_answers({"kind": "cloze", "candidates": str(path)}), None)
    assert listed.candidates == ("Paris", "Rome", "Oslo")
    assert listed.gold(records[1]) == ("Rome",), "an alias that is no candidate cannot be given"
    with pytest.raises(DataError, match="answer 'Bonn' is not one of the 3 candidates"):
        listed.gold(Record({}, "Bonn"))
    path.write_text("\n \n", encoding="utf-8")
    for given, message in (
        (str(path), "has no candidates"),
        (str(tmp_path / "none.txt"), "cannot be read"),
        (("Paris", "Paris"), "give two at least"),
        (("Paris", " "), "is empty"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            Cloze.of(records, asked_answers({"kind": "cloze", "candidates": given}), None)
        assert "\n" not in str(caught.value)
    with pytest.raises(LabelWordError, match="their own words"):
        Cloze.of(records, asked_answers("cloze"), {"Paris": "paris"})
    with pytest.raises(MethodError, match="tokens"):
        asked_answers({"kind": "cloze", "tokens": 0})


def test_strata_join_answers_of_one_text():
    space = Cloze()
    golds = [("a",), ("b",), ("a", "b"), ("c",), ("d",)]
    assert space.strata(golds) == [0, 1, 0, 1, 1]
    many = [("a",)] * 30 + [("b",)] * 4 + [("c",)] * 6
    assert space.strata(many) == [0] * 30 + [1] * 10, "four texts are too few for five folds"
    assert space.strata([("a",), ("a",), ("b",)]) == [0, 0, 0]
    assert space.strata([("a",), ("b",)]) == [0, 0]


def test_golds_and_values_of_the_open_vocabulary_meet_in_the_objective():
    space = Cloze()
    golds = Golds(objective_of(space), (("a",), ("b", "c")))
    values = torch.tensor([[[-1.0, -1.0, -2.0], [-0.5, -1.5, -1.0]], [[-3.0, -3.0, -1.0], [-2.0, -2.0, -4.0]]])
    assert torch.equal(golds.losses(values), torch.tensor([[1.0, 0.5], [3.0, 2.0]]))
    assert golds.scores(values).primary.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    mixed = golds.objective.mixed(values.double())
    assert torch.allclose(mixed.exp(), values.double().exp().mean(0))
    shares = torch.tensor([3.0, 1.0], dtype=torch.float64)
    expected = (values.double().exp() * shares[:, None, None] / 4).sum(0)
    assert torch.allclose(golds.objective.mixed(values.double(), shares).exp(), expected)
    assert golds.fitted(values[0]) == golds.tempered(values[0]) == golds.objective.plain()
    assert json.dumps(space.label(golds.values[1])) == '["b", "c"]'
