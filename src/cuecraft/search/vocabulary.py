"""Which tokens a discrete search may use."""

from __future__ import annotations

import torch
from torch import Tensor

from cuecraft.backbone import AnyBackbone
from cuecraft.task import Task


def allowed_tokens(backbone: AnyBackbone, task: Task) -> Tensor:
    """Return `[V]` bool: printable tokens that are neither special, nor a label word or class name, nor part of one.

    A prompt that names one of the answers would leak it, whatever the text says.
    """
    tokenizer = backbone.tokenizer
    allowed = torch.zeros(backbone.vocab_size, dtype=torch.bool)
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    names = [*task.verbalizer.labels, *(word for words in task.verbalizer.words for word in words)]
    answers = {part.casefold() for name in names for part in (name, *name.split())}
    count = min(len(tokenizer), backbone.vocab_size)
    for token, text in enumerate(tokenizer.batch_decode([[n] for n in range(count)])):
        word = text.strip().removeprefix("##").casefold()
        allowed[token] = token not in special and _is_plain(text) and word not in answers
    return allowed


def _is_plain(text: str) -> bool:
    return bool(text.strip()) and text.strip().isprintable() and "\ufffd" not in text
