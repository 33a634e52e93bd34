"""k-shot samples, hold-outs and subsamples."""

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from conftest import examples
from cuecraft.core.errors import DataError
from cuecraft.data import Record, holdout, k_shot_split, subsample

quick = examples(100)
seeds = st.integers(0, 2**31)


@st.composite
def labelled(draw, smallest=1):
    """Records of one to four classes in any order, each with a text of its own."""
    sizes = draw(st.lists(st.integers(smallest, 12), min_size=1, max_size=4))
    order = draw(st.permutations([label for label, size in zip("abcd", sizes, strict=False) for _ in range(size)]))
    return [Record({"text": str(row)}, label) for row, label in enumerate(order)]


def rows(records):
    return [int(record.fields["text"]) for record in records]


def sizes(records):
    return Counter(record.label for record in records)


def is_partition(parts, whole):
    return sorted(row for part in parts for row in rows(part)) == rows(whole)


@quick
@given(labelled(), st.integers(1, 6), st.booleans(), seeds)
def test_k_shot_is_balanced_disjoint_and_complete(records, shots, with_dev, seed):
    fewest = min(sizes(records).values())
    if fewest < shots * (1 + with_dev):
        with pytest.raises(DataError, match="lower the shots or add data"):
            k_shot_split(records, shots, seed, with_dev)
        return
    split = k_shot_split(records, shots, seed, with_dev)
    each = dict.fromkeys(sizes(records), shots)
    assert sizes(split.train) == each
    assert sizes(split.dev) == (each if with_dev else {})
    assert is_partition(split, records)
    assert all(record == records[row] for part in split for row, record in zip(rows(part), part, strict=True))


@quick
@given(labelled(smallest=4), st.integers(1, 2), seeds)
def test_k_shot_train_does_not_depend_on_dev(records, shots, seed):
    with_dev = k_shot_split(records, shots, seed)
    assert k_shot_split(records, shots, seed) == with_dev
    assert k_shot_split(records, shots, seed, with_dev=False).train == with_dev.train


@quick
@given(labelled(smallest=4), st.integers(1, 2), seeds)
def test_a_class_is_drawn_alike_whatever_the_other_classes(records, shots, seed):
    split = k_shot_split(records, shots, seed)
    kept, _ = holdout(records, 0.4, seed)
    for label in sizes(records):
        alone = [record for record in records if record.label == label]
        assert k_shot_split(alone, shots, seed).train == [record for record in split.train if record.label == label]
        assert holdout(alone, 0.4, seed)[0] == [record for record in kept if record.label == label]


@quick
@given(labelled(smallest=4), seeds)
def test_more_shots_keep_the_fewer(records, seed):
    one, two = (k_shot_split(records, shots, seed, with_dev=False) for shots in (1, 2))
    assert set(rows(one.train)) < set(rows(two.train))


def plain(size, label="a"):
    return [Record({"text": str(row)}, label) for row in range(size)]


def test_seeds_draw_every_record_about_equally_often():
    draws = Counter(row for seed in range(600) for row in rows(k_shot_split(plain(6), 1, seed).train))
    held = Counter(row for seed in range(600) for row in rows(holdout(plain(6), 0.2, seed)[1]))
    drawn = Counter(row for seed in range(300) for row in rows(subsample(plain(6), 2, seed)))
    for count in (draws, held, drawn):
        assert sorted(count) == list(range(6))
        assert all(60 < times < 140 for times in count.values())


def test_samples_of_one_seed_are_drawn_independently():
    pool = plain(40)
    train, held, drawn = k_shot_split(pool, 8, 5).train, holdout(pool, 0.2, 5)[1], subsample(pool, 8, 5)
    assert len({tuple(rows(part)) for part in (train, held, drawn)}) == 3


def test_too_few_names_class_and_numbers():
    records = plain(9) + plain(3, "b")
    with pytest.raises(DataError, match=r"^class 'b' has 3 examples, but 4 are needed for 2 shots to train on and as"):
        k_shot_split(records, 2, seed=0)
    with pytest.raises(DataError, match=r"^class 'b' has 3 examples, but 4 are needed for 4 shots; lower"):
        k_shot_split(records, 4, seed=0, with_dev=False)
    assert sizes(k_shot_split(records, 3, seed=0, with_dev=False).train) == {"a": 3, "b": 3}


@pytest.mark.parametrize("shots", [0, -1])
def test_shots_must_be_positive(shots):
    with pytest.raises(DataError, match=f"shots is {shots}"):
        k_shot_split(plain(9), shots, seed=0)


def test_unlabelled_record_is_refused_with_its_row():
    records = [*plain(2), Record({"text": "x"})]
    with pytest.raises(DataError, match="row 3 has no label"):
        k_shot_split(records, 1, seed=0)
    with pytest.raises(DataError, match="row 3 has no label"):
        holdout(records, 0.5, seed=0)


@quick
@given(labelled(), st.floats(0.001, 0.999), seeds)
def test_holdout_is_stratified_disjoint_and_empties_no_class(records, fraction, seed):
    kept, held = holdout(records, fraction, seed)
    assert is_partition((kept, held), records)
    assert holdout(records, fraction, seed) == (kept, held)
    for label, size in sizes(records).items():
        count = sizes(held)[label]
        assert count <= size - 1
        if size == 1:
            assert count == 0
        elif abs(count - fraction * size) > 0.5:  # not the nearest whole number: only at the ends
            assert count == (1 if fraction * size < 1 else size - 1)
            assert not 1 <= round(fraction * size) <= size - 1


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_fraction_must_be_inside(fraction):
    with pytest.raises(DataError, match="the fraction held out is"):
        holdout(plain(4), fraction, seed=0)


@quick
@given(labelled(), st.integers(1, 60), seeds)
def test_subsample_keeps_order_and_size(records, size, seed):
    chosen = subsample(records, size, seed)
    assert chosen == subsample(records, size, seed)
    assert len(chosen) == min(size, len(records))
    assert rows(chosen) == sorted(set(rows(chosen)))
    assert all(records[row] == record for row, record in zip(rows(chosen), chosen, strict=True))


@quick
@given(labelled(), seeds)
def test_subsample_without_a_size_is_everything(records, seed):
    assume(len(records) > 1)
    assert subsample(records, None, seed) == records
    assert len(subsample(records, len(records) - 1, seed)) == len(records) - 1


@pytest.mark.parametrize("size", [0, -3])
def test_sample_size_must_be_positive(size):
    with pytest.raises(DataError, match=f"the sample size is {size}"):
        subsample(plain(4), size, seed=0)


def test_other_seeds_draw_other_samples():
    pool = plain(40) + plain(40, "b")
    for draw in (lambda s: k_shot_split(pool, 8, s).train, lambda s: holdout(pool, 0.2, s)[1]):
        assert len({tuple(rows(draw(seed))) for seed in range(5)}) == 5
    assert len({tuple(rows(subsample(pool, 8, seed))) for seed in range(5)}) == 5
