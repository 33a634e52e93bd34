"""Passes that run at the same time: order, errors, settings of threads, and gradients as with one pass at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import cuecraft
from conftest import tiny_problem
from cuecraft.artifact import Calibration, DeepCue, HardPrompt
from cuecraft.backbone.lanes import at_once, lanes
from cuecraft.core.deadline import OutOfTimeError, WhileTimeLasts, check_time
from cuecraft.core.environment import _mkl, deterministic, set_threads
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.first_order import class_gradients
from cuecraft.methods.gradients import accumulate_gradients

WORD: ContextVar[str] = ContextVar("word", default="none")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_keep_their_order_and_runs_are_at_once(two_threads):
    both = threading.Barrier(2, timeout=30)  # passed only where two runs are in progress

    def run(item):
        both.wait()
        return item, WORD.get(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()

    WORD.set("mine")
    with torch.inference_mode():
        found = list(at_once(run, range(6), 2))
    assert found == [(n, "mine", True, False, 1) for n in range(6)]
    assert torch.get_num_threads() == 2


def test_fewer_runs_share_all_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert list(at_once(lambda _: torch.get_num_threads(), range(2), 4)) == [2, 2]
        assert list(at_once(lambda _: torch.get_num_threads(), range(1), 4)) == [4]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("own", [0, 2])
def test_matrix_products_of_the_caller_use_cores_as_before(two_threads, own):
    """0: none was set in this thread. MKL then starts no threads within a parallel loop of torch."""
    mkl = _mkl()
    if mkl is None:
        pytest.skip("torch has other matrix products here")
    before = mkl.MKL_Set_Num_Threads_Local(own)
    try:
        assert list(at_once(lambda item: item, range(4), 2)) == [0, 1, 2, 3]
        with deterministic(0, 1):
            assert torch.get_num_threads() == 1
        assert mkl.MKL_Set_Num_Threads_Local(own) == own
        if not own:
            assert mkl.mkl_serv_get_dynamic() == 1
    finally:
        mkl.MKL_Set_Num_Threads_Local(before)


def test_threads_set_for_good_leave_matrix_products_as_they_were(two_threads):
    """As in replicas and bulk actors: MKL starts no threads within a parallel loop of torch."""
    mkl = _mkl()
    if mkl is not None:
        assert mkl.mkl_serv_get_dynamic() == 0, "set by torch"
    for count in (1, 2):
        set_threads(count)
        assert torch.get_num_threads() == count
        if mkl is not None:
            assert mkl.mkl_serv_get_dynamic() == 1
            assert mkl.MKL_Set_Num_Threads_Local(0) == 0


def test_no_other_module_sets_threads():
    """One place knows what has to be kept: `set_threads`, and two blocks that give them back."""
    known = {"core/environment.py", "backbone/lanes.py"}
    source = Path(cuecraft.__file__).parent
    found = {
        p.relative_to(source).as_posix() for p in source.rglob("*.py") if "set_num_threads" in p.read_text("utf-8")
    }
    assert found == known


def test_callers_at_once_give_all_threads_back(two_threads):
    """The second caller begins while the first one shares the threads, and ends after it."""
    first_began, second_began, first_ended = threading.Event(), threading.Event(), threading.Event()

    def first():
        list(at_once(lambda _: (first_began.set(), second_began.wait(30)), range(2), 2))
        first_ended.set()

    def second():
        assert first_began.wait(30)
        list(at_once(lambda _: (second_began.set(), first_ended.wait(30)), range(2), 2))

    in_threads(first, second)
    assert in_threads(torch.get_num_threads) == [2]


def in_threads(*works):
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]


def test_what_a_run_raises_comes_back_once_no_other_runs(two_threads):
    running = []

    def run(item):
        running.append(item)
        try:
            if item == 1:
                raise ValueError("this one")
            return item
        finally:
            running.remove(item)

    with pytest.raises(ValueError, match="this one"):
        list(at_once(run, range(8), 2))
    assert not running
    assert torch.get_num_threads() == 2


def test_the_time_limit_ends_runs_in_threads(two_threads):
    def run(item):
        check_time()
        return item

    with pytest.raises(OutOfTimeError):
        _in_time(run)


def _in_time(run):
    limit = WhileTimeLasts(lambda: True)
    limit.__enter__()
    try:
        list(at_once(run, range(2), 2))
    finally:
        limit.__exit__(None)


def test_one_thread_or_another_device_runs_one_pass_at_a_time(two_threads):
    assert lanes(torch.device("cpu")) == 2
    assert lanes(torch.device("cuda")) == 1
    torch.set_num_threads(1)
    assert lanes(torch.device("cpu")) == 1


def gradients(problem, ids, lengths):
    """Return the gradients of several candidates' losses, each over examples of its own, and their logits."""
    generator = torch.Generator().manual_seed(0)
    shapes = [problem.backbone.offsets_shape(length) for length in lengths]
    offsets = [torch.randn(shape, generator=generator).mul(0.1).requires_grad_() for shape in shapes]
    none = Calibration.none(problem.task.verbalizer.num_classes)

    def make(n):
        return lambda: Candidate(DeepCue(HardPrompt(ids[: lengths[n]]), offsets[n]), none)

    rows = [list(range(n, len(problem.train), 2)) * 4 for n in range(len(lengths))]
    parts = [(make(n), problem.train.select(own)) for n, own in enumerate(rows)]
    found = accumulate_gradients(problem.backbone, parts, offsets)
    return [own.grad for own in offsets], found


@pytest.mark.parametrize("lengths", [(3,), (3, 3), (3, 2)])
def test_gradients_are_those_of_one_pass_at_a_time(causal, two_threads, lengths):
    problem = tiny_problem(causal)
    ids = (*problem.initial_ids, *problem.initial_ids)[:3]
    at_a_time = gradients(problem, ids, lengths)
    again = gradients(problem, ids, lengths)
    torch.set_num_threads(1)
    alone = gradients(problem, ids, lengths)
    for own, repeated, expected in zip(at_a_time, again, alone, strict=True):
        for mine, second, other in zip(own, repeated, expected, strict=True):
            assert torch.equal(getattr(mine, "losses", mine), getattr(second, "losses", second))
            mine, other = (getattr(one, "losses", one).float() for one in (mine, other))  # computed in float32
            torch.testing.assert_close(mine, other)


def test_class_gradients_are_those_of_one_pass_at_a_time(causal, two_threads, monkeypatch):
    problem = tiny_problem(causal)
    prompt = HardPrompt(problem.initial_ids)
    shape = causal.offsets_shape(len(prompt))
    monkeypatch.setattr(causal, "budget", replace(causal.budget, rows=4))
    found = class_gradients(causal, problem.train.context, prompt, shape)
    torch.set_num_threads(1)
    for own, expected in zip(found, class_gradients(causal, problem.train.context, prompt, shape), strict=True):
        torch.testing.assert_close(own, expected)
