"""Verbalizers, and the examples that a task makes of records."""

import re

import pytest

from cuecraft.core.errors import DataError, LabelWordError, TemplateError
from cuecraft.data import Record
from cuecraft.task import Example, Task, Template, Verbalizer


def refusal(kind, call, *args, **options):
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert type(caught.value) is kind
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def task(source="{text}{prompt}{mask}", **options):
    return Task(Template(source), Verbalizer.from_labels(["negative", "positive"]), **options)


@pytest.mark.parametrize(
    ("label", "word"),
    [
        ("positive", "positive"),
        ("Sci_Fi", "sci fi"),
        ("  Very  Good ", "very good"),
        ("__OK__", "ok"),
        ("a_ \tb", "a b"),
        ("ÉTÉ", "été"),
        ("one-star", "one-star"),
    ],
)
def test_default_word_is_the_label_as_written_in_a_sentence(label, word):
    assert Verbalizer.from_labels([label, "other"]).words == ((word,), ("other",))


def test_given_words_follow_the_order_of_the_labels():
    verbalizer = Verbalizer.from_labels(["b", "a"], {"a": "bad", "b": ["good", "great"]})
    assert verbalizer.labels == ("b", "a")
    assert verbalizer.words == (("good", "great"), ("bad",))
    assert verbalizer.num_classes == 2


def test_given_words_keep_their_case_and_lose_outer_spaces():
    assert Verbalizer.from_labels(["a", "b"], {"a": " Very Good ", "b": ("Bad ",)}).words == (("Very Good",), ("Bad",))


def test_word_given_twice_for_a_class_counts_once():
    try:
        verbalizer = Verbalizer.from_labels(["a", "b"], {"a": ["x", "x "], "b": "y"})
    except LabelWordError:
        return
    assert verbalizer.words == (("x",), ("y",))


@pytest.mark.parametrize("words", [{"a": "same", "b": "same"}, {"a": ["x", "y"], "b": ["z", " y"]}])
def test_one_word_for_two_classes_is_refused(words):
    message = refusal(LabelWordError, Verbalizer.from_labels, ["a", "b"], words)
    assert re.search(r"'(same|y)' stands for both 'a' and 'b'", message)


def test_default_words_that_collide_are_refused():
    message = refusal(LabelWordError, Verbalizer.from_labels, ["Sci_Fi", "sci fi"])
    assert message.startswith("label word 'sci fi' stands for both 'Sci_Fi' and 'sci fi'")


def test_words_that_differ_in_case_do_not_collide_before_a_tokenizer_says_so():
    assert Verbalizer.from_labels(["a", "b"], {"a": "Good", "b": "good"}).words == (("Good",), ("good",))


def test_missing_class_is_named():
    message = refusal(LabelWordError, Verbalizer.from_labels, ["a", "b"], {"a": "x"})
    assert message.startswith("no label words for class 'b'")


def test_unknown_class_is_named():
    message = refusal(LabelWordError, Verbalizer.from_labels, ["a", "b"], {"a": "x", "b": "y", "c": "z"})
    assert message.startswith("label words for 'c', but the classes are a, b")


@pytest.mark.parametrize("words", [[], "", "  ", ["good", " "]])
def test_class_without_words_is_refused(words):
    message = refusal(LabelWordError, Verbalizer.from_labels, ["a", "b"], {"a": "x", "b": words})
    assert message.startswith("class 'b' has no label word, or an empty one")


def test_label_of_underscores_has_no_default_word():
    assert refusal(LabelWordError, Verbalizer.from_labels, ["a", "__"]).startswith("class '__' has no label word")


@pytest.mark.parametrize("words", [None, {"a": "x", "b": "y"}])
def test_label_named_twice_is_refused(words):
    assert refusal(DataError, Verbalizer.from_labels, ["a", "b", "a"], words) == (
        "a class is named twice among a, b, a"
    )


@pytest.mark.parametrize(("labels", "shown"), [(["only"], r"\(only\)"), ([], r"\(none\)")])
def test_one_class_is_refused(labels, shown):
    message = refusal(DataError, Verbalizer.from_labels, labels)
    assert re.match(f"only one class {shown}; give examples of at least two", message)


def test_index():
    verbalizer = Verbalizer.from_labels(["c", "a", "b"])
    assert [verbalizer.index(label) for label in ("a", "b", "c")] == [1, 2, 0]


@pytest.mark.parametrize("label", ["C", "", "a ", "a, b"])
def test_index_of_an_unknown_label_names_label_and_classes(label):
    message = refusal(DataError, Verbalizer.from_labels(["c", "a", "b"]).index, label)
    assert message.startswith(f"label {label!r} is not one of the task's classes (c, a, b)")


def test_examples_keep_fields_and_number_labels():
    records = [Record({"text": "x", "more": "y"}, "positive"), Record({"text": "z"}), Record({"text": "w"}, "negative")]
    assert task().examples(records) == [
        Example({"text": "x", "more": "y"}, 1),
        Example({"text": "z"}, None),
        Example({"text": "w"}, 0),
    ]
    assert task().examples([]) == []


def test_one_column_fills_a_template_of_one_field_whatever_their_names():
    records = [Record({"review": "x"}, "positive"), Record({"text": "y"})]
    assert task("{text}. {text}{prompt}{mask}").examples(records) == [Example({"text": "x"}, 1), Example({"text": "y"})]


@pytest.mark.parametrize(
    ("source", "fields"),
    [("{text}{prompt}{mask}", {"review": "x", "title": "y"}), ("{text} {title}{prompt}{mask}", {"text": "x"})],
)
def test_several_fields_on_either_side_need_their_names(source, fields):
    refusal(TemplateError, task(source).examples, [Record(fields)])


def test_field_that_no_column_has_is_refused_with_its_row():
    records = [Record({"text": "x", "title": "y"}, "positive"), Record({"text": "x", "sub": "y"}, "positive")]
    message = refusal(TemplateError, task("{text} {title}{prompt}{mask}").examples, records)
    assert "names field 'title', but row 2 has 'text', 'sub'" in message
    assert "{text} {title}{prompt}{mask}" in message


def test_label_that_is_no_class_is_refused_with_its_row():
    records = [Record({"text": "x"}, "positive")] * 2 + [Record({"text": "x"}, "neutral")]
    message = refusal(DataError, task().examples, records)
    assert message.startswith("row 3: label 'neutral' is not one of the task's classes (negative, positive)")


@pytest.mark.parametrize("options", [{"reserve": 0}, {"reserve": -1}, {"max_tokens": 32}, {"max_tokens": 0}])
def test_limits_that_leave_no_room_are_refused(options):
    assert "for the prompt" in refusal(DataError, task, **options)


def test_smallest_limits_that_leave_room_are_taken():
    assert task(max_tokens=33).max_tokens == 33
    assert task(max_tokens=2, reserve=1).reserve == 1
