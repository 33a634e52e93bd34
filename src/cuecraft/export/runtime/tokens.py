"""A tokenizer read from `tokenizer.json`, as `Renderer` asks it, without transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cuecraft.core.errors import ExportError
from cuecraft.export.runtime.manifest import TokensEntry


class FileTokenizer:
    """What a `Renderer` needs of a tokenizer.

    Args:
        path: of `tokenizer.json`.
        tokens: ids of its special tokens.

    Raises:
        ExportError: the `tokenizers` package is not installed, or the file cannot be read.
    """

    def __init__(self, path: Path, tokens: TokensEntry) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ExportError("exported folders need an extra; pip install 'cuecraft[onnx]'") from error
        try:
            #: Whether special tokens written in a text are text is the tokenizer's own state: so one for each, as
            #: threads may share this.
            self._tokenizers = {is_text: Tokenizer.from_file(str(path)) for is_text in (False, True)}
        except Exception as error:  # the library has no error class of its own
            raise ExportError(f"{path}: is no tokenizer ({error}); restore it or export again") from error
        self._tokenizers[True].encode_special_tokens = True
        self.mask_token_id = tokens.mask
        self.unk_token_id = tokens.unknown

    def __call__(
        self,
        text: str | Sequence[str],
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        **_: Any,
    ) -> dict[str, Any]:
        """Return ids of a text `[L]`, or of several `[B][L]`, by the name `input_ids`.

        Args:
            text: the text or texts.
            add_special_tokens: whether those are put around it that the tokenizer puts around every text.
            split_special_tokens: whether a special token written in the text is read as ordinary text.
            **_: what a Hugging Face tokenizer takes in addition, without effect on the ids.
        """
        tokenizer = self._tokenizers[split_special_tokens]
        if isinstance(text, str):
            return {"input_ids": tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}
        found = tokenizer.encode_batch(list(text), add_special_tokens=add_special_tokens)
        return {"input_ids": [one.ids for one in found]}

    def tokenize(self, text: str) -> list[str]:
        """Return a text's tokens, without special ones."""
        tokens: list[str] = self._tokenizers[False].encode(text, add_special_tokens=False).tokens
        return tokens

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens of ids."""
        return [str(self._tokenizers[False].id_to_token(token)) for token in ids]
