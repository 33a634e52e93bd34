"""Tiny models written as GGUF files, as llama.cpp's `convert_hf_to_gguf.py` writes them."""

import json

import gguf
import numpy as np
import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
    Starcoder2Config,
)
from transformers.models.auto import AutoModelForCausalLM

#: A sentencepiece vocabulary, as Gemma's, of letters that never merge.
LETTERS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz.,'"]
EPS = 2.0**-18  # of which float32, as GGUF has it, loses nothing
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
}
RMS = SHAPE | {"rms_norm_eps": EPS}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
#: Each with values that differ from what transformers takes where a file says nothing.
MODELS = {
    "llama": (LlamaConfig, RMS | {"rope_theta": 3000.0}),
    "llama-3": (LlamaConfig, RMS | {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, RMS | {"rope_theta": 1e6, "tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, RMS | {"rope_theta": 1e6, "head_dim": 32}),
    "gemma2": (Gemma2Config, RMS | {"head_dim": 16, "sliding_window": 64, "attn_logit_softcapping": 20.0}),
    "gemma3": (Gemma3TextConfig, RMS | {"num_hidden_layers": 6, "head_dim": 16, "sliding_window": 64}),
    "phi3": (Phi3Config, RMS | {"rope_parameters": PARTIAL | {"partial_rotary_factor": 0.5}, "sliding_window": 96}),
    "gpt2": (GPT2Config, {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "layer_norm_epsilon": EPS}),
    "starcoder2": (Starcoder2Config, SHAPE | {"rope_theta": 1e5, "norm_epsilon": EPS, "sliding_window": None}),
    "stablelm": (
        StableLmConfig,
        SHAPE | {"layer_norm_eps": EPS, "rope_parameters": PARTIAL | {"partial_rotary_factor": 0.5}},
    ),
}


def tiny(kind, tokenizer, **changes):
    """Return a model with random weights, norms included."""
    config, values = MODELS[kind]
    special = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(config(**(values | special | changes)))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.25
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return model.eval()


def write_gguf(path, model, tokenizer, quantised=None, change=None, without=(), **split):
    """Write a model and its tokenizer.

    Args:
        path: of the file.
        model: of transformers.
        tokenizer: byte-level BPE, or `LETTERS`.
        quantised: ggml's type of the matrices; None: float32.
        change: called with the writer before it writes.
        without: names of tensors that are left out.
        split: of `GGUFWriter`, such as `split_max_tensors`.
    """
    kind = model.config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(path, kind, **split)
    _write_shape(writer, model.config)
    _write_tokenizer(writer, tokenizer)
    for name, weights in tensors(kind, model).items():
        if name in without:
            continue
        if quantised is None or weights.ndim < 2:
            writer.add_tensor(name, weights)
        else:
            writer.add_tensor(name, gguf.quants.quantize(weights, quantised), raw_dtype=quantised)
    if change:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(kind, model):
    """Return a model's weights under GGUF's names and in its layout."""
    config = model.config
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind), config.num_hidden_layers
    )
    found = {}
    for own, tensor in model.state_dict().items():
        if own == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        if kind == "llama" and own.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in own else config.num_key_value_heads
            rows, columns = values.shape
            values = values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        if kind.startswith("gemma") and own.endswith("norm.weight"):
            values = values + 1
        if kind == "gpt2" and own.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            values = values.T
        found[names.get_name(own, (".weight", ".bias"))] = np.ascontiguousarray(values)
    if getattr(config, "rope_parameters", {}).get("rope_type") == "llama3":
        found["rope_freqs.weight"] = _factors(model)
    return found


def _factors(model):
    """By what Llama 3 divides the frequencies of its rotations, as the model itself computed them."""
    base = model.config.rope_parameters["rope_theta"]
    scaled = model.model.rotary_emb.inv_freq.double().numpy()
    plain = 1 / base ** (np.arange(len(scaled)) / len(scaled))
    return (plain / scaled).astype(np.float32)


def _write_shape(writer, config):
    heads = config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", 4 * config.hidden_size))
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", heads))
    for name in ("rms_norm_eps", "layer_norm_epsilon", "norm_epsilon", "layer_norm_eps"):
        if hasattr(config, name):
            (writer.add_layer_norm_rms_eps if "rms" in name else writer.add_layer_norm_eps)(getattr(config, name))
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = getattr(config, "rope_parameters", None)
    if rope:
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
        if not config.model_type.startswith(("gemma", "qwen")):
            writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1)))
    if getattr(config, "head_dim", None):
        writer.add_key_length(head)
        writer.add_value_length(head)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _write_tokenizer(writer, tokenizer):
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for message in messages %}{{ message.content }}{% endfor %}")
    if tokenizer is LETTERS:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(LETTERS)
        writer.add_token_scores([0.0] * len(LETTERS))
        writer.add_token_types([gguf.TokenType.CONTROL if letter[0] == "<" else 1 for letter in LETTERS])
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(1)
        writer.add_unk_token_id(3)
        writer.add_pad_token_id(0)
        return
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    special = set(tokenizer.all_special_tokens)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
