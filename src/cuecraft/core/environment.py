"""What decides a run's bits, set in one place before anything is drawn; and what a result was made on.

Nothing of ours draws from a global generator (`core/seeding.py`); libraries may. On one machine and with one number of
threads, equal runs give equal bits. A result names machine, threads, package versions and commit.
"""

from __future__ import annotations

import ctypes
import os
import platform
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

HASH_SEED = "PYTHONHASHSEED"
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
#: Runs the command line in a process of its own; `-P`: modules of the folder that it runs in are not taken for ours.
PROGRAM = (sys.executable, "-P", "-m", "cuecraft")
_FIXED_HASH_SEED, _CUBLAS_WORKSPACE = "0", ":4096:8"
_PACKAGES = ("cuecraft", "torch", "transformers", "scikit-learn", "scipy", "peft")
_OTHERS = ("numpy", "tokenizers", "safetensors", "pydantic")


def fixed_environment() -> dict[str, str]:
    """Return this process's environment with what has to be there when Python starts."""
    return {**os.environ, HASH_SEED: os.environ.get(HASH_SEED) or _FIXED_HASH_SEED}


def restart_with_fixed_hashes(arguments: Sequence[str]) -> None:
    """Start this program again where hashes of strings are salted, so that the order of sets is the same each time.

    Args:
        arguments: of `python -m cuecraft`.
    """
    if os.environ.get(HASH_SEED, "random") != "random":
        return
    sys.stdout.flush()
    sys.stderr.flush()
    environment = {**os.environ, HASH_SEED: _FIXED_HASH_SEED}
    os.execve(sys.executable, [*PROGRAM, *arguments], environment)


@contextmanager
def own_products_kept() -> Iterator[None]:
    """Keep how matrix products of this thread use cores, where torch's number of threads is set and given back.

    Any call of `torch.set_num_threads` lets MKL, once and for all, start threads within the parallel loops of torch:
    attention on a CPU then takes half as long again. A thread whose number was set before keeps that.
    """
    mkl = _mkl()
    before = mkl.MKL_Set_Num_Threads_Local(0) if mkl else 0
    if before:
        mkl.MKL_Set_Num_Threads_Local(before)
    try:
        yield
    finally:
        if not before:
            _keep_within_loops(mkl)


def set_threads(count: int) -> None:
    """Let torch's operations have so many threads from now on, in the whole process.

    Within torch's own loops a matrix product keeps to one thread (`own_products_kept`), whatever was set before.
    """
    import torch

    torch.set_num_threads(count)
    _keep_within_loops(_mkl())


def _keep_within_loops(mkl: Any) -> None:
    """Let MKL (None for none) start no threads within parallel loops, as it does by itself before a number is set."""
    if mkl:
        mkl.MKL_Set_Num_Threads_Local(0)
        mkl.MKL_Set_Dynamic(1)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch's operations have so many threads; None for as many as they have."""
    import torch

    before = torch.get_num_threads()
    if count in (None, before):
        yield
        return
    with own_products_kept():
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@cache
def _mkl() -> Any:
    """Return the matrix products that torch's wheels bring for x86 processors, or None where it has others."""
    import torch

    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        found = ctypes.CDLL(str(path))
    except OSError:
        return None
    return found if hasattr(found, "MKL_Set_Dynamic") and hasattr(found, "MKL_Set_Num_Threads_Local") else None


@contextmanager
def deterministic(seed: int, threads: int | None = None) -> Iterator[None]:
    """Seed all global generators, and let torch take deterministic algorithms alone, for a block of code.

    Args:
        seed: of Python's, NumPy's and torch's generators, CUDA's included.
        threads: of torch's operations; None for as many as there are.
    """
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault(_CUBLAS, _CUBLAS_WORKSPACE)  # read when CUDA's first matrix product is made
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    # An operation that has no deterministic algorithm warns and goes on: a result within tolerance is better than none.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        with _threads(threads):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        torch.backends.cudnn.benchmark = benchmark


def flags() -> Mapping[str, Any]:
    """Return what is set now, JSON-ready."""
    import torch

    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        _CUBLAS: os.environ.get(_CUBLAS),
        HASH_SEED: os.environ.get(HASH_SEED, "random"),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of the packages that a result depends on; None for an extra that is not there."""
    return {name: _version(name) for name in _PACKAGES}


@cache
def _version(name: str) -> str | None:
    is_there = find_spec(name.replace("scikit-learn", "sklearn")) is not None
    return metadata.version(name) if is_there else None


def describe(device: torch.device) -> dict[str, Any]:
    """Return platform, processor, device, threads and versions, JSON-ready.

    Args:
        device: that the backbone is on.
    """
    import torch

    is_cuda = device.type == "cuda"
    return {
        "platform": platform.platform(),
        "cpu": f"{os.cpu_count()} cores, {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "threads": torch.get_num_threads(),
        "versions": {name: version for name, version in versions().items() if version}
        | {name: metadata.version(name) for name in _OTHERS}
        | {"python": platform.python_version()},
    }


def git_commit(folder: Path) -> str | None:
    """Return the commit of the repository that a folder is in, with a plus sign where files were changed since.

    None where there is no repository, or no git.
    """

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        return found.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
