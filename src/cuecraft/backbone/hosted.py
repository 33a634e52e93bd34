"""A caller's model in memory, read without a change to it; and tokenizers with more tokens than a model embeds."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from cuecraft.core.errors import BackboneError, CuecraftWarning
from cuecraft.task.token_text import copied_tokenizer, special_ids

_REMEDY = "resize the model to its tokenizer (resize_token_embeddings) and train it so, or give its first tokenizer"


def borrowed(model: Any) -> Any:
    """Return a copy of a model's modules that shares all weights with it.

    So the copy can be put into evaluation mode and frozen, while the caller's model keeps its modes, also those that it
    gets later: training it goes on, and answers have no dropout. Changes of the weights in place are seen; a model that
    is moved to another device afterwards leaves its old weights here.

    Where modules cannot be copied so (weights of 4 or 8 bits, layers spread over devices), it is the model itself.

    Warns:
        CuecraftWarning: the caller's own model is put into evaluation mode and frozen.
    """
    tensors = [*model.parameters(), *model.buffers()]
    is_plain = all(type(own) in (torch.nn.Parameter, torch.nn.Buffer, Tensor) for own in tensors)
    is_placed = any(hasattr(module, "_hf_hook") for module in model.modules())
    if is_plain and not is_placed and getattr(model, "hf_quantizer", None) is None:
        weights = {id(own): torch.nn.Parameter(own.detach(), requires_grad=False) for own in model.parameters()}
        gradients = {id(own.grad): None for own in model.parameters() if own.grad is not None}
        try:
            return copy.deepcopy(model, {**{id(own): own for own in model.buffers()}, **gradients, **weights})
        except Exception:  # modules hold whatever their makers like, such as locks and open files
            pass
    if model.training or any(own.requires_grad for own in model.parameters()):
        warnings.warn(
            f"{type(model).__name__} is put into evaluation mode and its weights are frozen, and it stays so; call "
            "train() and requires_grad_(True) to train it afterwards",
            CuecraftWarning,
            stacklevel=3,
        )
    return model


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
