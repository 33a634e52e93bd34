"""Loading: what is refused, what decides the hash, where inputs end."""

import json

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MistralConfig, MistralForCausalLM

from conftest import make_causal, make_examples, make_task
from cuecraft.backbone import load_backbone
from cuecraft.backbone.load import _load
from cuecraft.errors import BackboneError, CuecraftWarning
from cuecraft.prompts import HardPrompt

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


@pytest.fixture
def folder(causal_folder, tmp_path):
    import shutil

    _load.cache_clear()
    return shutil.copytree(causal_folder, tmp_path / "model")


def test_pickled_weights_are_refused(folder):
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="cannot load this model") as caught:
        load_backbone(str(folder))
    assert "\n" not in str(caught.value)


def test_the_hash_follows_weights_configuration_and_tokenizer(folder):
    def fingerprint():
        _load.cache_clear()
        return load_backbone(str(folder)).fingerprint()

    hashes = [fingerprint()]
    assert fingerprint() == hashes[0]
    config = json.loads((folder / "config.json").read_text())
    config["rms_norm_eps"] = 1e-3
    (folder / "config.json").write_text(json.dumps(config))
    hashes.append(fingerprint())
    with (folder / "tokenizer.json").open("a") as handle:
        handle.write("\n")
    hashes.append(fingerprint())
    assert len(set(hashes)) == 3


def test_models_in_memory_are_hashed_by_their_tensors(byte_tokenizer):
    one, two, other = (make_causal(byte_tokenizer) for _ in range(3))
    other.model.norm.weight.data[0] += 1
    hashes = [load_backbone((model, byte_tokenizer)).fingerprint() for model in (one, two, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_name_is_loaded_once(folder):
    assert load_backbone(str(folder)) is load_backbone(str(folder))
    assert load_backbone(load_backbone(str(folder))) is load_backbone(str(folder))


@pytest.mark.parametrize(
    ("head", "device", "what"), [("giant", "cpu", "head 'giant'"), (None, "tpu9", "cannot be used")]
)
def test_unknown_heads_and_devices_are_refused(folder, head, device, what):
    with pytest.raises(BackboneError, match=what):
        load_backbone(str(folder), head, device)


@pytest.mark.parametrize("kind", ["gemma3", "mistral"])
@torch.no_grad()
def test_inputs_stay_within_a_sliding_window_and_equal_the_models_own_forward(byte_tokenizer, kind):
    vocab = {"vocab_size": len(byte_tokenizer), "sliding_window": 48}
    if kind == "gemma3":
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(**SHAPE, **vocab, layer_types=["sliding_attention", "full_attention"])
        )
    else:
        model = MistralForCausalLM(MistralConfig(**SHAPE, **vocab))
    backbone = load_backbone((model, byte_tokenizer))
    assert backbone.max_positions == 48
    long = [("a joy from start to finish " * 20, 1), ("awful", 0)]
    with pytest.warns(CuecraftWarning, match="1 of 2 texts were cut"):
        context = backbone.context(make_examples(long), make_task("{text}{prompt}{mask}"))
    found = backbone.class_logits(context, HardPrompt((300, 301)))
    columns = [words[0][0] for words in context.renderer.label_ids]
    for row, piece in enumerate(context.pieces):
        ids = torch.tensor([[*piece.before, 300, 301, *piece.after]])
        assert ids.shape[1] <= 48
        assert torch.allclose(found[row], model(ids).logits[0, -1, columns], atol=1e-4)
