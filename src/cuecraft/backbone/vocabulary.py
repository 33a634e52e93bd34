"""Tokenizers that know more tokens than a model has embeddings, as `add_tokens` without resizing the model leaves."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from cuecraft.backbone.token_ids import copied_tokenizer, special_ids
from cuecraft.errors import BackboneError, CuecraftWarning

_REMEDY = "resize the model to its tokenizer (resize_token_embeddings) and train it so, or give its first tokenizer"


class Bounded:
    """A tokenizer class mixed with this one reads tokens without an embedding as its unknown token.

    `rows` is how many tokens the model has embeddings for, `unknown` the id that stands for the others, or None where
    only special tokens are among those, which no text has.
    """

    rows: int
    unknown: int | None

    def __call__(self, *texts: Any, **options: Any) -> Any:
        """Return what the tokenizer itself does, its ids all below `rows`.

        Raises:
            BackboneError: a special token without an embedding is written in a template or a label word.
        """
        found = super().__call__(*texts, **options)  # type: ignore[misc]
        found["input_ids"] = self._known(found["input_ids"])
        return found

    def _known(self, ids: Any) -> Any:
        if isinstance(ids, Tensor):
            return torch.tensor(self._known(ids.tolist()), dtype=ids.dtype, device=ids.device)
        if isinstance(ids, list):
            return [self._known(own) for own in ids]
        if ids < self.rows:
            return ids
        if self.unknown is None:
            token = self.convert_ids_to_tokens([ids])[0]  # type: ignore[attr-defined]
            raise BackboneError(f"the model has no embedding for token {token!r} of its tokenizer; {_REMEDY}")
        return self.unknown


def within_vocabulary(tokenizer: Any, model: Any, name: str, needed: Collection[int | None] = ()) -> Any:
    """Return a tokenizer whose ids all have an embedding: as it is, or a copy that reads others as unknown.

    Args:
        tokenizer: a Hugging Face tokenizer.
        model: a transformers model.
        name: what to call the model.
        needed: ids that have to have an embedding, over those that it puts around every text.

    Raises:
        BackboneError: tokens of its own have no embedding and there is no unknown token, or one that it puts into
            every text has none.

    Warns:
        CuecraftWarning: tokens are read as unknown.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    without = {number: token for token, number in vocabulary.items() if number >= rows}
    if not without:
        return tokenizer
    count = f"{name}: its tokenizer has {len(without)} tokens more than the model has embeddings for ({rows})"
    always = {*needed, *(number for side in special_ids(tokenizer) for number in side), tokenizer.mask_token_id}
    if lacking := sorted(always & set(without)):
        raise BackboneError(f"{count}, {without[lacking[0]]!r} among them, which every text needs; {_REMEDY}")
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
    plain = sorted(set(without) - special)
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown >= rows:
        unknown = None
    if plain and unknown is None:
        raise BackboneError(f"{count}, such as {without[plain[0]]!r}, and no unknown token to read them as; {_REMEDY}")
    if plain:
        warnings.warn(
            f"{count}; they are read as {tokenizer.unk_token}, such as {without[plain[0]]!r}",
            CuecraftWarning,
            stacklevel=2,
        )
    bounded = copied_tokenizer(tokenizer)  # the caller's own stays as it is
    bounded.__class__ = type(type(tokenizer).__name__, (Bounded, type(tokenizer)), {})
    bounded.rows, bounded.unknown = rows, unknown
    return bounded


def known_ids(tokenizer: Any, ids: Tensor) -> Tensor:
    """Return token ids `[...]` as a tokenizer of `within_vocabulary` gives them, by tensor operations alone."""
    if not isinstance(tokenizer, Bounded) or tokenizer.unknown is None:
        return ids
    return torch.where(ids < tokenizer.rows, ids, tokenizer.unknown)
