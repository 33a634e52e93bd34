"""Tiny backbones of many architectures, and prompts of random numbers for them."""

from functools import cache

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from architectures import ARCHITECTURES, tiny_model
from conftest import TEXTS, lively
from cuecraft.backbone import ClassHead, load_backbone

CAUSAL = ["llama", "gpt2", "qwen2", "opt", "gemma2"]
WITH_PAST = ["bert", "roberta", "electra"]  # encoders whose own forward takes keys and values
WITHOUT_PAST = ["distilbert", "modernbert"]
IDS = (300, 301, 302, 303)
WORDS = (60, 61, 62)  # of the encoders' smaller vocabulary
SHORT = TEXTS[:6]
MODELS = [("bert", "masked"), ("llama", "causal"), ("gpt2", "causal"), ("gemma2", "causal")]


def gemma2(tokenizer, **changes):
    vocabulary = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    heads = {"head_dim": 8, "num_key_value_heads": 2}
    return lively(Gemma2ForCausalLM(Gemma2Config(**(shape | vocabulary | heads | changes))))


def builder(byte_tokenizer, word_tokenizer):
    """Return what gives tiny backbones by architecture, head and number type; each is made once."""

    @cache
    def build(name, head="causal", dtype=torch.float32, **changes):
        is_encoder = name != "gemma2" and ARCHITECTURES[name].is_encoder
        tokenizer = word_tokenizer if is_encoder else byte_tokenizer
        model = gemma2(tokenizer, **changes) if name == "gemma2" else tiny_model(name, head, tokenizer, **changes)
        return load_backbone((model.to(dtype), tokenizer), head)

    return build


def random_states(backbone, length, seed=0):
    shape = backbone.states_shape(length)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(backbone.model.dtype) * 0.5


def random_head(backbone, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ClassHead(torch.randn(2, backbone.hidden_size, generator=generator), torch.randn(2, generator=generator))


def assert_close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    error = float((found.double() - expected.double()).abs().max())
    assert error <= tolerance * max(1.0, float(expected.abs().max())), error
