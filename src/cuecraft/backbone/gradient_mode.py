"""Gradients where something is trained, whatever a caller has switched off around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Let tensors made here be ordinary ones, which can be trained with later: those of inference mode never can."""
    is_on = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(is_on):
        yield


@contextmanager
def training() -> Iterator[None]:
    """Take gradients here, also where the caller has switched them off or is in inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
