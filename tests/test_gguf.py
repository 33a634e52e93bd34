"""GGUF files given as models: converted once, the same as the model that they were made of, or refused."""

import hashlib
import json
import os
import re
import struct
import sys
import time
from contextlib import suppress

import gguf
import numpy as np
import pytest
import torch

from children import FINISHED, ended, forked, killed, steps_of
from conftest import LABELS, TEXTS
from cuecraft import PromptClassifier
from cuecraft.backbone import load_backbone
from cuecraft.backbone.load import _load
from cuecraft.core import assets
from cuecraft.core.errors import ArtifactError, AssetError, BackboneError
from cuecraft.core.gguf_files.header import read_header
from gguf_writing import LETTERS, MODELS, tensors, tiny, write_gguf

IDS = torch.randint(3, 300, (3, 40), generator=torch.Generator().manual_seed(0))
SENTENCES = [text for text, _ in TEXTS]
NAMES = [LABELS[label] for _, label in TEXTS]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache of converted models."""
    monkeypatch.setenv("CUECRAFT_CACHE", str(tmp_path / "cache"))
    _load.cache_clear()
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def llama(byte_tokenizer):
    return tiny("llama", byte_tokenizer)


@pytest.fixture
def file(llama, byte_tokenizer, tmp_path):
    return write_gguf(tmp_path / "tiny.gguf", llama, byte_tokenizer)


def folders(cache):
    """What the cache holds but for locks."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock") if cache.is_dir() else []


def logits(model):
    with torch.no_grad():
        return model(IDS % model.config.vocab_size).logits


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_from_gguf_is_the_model_that_was_written(kind, byte_tokenizer, tmp_path):
    is_gemma = kind.startswith("gemma")
    tokenizer = LETTERS if is_gemma else byte_tokenizer
    model = tiny(kind, tokenizer)
    backbone = load_backbone(write_gguf(tmp_path / f"{kind}.gguf", model, tokenizer))
    found, wanted = logits(backbone.model), logits(model)
    assert wanted.std() > 0.1
    # Gemma's norms are kept as w + 1, which rounds.
    assert torch.allclose(found, wanted, atol=1e-4 if is_gemma else 1e-6)
    assert backbone.model.config.max_position_embeddings == 128
    for text in SENTENCES:
        letters = [LETTERS.index(letter.replace(" ", "▁")) for letter in text]
        ids = letters if is_gemma else byte_tokenizer(text)["input_ids"]
        assert backbone.tokenizer(text)["input_ids"] == ids
    assert backbone.tokenizer.chat_template.startswith("{% for message in messages")


@pytest.mark.parametrize("quantised", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_quantised_weights_are_what_their_type_keeps(quantised, llama, byte_tokenizer, tmp_path):
    kind = gguf.GGMLQuantizationType[quantised]
    path = write_gguf(tmp_path / "tiny.gguf", llama, byte_tokenizer, kind)
    state = load_backbone(path).model.state_dict()
    written = tensors("llama", llama)
    name = "blk.1.ffn_down.weight"
    kept = gguf.quants.dequantize(gguf.quants.quantize(written[name], kind), kind)
    assert not np.array_equal(kept, written[name])
    assert np.array_equal(state["model.layers.1.mlp.down_proj.weight"].numpy(), kept)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_a_file_is_converted_once_and_a_second_load_needs_no_package(file, cache, monkeypatch):
    first = load_backbone(file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert folders(cache) == [f"gguf-{sha256[:32]}"]
    folder = cache / folders(cache)[0]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    _load.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert torch.equal(logits(load_backbone(str(file)).model), logits(first.model))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_hash_is_of_the_content_whatever_the_file_is_called(file, llama, byte_tokenizer, cache, tmp_path):
    hashes = {load_backbone(file).fingerprint()}
    copy = tmp_path / "elsewhere" / "sha256-0123"  # as Ollama calls them
    copy.parent.mkdir()
    copy.write_bytes(file.read_bytes())
    hashes.add(load_backbone(copy).fingerprint())
    assert len(hashes) == len(folders(cache)) == 1
    other = write_gguf(tmp_path / "other.gguf", llama, byte_tokenizer, gguf.GGMLQuantizationType.Q8_0)
    assert load_backbone(other).fingerprint() not in hashes


def test_what_lies_beside_the_file_is_not_read(file, llama):
    (file.parent / "config.json").write_text('{"model_type": "bert"}')
    (file.parent / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (file.parent / "adapter_config.json").write_text("{}")
    assert torch.equal(logits(load_backbone(file).model), logits(llama))


def test_an_artifact_loads_over_the_file_and_over_the_converted_folder(file, cache, tmp_path):
    fitted = PromptClassifier(str(file), "prompt-tuning", method_options={"epochs": 1}).fit(SENTENCES, NAMES)
    fitted.save(tmp_path / "over-file")
    folder = cache / folders(cache)[0]
    assert load_backbone(folder).fingerprint() == fitted.backbone_.fingerprint()
    wanted = fitted.predict_proba(SENTENCES)
    for model in (None, str(folder), str(file)):
        found = PromptClassifier.load(tmp_path / "over-file", model=model)
        assert np.array_equal(found.predict_proba(SENTENCES), wanted)
    PromptClassifier(str(folder), "zero-shot").fit(SENTENCES, NAMES).save(tmp_path / "over-folder")
    PromptClassifier.load(tmp_path / "over-folder", model=str(file))


@pytest.mark.parametrize("what", ["changed", "added", "forged"])
def test_a_converted_folder_that_was_changed_is_another_model(what, file, cache, tmp_path):
    PromptClassifier(str(file), "zero-shot").fit(SENTENCES, NAMES).save(tmp_path / "artifact")
    folder = cache / folders(cache)[0]
    if what == "changed":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    elif what == "added":
        (folder / "special_tokens_map.json").write_text("{}")
    else:
        (folder / "gguf.json").write_text('{"sha256": 3}')
    with pytest.raises(ArtifactError):
        PromptClassifier.load(tmp_path / "artifact", model=str(folder))
    if what != "added":
        with pytest.raises(AssetError, match="changed since conversion; delete the folder"):
            assets.model_folder(str(file))


def test_parts_of_a_split_file_are_joined(llama, byte_tokenizer, cache, tmp_path):
    kind = gguf.GGMLQuantizationType.Q8_0
    whole = load_backbone(write_gguf(tmp_path / "whole.gguf", llama, byte_tokenizer, kind))
    write_gguf(tmp_path / "tiny", llama, byte_tokenizer, kind, split_max_tensors=7, small_first_shard=True)
    parts = sorted(tmp_path.glob("tiny-*"))
    assert [path.name for path in parts[:2]] == ["tiny-00001-of-00004.gguf", "tiny-00002-of-00004.gguf"]
    first = load_backbone(parts[0])
    assert torch.equal(logits(first.model), logits(whole.model))
    assert load_backbone(parts[2]).fingerprint() == first.fingerprint()
    assert len(folders(cache)) == 2
    parts[3].rename(tmp_path / "away")
    with pytest.raises(BackboneError, match=r"is one of 4 parts, and tiny-00004-of-00004.gguf is missing; put all"):
        load_backbone(parts[0].parent / "." / parts[1].name)
    parts[1].rename(tmp_path / "alone.gguf")
    parts[0].rename(tmp_path / "first.gguf")
    for name in ("alone.gguf", "first.gguf"):
        with pytest.raises(BackboneError, match=r"is one of 4 parts, whose names end in|names no architecture"):
            load_backbone(tmp_path / name)


def test_parts_of_two_models_are_refused(llama, byte_tokenizer, tmp_path):
    write_gguf(tmp_path / "tiny", llama, byte_tokenizer, split_max_tensors=12)
    parts = sorted(tmp_path.glob("tiny-*"))
    parts[1].write_bytes(parts[0].read_bytes())
    with pytest.raises(BackboneError, match="its parts hold 24 tensors in place of 21 different ones"):
        load_backbone(parts[0])


def renamed_architecture(writer):
    writer.kv_data[0]["general.architecture"].value = "nonesuch"


def without_values(*names):
    return lambda writer: [writer.kv_data[0].pop(name) for name in names]


def scaled(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)


def with_bias(writer):
    writer.add_tensor("blk.0.attn_q.bias", np.ones(64, np.float32))


def with_odd_factors(writer):
    writer.add_tensor("rope_freqs.weight", np.linspace(1, 9, 8, dtype=np.float32))


REFUSED = {
    "architecture": (renamed_architecture, r"its architecture is 'nonesuch', which transformers \S+ does not read"),
    "no architecture": (without_values("general.architecture"), "names no architecture"),
    "adapter": (lambda writer: writer.add_type("adapter"), "holds no model .general.type is 'adapter'"),
    "no layers": (without_values("llama.embedding_length"), "cannot read it|has no weights"),
    "no tokenizer": (without_values("tokenizer.ggml.model"), "cannot read it .*tokenizer"),
    "scaled": (scaled, r"its rotary positions are scaled \(yarn\), which is not carried over"),
    "odd factors": (with_odd_factors, r"its rotary positions are scaled \(unknown settings\)"),
    "more weights": (with_bias, r"has [\d,]+ weights, and llama of transformers takes [\d,]+"),
    "both directions": (lambda writer: writer.add_causal_attention(False), "reads in both directions"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_read_is_refused_in_one_line_that_says_what_to_do(what, llama, byte_tokenizer, cache, tmp_path):
    change, says = REFUSED[what]
    path = write_gguf(tmp_path / "tiny.gguf", llama, byte_tokenizer, change=change)
    with pytest.raises(BackboneError, match=says) as caught:
        load_backbone(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert re.search("; (give|download)", str(caught.value))
    assert "\n" not in str(caught.value)
    assert folders(cache) == []


def test_missing_weights_are_refused_and_not_made_up(llama, byte_tokenizer, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", llama, byte_tokenizer, without=["blk.1.ffn_up.weight"])
    with pytest.raises(BackboneError, match=r"has no weights for 'model.layers.1.mlp.up_proj.weight' \(1 missing\)"):
        load_backbone(path)


def test_linear_scaling_is_carried_over(byte_tokenizer, tmp_path):
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    model = tiny("llama", byte_tokenizer, rope_parameters=rope)

    def change(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    backbone = load_backbone(write_gguf(tmp_path / "tiny.gguf", model, byte_tokenizer, change=change))
    assert torch.allclose(logits(backbone.model), logits(model), atol=1e-6)


@pytest.mark.parametrize("damage", ["empty", "pointer", "text", "version", "swapped"])
def test_what_is_no_gguf_file_is_refused(damage, file):
    data = file.read_bytes()
    content, says = {
        "empty": (b"", "is no GGUF file, as it does not begin with 'GGUF'"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        "text": (b"{}", "is no GGUF file"),
        "version": (data[:4] + struct.pack("<I", 1) + data[8:], "is of version 1 of the format"),
        "swapped": (data[:4] + struct.pack(">I", 3) + data[8:], "is for big-endian machines"),
    }[damage]
    file.write_bytes(content)
    with pytest.raises(BackboneError, match=says):
        load_backbone(file)
    with pytest.raises(BackboneError, match="there is no such file; check the path"):
        load_backbone(file.with_name("nowhere.gguf"))


def test_a_file_cut_anywhere_is_refused_before_it_is_converted(file, cache):
    data = file.read_bytes()
    for size in (5, 23, 24, 100, 3000, 9000, len(data) // 2, len(data) - 40):
        file.write_bytes(data[:size])
        with pytest.raises(BackboneError, match=r"is damaged or cut short|is no GGUF") as caught:
            load_backbone(file)
        assert "\n" not in str(caught.value)
    assert folders(cache) == []


def test_a_damaged_header_is_refused_quickly(file):
    """Lengths of a damaged file are no reason to read for hours, or to fill the memory."""
    data = bytearray(file.read_bytes())
    start = time.monotonic()
    for place in (*range(8, 24), *range(24, 400, 7)):
        spoiled = bytearray(data)
        spoiled[place] ^= 0xFF
        file.write_bytes(spoiled)
        with suppress(BackboneError):
            read_header(file)
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_is_named(package, file, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackboneError, match=rf"reading GGUF needs {package}; pip install 'cuecraft\[gguf\]'"):
        load_backbone(file)
    assert folders(cache) == []


def test_a_full_disk_is_said_before_the_work(file, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    with pytest.raises(BackboneError, match=r"GB of disk, and 0\.0 GB are free in the cache; free some"):
        load_backbone(file)


def test_the_command_line_refuses_with_exit_code_2_and_works(file, command, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f'"{text}",{LABELS[k]}\n' for text, k in TEXTS))
    code, _, err = command("tune", "rows.csv", "--model", file, "--method", "zero-shot", "--out", "tuned")
    assert code == 0, err
    code, out, _ = command("predict", "tuned", "--json", "a joy from start to finish")
    assert code == 0
    assert "positive" in out
    file.write_bytes(b"GGUF")
    _load.cache_clear()
    code, _, err = command("tune", "rows.csv", "--model", file, "--method", "zero-shot", "--out", "other")
    assert code == 2
    assert "is damaged or cut short" in err


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_conversion_leaves_nothing(error, file, cache, monkeypatch):
    def stop(files, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(assets, "convert", stop)
    with pytest.raises((KeyboardInterrupt, AssetError)):
        assets.model_folder(str(file))
    assert folders(cache) == []


def pretended(log):
    """A conversion that takes a while and writes down that it was done."""

    def convert(files, folder):
        with log.open("a") as handle:
            handle.write("once\n")
        (folder / "config.json").write_text("{}")
        time.sleep(0.3)

    return convert


def test_of_two_processes_one_converts_and_the_other_waits(file, cache, monkeypatch, tmp_path):
    log = tmp_path / "log"
    monkeypatch.setattr(assets, "convert", pretended(log))
    children = [forked(lambda step: assets.model_folder(str(file))) for _ in range(3)]
    assert [ended(*child) for child in children] == [FINISHED] * 3
    assert log.read_text() == "once\n"
    assert len(folders(cache)) == 1


def test_what_a_killed_conversion_left_is_removed_by_the_next(file, cache, monkeypatch, tmp_path):
    def work(step):
        def convert(files, folder):
            (folder / "model.safetensors").write_bytes(b"half")
            step(None)
            time.sleep(60)

        monkeypatch.setattr(assets, "convert", convert)
        assets.model_folder(str(file))

    child = forked(work)
    assert steps_of(*child, most=1) == 1
    killed(*child)
    assert len(folders(cache)) == 1
    assert folders(cache)[0].startswith(".gguf-")
    monkeypatch.setattr(assets, "convert", pretended(tmp_path / "log"))
    place = assets.model_folder(str(file))
    assert folders(cache) == [place.name]
    assert sorted(os.listdir(place)) == ["checksums.json", "config.json", "gguf.json"]
