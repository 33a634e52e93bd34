"""Initial vectors of a soft prompt.

Scale matters more than method: vectors drawn from N(0, 1) next to word embeddings of standard deviation 0.02 or 0.1
get gradients tens of times too small. Every strategy here starts at the embeddings' own scale.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from cuecraft.backbone.marks import meant_by
from cuecraft.errors import MethodError
from cuecraft.method import Problem
from cuecraft.seeding import torch_generator

_COMMON = 5000  # Lester et al. sample from the 5,000 most common tokens: byte-level vocabularies start with them
_DEFAULT_LENGTH = 8


class Init(StrEnum):
    """Where a soft prompt's vectors start (Lester et al., EMNLP 2021, section 3.2)."""

    TEXT = "text"  # the template's own prompt words, or `init_text`
    VOCABULARY = "vocabulary"  # sampled common words
    LABELS = "labels"  # label words, in turn
    RANDOM = "random"  # normal, at the embeddings' mean and scale


def initial_vectors(problem: Problem, init: Init, length: int | None, text: str | None) -> Tensor:
    """Return `[S, d]` initial vectors.

    Args:
        problem: the problem.
        init: the strategy.
        length: S; by default that of the template's own words, of `text`, or 8.
        text: words for `Init.TEXT` in place of the template's own.

    Vectors that a text does not fill are sampled from the vocabulary and stand in front of it.

    Raises:
        MethodError: `Init.TEXT` with neither words in the template nor `text`, or a `text` of printed tokens.
    """
    backbone = problem.backbone
    words: tuple[int, ...] = ()
    if init is Init.TEXT:
        words = _words(problem, text)
        if not words:
            raise MethodError(
                "init=text needs words to start from; write {prompt:some words} in the template or give init_text"
            )
    length = length or len(words) or len(problem.initial_ids) or _DEFAULT_LENGTH
    if init is Init.RANDOM:
        return _random(backbone.embedding_matrix(), length, problem.seed)
    if init is Init.LABELS:
        ids = [word[0] for words_of in problem.train.context.renderer.label_ids for word in words_of]
        if not ids:
            raise MethodError("init=labels needs label words, but this backbone answers through a class head")
        return backbone.embed(torch.tensor([ids[n % len(ids)] for n in range(length)])).clone()
    return backbone.embed(torch.tensor(_filled(problem, words, length), dtype=torch.long)).clone()


def text_ids(problem: Problem, length: int, text: str | None) -> list[int]:
    """Return `length` ids to start from: of `text` or the template's own words, behind sampled common words."""
    return _filled(problem, _words(problem, text), length)


def _words(problem: Problem, text: str | None) -> tuple[int, ...]:
    if not text:
        return problem.initial_ids
    tokenizer = problem.backbone.tokenizer
    meant = meant_by(tokenizer, text)
    if meant is not None:
        raise MethodError(f"init_text {text!r} is tokens as a tokenizer's list prints them; write {meant!r}")
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _filled(problem: Problem, words: tuple[int, ...], length: int) -> list[int]:
    """Return the last `length` words, or all of them behind sampled ones."""
    return [*_sampled(problem, max(0, length - len(words))), *words[max(0, len(words) - length) :]]


def _sampled(problem: Problem, count: int) -> list[int]:
    special = set(problem.backbone.tokenizer.all_special_ids)
    common = [n for n in range(min(_COMMON, problem.backbone.vocab_size)) if n not in special]
    order = torch.randperm(len(common), generator=torch_generator(problem.seed, "init"))
    return [common[n] for n in order[:count].tolist()]


def _random(embeddings: Tensor, length: int, seed: int) -> Tensor:
    noise = torch.randn(length, embeddings.shape[1], generator=torch_generator(seed, "init"))
    return embeddings.mean(0) + noise.to(embeddings) * embeddings.std(0)
