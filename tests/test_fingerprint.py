"""The fingerprint of records: equal where they are, and nowhere else."""

from hypothesis import given
from hypothesis import strategies as st

from conftest import examples
from cuecraft.data import Record, fingerprint


def test_fingerprint_changes_with_order_text_label_and_field_names():
    base = [Record({"text": "x", "title": "y"}, "a"), Record({"text": "z"}, None)]
    changed = [
        base[::-1],
        base[:1],
        [Record({"text": "x ", "title": "y"}, "a"), base[1]],
        [Record({"text": "y", "title": "x"}, "a"), base[1]],
        [Record({"text": "x", "body": "y"}, "a"), base[1]],
        [Record({"text": "x", "title": "y"}, "b"), base[1]],
        [Record({"text": "x", "title": "y"}, None), base[1]],
        [base[0], Record({"text": "z"}, "null")],
        [base[0], Record({"text": "z"}, "")],
        [],
    ]
    prints = [fingerprint(records) for records in (base, *changed)]
    assert len(set(prints)) == len(prints)
    assert fingerprint([Record({"title": "y", "text": "x"}, "a"), Record({"text": "z"})]) == prints[0]


some_records = st.lists(
    st.builds(Record, st.dictionaries(st.sampled_from("ab"), st.text('a"\n\\,', max_size=2)), st.sampled_from("a\n")),
    max_size=2,
)


@examples(300)
@given(some_records, some_records)
def test_fingerprints_are_equal_when_records_are(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (one == other)
