import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark_calls import unknown_keywords
from children import FINISHED, ended, forked
from cuecraft.task.batches import TokenBudget, token_batches

LENGTHS = st.lists(st.integers(0, 60), max_size=60)


def plain_batches(shares, tokens):
    """Fill each batch, whatever padding that takes."""
    order = sorted(range(len(shares)), key=lambda row: (-shares[row], row))
    while order:
        size = max(1, tokens // max(1, shares[order[0]]))
        yield order[:size]
        order = order[size:]


def cost(lengths, batches, pass_tokens):
    return sum(len(batch) * max(lengths[row] for row in batch) + pass_tokens for batch in batches)


@given(LENGTHS, st.integers(1, 200), st.integers(0, 100), st.sampled_from([1, 3]))
def test_every_row_comes_once_within_the_budget_and_never_costs_more_than_filled_batches(
    lengths, tokens, pass_tokens, share
):
    shares = [share * length for length in lengths]
    batches = list(token_batches(lengths, TokenBudget(tokens, pass_tokens), shares))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= max(1, tokens // max(1, *(shares[row] for row in batch), 0))
    assert cost(lengths, batches, pass_tokens) <= cost(lengths, list(plain_batches(shares, tokens)), pass_tokens)


@given(LENGTHS, st.integers(1, 200))
def test_batches_are_filled_where_a_pass_costs_more_than_any_padding(lengths, tokens):
    assert list(token_batches(lengths, TokenBudget(tokens, 10**6))) == list(plain_batches(lengths, tokens))


def test_rows_that_take_room_and_no_time_share_a_batch():
    assert list(token_batches([0, 0, 0], TokenBudget(100, 1), [30, 20, 10])) == [[0, 1, 2]]


@pytest.mark.parametrize(("pass_tokens", "sizes"), [(1000, [12]), (100, [2, 10]), (20, [2, 6, 4]), (0, [2, 6, 4])])
def test_a_batch_ends_where_padding_costs_more_than_a_pass(pass_tokens, sizes):
    lengths = [31, 30, *[9] * 6, *[3] * 4]
    assert [len(batch) for batch in token_batches(lengths, TokenBudget(1536, pass_tokens))] == sizes


def test_every_benchmark_can_be_imported_and_calls_what_there_is(tmp_path):
    """They run seldom, so that what they import, and the arguments that they give, must not vanish unseen."""
    folder = Path(__file__).parents[1] / "benchmarks"
    found = tmp_path / "found"

    def read(_):  # in a child, since their modules have common names
        sys.path.insert(0, str(folder))
        names = sorted(path.stem for path in folder.glob("*.py"))
        found.write_text("\n".join(line for name in names for line in unknown_keywords(name)))

    assert ended(*forked(read)) == FINISHED
    assert found.read_text() == ""
