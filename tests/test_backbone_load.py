"""Loading: what is refused, what decides the hash, where inputs end."""

import copy
import json
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MistralConfig, MistralForCausalLM

from conftest import make_causal, make_examples, make_masked, make_task
from cuecraft import PromptClassifier
from cuecraft.artifact import HardPrompt
from cuecraft.backbone import load_backbone
from cuecraft.backbone.checkpoint import explained
from cuecraft.backbone.load import _load
from cuecraft.core.errors import BackboneError, CuecraftWarning

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


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def changed_config(**values):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def changed_weights(change):
    def spoil(folder):
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})

    return spoil


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content.encode())


def only(**files):
    def change(folder):
        for path in folder.iterdir():
            path.unlink()
        for name, content in files.items():
            (folder / name.replace("_json", ".json").replace("_gguf", ".gguf")).write_text(content)

    return change


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()


def indexed(**index):
    def spoil(folder):
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def pooled(content):
    def spoil(folder):
        changed_config(architectures=None)(folder)
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(content)

    return spoil


def renamed(*names):
    def spoil(folder):
        for name in names:
            (folder / name).write_bytes((folder / "model.safetensors").read_bytes())
        (folder / "model.safetensors").unlink()

    return spoil


def nan_in(key):
    return changed_weights(lambda own: own | {key: torch.full_like(own[key], torch.nan)})


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


Q_PROJ = "model.layers.0.self_attn.q_proj"
OWN_CODE = {"auto_map": {"AutoConfig": "own.Config"}}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (pickled, "weights in pytorch_model.bin; only safetensors are read"),
        (written("model.safetensors", POINTER), "model.safetensors: is a pointer of Git LFS"),
        (written("tokenizer.json", POINTER), "tokenizer.json: is a pointer of Git LFS"),
        (written("config.json", POINTER), "config.json: is a pointer of Git LFS"),
        (changed_config(model_type="own", **OWN_CODE), "needs code of its own repository, which is never run here"),
        (changed_config(model_type="own"), "names the kind 'own', which transformers does not know"),
        (written("config.json", "{}"), "has no model_type"),
        (written("config.json", '{"a":'), "config.json: cannot be read as JSON"),
        (written("config.json", "[]"), "holds no JSON object"),
        (changed_config(intermediate_size=48), r"down_proj.* are \[32, 64\], but config.json makes them \[32, 48\]"),
        (
            indexed(weight_map={"a": "../outside.safetensors"}, metadata={}),
            "'a' is in '../outside.* no file of the folder",
        ),
        (indexed(weight_map={"a": "/outside.safetensors"}, metadata={}), "which is no file of the folder"),
        (indexed(weight_map={"a": ["x"]}, metadata={}), "which is no file of the folder"),
        (indexed(weight_map={}, metadata={}), "index.json: names no weights"),
        (indexed(weight_map={"a": "model-1.safetensors"}), "index.json: names no weights, or has no metadata"),
        (pooled("junk"), "1_Pooling/config.json: cannot be read as JSON"),
        (pooled("[]"), "1_Pooling/config.json: holds no JSON object"),
        (changed_config(architectures=3), "architectures of its config.json is 3"),
        (changed_config(architectures=[3]), r"architectures of its config.json is \[3\]"),
        (changed_config(architectures="LlamaForCausalLM"), "and no list of names"),
        (changed_config(model_type=["a"]), "config.json: model_type is .* and no name"),
        (changed_config(model_type={}), "config.json: model_type is .* and no name"),
        (nan_in("model.layers.1.mlp.down_proj.weight"), "answers with NaN"),
        (changed_config(hidden_act="nope"), r"by the values in its config.json \(KeyError: 'nope'\)"),
        (changed_config(num_attention_heads=0), r"by the values in its config.json \(ZeroDivisionError"),
        (changed_config(num_hidden_layers="two"), "values in its config.json"),
        (written("tokenizer_config.json", "[1]"), "tokenizer_config.json: holds no JSON object"),
        (written("tokenizer_config.json", ""), "tokenizer_config.json: cannot be read as JSON"),
        (written("tokenizer_config.json", '{"tokenizer_class": 3}'), "by the values in its tokenizer's files"),
        (written("adapter_config.json", '{"peft_type": "LORA"}'), "adapter_config.json, but not the adapter's weights"),
        (renamed("model.fp16.safetensors"), "weights in model.fp16.safetensors, but model.safetensors is read"),
        (renamed("weights.safetensors"), "weights in weights.safetensors, but model.safetensors is read; rename"),
        (renamed("model-00001-of-00002.safetensors"), "in several files .*, but no model.safetensors.index.json"),
        (renamed("tiny.gguf"), r"has its weights in GGUF; give the path of that file \(.*/tiny.gguf\)"),
        (changed_config(num_hidden_layers=1), r"has weights '.*layers\.1\..*' \(9 such\), for which its config.json"),
        (changed_weights(lambda own: own | {f"{Q_PROJ}.bias": torch.ones(32)}), r"has weights '.*q_proj\.bias' \(1"),
        (changed_config(num_hidden_layers=3), r"'.*layers\.2\..*' \(9 missing\), which its config.json asks for"),
        (changed_config(model_type="gpt2"), "missing\\), which its config.json asks for; they are of two models"),
        (changed_weights(lambda own: {f"module.{key}": value for key, value in own.items()}), "begin with 'module.'"),
        (changed_weights(lambda own: own | {f"{Q_PROJ}.weight": own[f"{Q_PROJ}.weight"].char()}), r"integers \(I8\)"),
        (changed_config(quantization_config={"quant_method": "zz"}), "names no kind .*'zz'"),
        (changed_config(quantization_config={"bits": 4}), "names no kind .*None"),
        (
            only(adapter_config_json='{"base_model_name_or_path": "org/base"}'),
            r"adapter of PEFT.*base model \(org/base",
        ),
        (only(manifest_json="{}"), "was written by cuecraft, and is no model"),
        (only(tiny_gguf="GGUF"), r"holds no config.json, but a GGUF file; give its path \(.*/tiny.gguf\)"),
        (only(), "config.json is missing"),
        (without_tokenizer, "holds no tokenizer; save one there"),
        (cut_short, "model.safetensors: is damaged or cut short"),
        (written("model.safetensors", ""), "model.safetensors: is damaged or cut short"),
        (
            indexed(weight_map={"a": "model-00001-of-00002.safetensors"}, metadata={}),
            "model-00001-of-00002.safetensors is missing",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (written("tokenizer.json", '{"x": 1}'), "tokenizer.json: is no tokenizer"),
    ],
)
def test_a_folder_that_holds_no_model_is_refused_with_what_is_wrong(spoil, says, folder):
    spoil(folder)
    with pytest.raises(BackboneError, match=says) as caught:
        load_backbone(str(folder))
    assert "\n" not in str(caught.value)
    assert "trust_remote_code" not in str(caught.value)


@pytest.mark.parametrize("head", ["causal", "sequence"])
def test_layers_that_a_configuration_leaves_out_are_missed_with_every_head(head, folder):
    changed_config(num_hidden_layers=1)(folder)
    with pytest.raises(BackboneError, match=r"layers\.1\."):
        load_backbone(folder, head)


def test_weights_that_no_head_needs_and_buffers_of_older_versions_are_passed_over(folder):
    spare = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.masked_bias": torch.ones(1),
        "model.position_ids": torch.arange(4)[None],
        "classifier.weight": torch.ones(2, 32),
        "vision.layers.7.q_proj.weight": torch.ones(2, 2),
    }
    changed_weights(lambda own: own | spare)(folder)
    for head in ("causal", "sequence"):
        assert load_backbone(folder, head).head_kind == head


def test_a_checkpoint_without_the_head_asked_for_is_refused_by_that(word_tokenizer, tmp_path):
    model = make_masked(word_tokenizer)
    model.bert.save_pretrained(tmp_path)
    word_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="so it has no masked head"):
        load_backbone(tmp_path, "masked")
    model.save_pretrained(tmp_path)
    assert load_backbone(tmp_path, "sequence").hidden_size == 32


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{folder}/tiny.gguf", "there is no such file; check the path"),
        ("{folder}/config.json", "is a file, but not GGUF; give the folder"),
        ("{folder}/nowhere", "there is no such folder"),
        ("~/nowhere", "there is no such folder"),
        ("", "the name of the model is empty"),
        ("a" * 5000, "a{80}: cannot be looked up .File name too long"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_without_asking_the_hub(name, says, causal_folder):
    with pytest.raises(BackboneError, match=says):
        load_backbone(name.format(folder=causal_folder))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Please pass the argument `trust_remote_code=True`", "needs code of its own repository"),
        ("Error no file named model.safetensors found", "has no safetensors weights"),
        ("We couldn't connect to 'https://huggingface.co'", "the Hub cannot be reached"),
        ("401 Client Error. Cannot access gated repo", "is not open to everyone"),
        ("x is not a valid model identifier listed on", "no such model on the Hub"),
        ("something\nnew", r"cannot load this model \(something new\)"),
    ],
)
def test_what_transformers_says_of_a_model_of_the_hub_is_said_in_our_words(said, meant):
    assert re.match(f".*{meant}", explained(OSError(said)))


def test_what_is_no_model_is_refused_in_one_line(byte_tokenizer):
    model = make_causal(byte_tokenizer)
    pipe = SimpleNamespace(model=model, tokenizer=byte_tokenizer)
    for given, says in (
        ((byte_tokenizer, model), "are swapped"),
        ((model,), "1 were given"),
        ((model, byte_tokenizer, 3), "3 were given"),
        ((model, None), "the second of the pair is None"),
        ((model, "gpt2"), "the second of the pair is of type str"),
        (("gpt2", "gpt2"), "the first of the pair is of type str"),
        (model, "comes with its tokenizer"),
        (byte_tokenizer, "a tokenizer alone"),
        (pipe, "is a pipeline"),
        (model.config, "of type LlamaConfig"),
        (type(model), "is the class LlamaForCausalLM"),
        (3, "of type int"),
        (None, "model is None"),
    ):
        with pytest.raises(BackboneError, match=says) as caught:
            load_backbone(given)
        assert len(str(caught.value)) < 120
        assert "\n" not in str(caught.value)
    assert load_backbone([model, byte_tokenizer]).name == "LlamaForCausalLM in memory"


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_a_model_in_memory_keeps_its_modes_and_answers_without_dropout(kind, byte_tokenizer, word_tokenizer):
    if kind == "causal":
        tokenizer, model = byte_tokenizer, make_causal(byte_tokenizer, "gpt2")  # with dropout
    else:
        tokenizer, model = word_tokenizer, make_masked(word_tokenizer)
    model.train()
    frozen = next(model.parameters()).requires_grad_(False)
    texts, labels = ["a joy", "a bore", "great", "awful"], ["good", "bad", "good", "bad"]
    head = None if kind != "sequence" else kind
    method = "linear-probe" if kind == "sequence" else "prompt-tuning"
    options = {} if kind == "sequence" else {"epochs": 1}
    fitted = PromptClassifier((model, tokenizer), method, head=head, method_options=options).fit(texts, labels)
    before = fitted.predict_proba(texts)
    assert all(module.training for module in model.modules())
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
    model.train()
    assert np.array_equal(fitted.predict_proba(texts), before)
    twin = PromptClassifier((model.eval(), tokenizer), method, head=head, method_options=options).fit(texts, labels)
    assert np.array_equal(twin.predict_proba(texts), before)
    # The weights are there once.
    own = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in fitted.backbone_.model.parameters()} <= own
    assert not any(p.requires_grad for p in fitted.backbone_.model.parameters())


@pytest.mark.parametrize("head", ["causal", "sequence"])
def test_a_model_in_memory_that_answers_with_nan_is_refused(head, byte_tokenizer):
    model = make_causal(byte_tokenizer)
    model.get_input_embeddings().weight.data.fill_(torch.nan)
    with pytest.raises(BackboneError, match=r"Llama\w+ in memory answers with NaN"):
        load_backbone((model, byte_tokenizer), head)


def test_a_model_in_memory_without_values_or_with_a_prompt_is_refused(byte_tokenizer):
    from peft import PromptTuningConfig, get_peft_model

    model = make_causal(byte_tokenizer)
    with pytest.raises(BackboneError, match="LlamaForCausalLM has weights without values"):
        load_backbone((copy.deepcopy(model).to("meta"), byte_tokenizer))
    prompted = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(BackboneError, match=r"holds a prompt of PEFT around its model; give .*get_base_model\(\)"):
        load_backbone((prompted, byte_tokenizer))


def test_a_compiled_model_is_the_model_that_was_compiled(byte_tokenizer):
    model = make_causal(byte_tokenizer)
    backbone = load_backbone((torch.compile(model), byte_tokenizer))
    assert backbone.name == "LlamaForCausalLM in memory"
    assert backbone.fingerprint() == load_backbone((model, byte_tokenizer)).fingerprint()


class Words:
    def pre_tokenize(self, text):
        text.split(lambda number, part: [part])


@pytest.mark.parametrize("hold", ["lock", "python"])
def test_a_tokenizer_that_cannot_be_copied_is_refused(hold, byte_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    if hold == "lock":
        tokenizer.lock = threading.Lock()
    else:
        tokenizer.backend_tokenizer.pre_tokenizer = PreTokenizer.custom(Words())
    with pytest.raises(BackboneError, match="in memory cannot be copied, which reading texts needs"):
        load_backbone((make_causal(byte_tokenizer), tokenizer))


def test_a_model_whose_modules_cannot_be_copied_is_frozen_with_a_warning(byte_tokenizer):
    model = make_causal(byte_tokenizer)
    model.lock = threading.Lock()
    with pytest.warns(CuecraftWarning, match=r"put into evaluation mode .* call train\(\)"):
        backbone = load_backbone((model, byte_tokenizer))
    assert backbone.model is model
    load_backbone((model, byte_tokenizer))  # nothing of it changes any more


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
