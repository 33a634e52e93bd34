"""Tiny models with random weights of the architectures that docs/support.md names."""

from dataclasses import dataclass
from typing import Any

import transformers
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from conftest import lively

POSITIONS = 64
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
}
SHARED_KEYS = SHAPE | {"num_key_value_heads": 2}
MODERNBERT_IDS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
DEBERTA = {
    "relative_attention": True,
    "position_buckets": 16,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
}


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Args:
        title: its name in the documentation.
        config: of transformers.
        shape: the configuration's values, small.
        is_encoder: whether it reads in both directions, unless its configuration says otherwise.
    """

    title: str
    config: type
    shape: dict[str, Any]
    is_encoder: bool = False


GPT2_SHAPE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
DISTILBERT_SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": POSITIONS}
OPT_SHAPE = {name: value for name, value in SHAPE.items() if name != "intermediate_size"}
WINDOWS = {"local_attention": POSITIONS, "global_attn_every_n_layers": 2}
GEMMA_LAYERS = {"sliding_window": POSITIONS, "layer_types": ["sliding_attention", "full_attention"]}

ARCHITECTURES = {
    "bert": Architecture("BERT", BertConfig, SHAPE, is_encoder=True),
    "roberta": Architecture("RoBERTa", RobertaConfig, SHAPE, is_encoder=True),
    "electra": Architecture("ELECTRA", ElectraConfig, SHAPE | {"embedding_size": 16}, is_encoder=True),
    "distilbert": Architecture("DistilBERT", DistilBertConfig, DISTILBERT_SHAPE, is_encoder=True),
    "albert": Architecture("ALBERT", AlbertConfig, SHAPE | {"embedding_size": 16}, is_encoder=True),
    "modernbert": Architecture("ModernBERT", ModernBertConfig, SHAPE | MODERNBERT_IDS | WINDOWS, is_encoder=True),
    "deberta-v2": Architecture("DeBERTa-v2, -v3", DebertaV2Config, SHAPE | DEBERTA, is_encoder=True),
    "gpt2": Architecture("GPT-2", GPT2Config, GPT2_SHAPE),
    "llama": Architecture("Llama", LlamaConfig, SHARED_KEYS),
    "qwen2": Architecture("Qwen2", Qwen2Config, SHARED_KEYS),
    "qwen3": Architecture("Qwen3", Qwen3Config, SHARED_KEYS | {"head_dim": 8}),
    "gemma3": Architecture("Gemma 3", Gemma3TextConfig, SHARED_KEYS | {"head_dim": 8} | GEMMA_LAYERS),
    "opt": Architecture("OPT", OPTConfig, OPT_SHAPE | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
}
CLASSES = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM, "sequence": AutoModel}
_HAVE = {
    "causal": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    "masked": transformers.MODEL_FOR_MASKED_LM_MAPPING,
    "sequence": transformers.MODEL_MAPPING,
}


def model_class(name, head):
    """Return transformers' class of an architecture for a head, or None."""
    return _HAVE[head].get(ARCHITECTURES[name].config, None)


def tiny_model(name, head, tokenizer, **changes):
    """Return a model with random weights; an encoder as causal model is told to be a decoder."""
    architecture = ARCHITECTURES[name]
    values = architecture.shape | {"vocab_size": len(tokenizer), "pad_token_id": 0}
    if not architecture.is_encoder:
        values |= {"bos_token_id": 1, "eos_token_id": 2}
    elif head == "causal":
        values |= {"is_decoder": True}
    return lively(CLASSES[head].from_config(architecture.config(**values | changes)))
