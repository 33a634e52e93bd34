"""PEFT folders, out and in; the oracle is PEFT itself: the same logits, and the same bits after a round trip."""

import json
import re
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from conftest import LABELS, lively, make_causal, make_examples, make_task
from cuecraft.artifact import (
    Artifact,
    Calibration,
    DeepCue,
    HardPrompt,
    PrefixPrompt,
    Sharing,
    SoftPrompt,
    StoredWeights,
    TaskPart,
    load_artifact,
)
from cuecraft.backbone import ClassHead, load_backbone
from cuecraft.backbone.weights import FullSpec
from cuecraft.core.errors import ArtifactError, CuecraftWarning
from cuecraft.export import export_peft, import_peft

peft = pytest.importorskip("peft")

FIRST = "{prompt}{text} it was{mask}"
FAMILIES = ("llama", "gpt2", "qwen2", "opt")


def make_model(tokenizer, kind):
    if kind != "opt":
        return make_causal(tokenizer, kind)
    shape = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return lively(
        OPTForCausalLM(
            OPTConfig(
                **shape, **special, vocab_size=len(tokenizer), max_position_embeddings=128, word_embed_proj_dim=32
            )
        )
    )


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request, byte_tokenizer):
    return load_backbone((make_model(byte_tokenizer, request.param), byte_tokenizer))


def random_prompt(backbone, kind, length=5, seed=3):
    generator = torch.Generator().manual_seed(seed)
    if kind == "hard":
        return HardPrompt(tuple(torch.randint(50, 300, (length,), generator=generator).tolist()))
    if kind == "soft":
        return SoftPrompt(torch.randn(length, backbone.hidden_size, generator=generator))
    states = torch.randn(backbone.states_shape(length), generator=generator)
    if kind == "deep":
        return DeepCue(HardPrompt((60, 61)), torch.zeros(backbone.offsets_shape(2)))
    return PrefixPrompt(HardPrompt(()) if kind == "prefix" else HardPrompt((60,)), states)


def make_artifact(backbone, prompt, template=FIRST, sharing=None):
    return Artifact.create(
        prompt,
        Calibration((0.5, -0.25), 1.5),
        make_task(template),
        backbone,
        method="prompt-tuning",
        method_options={"epochs": 2},
        seed=4,
        metrics={"dev_accuracy": 0.5},
        data={},
        trace=[{"phase": "tune", "step": 0, "train_loss": 0.1}],
        sharing=sharing,
    )


@torch.no_grad()
def peft_logits(model, context):
    """A plain pass of the PEFT model over each text; label-word columns at the last position."""
    columns = [words[0][0] for words in context.renderer.label_ids]
    rows = [model(input_ids=torch.tensor([piece.after])).logits[0, -1, columns] for piece in context.pieces]
    return torch.stack(rows)


@torch.no_grad()
def own_logits(backbone, prompt):
    context = backbone.context(make_examples(), make_task(FIRST))
    return context, backbone.class_logits(context, prompt)


@pytest.mark.parametrize("kind", ["hard", "soft", "prefix"])
def test_the_exported_folder_answers_alike_in_peft_and_comes_back_with_the_same_bits(
    backbone, kind, byte_tokenizer, tmp_path
):
    artifact = make_artifact(backbone, random_prompt(backbone, kind))
    export_peft(artifact, backbone, tmp_path / "peft")
    context, expected = own_logits(backbone, artifact.prompt)
    assert len({len(piece.after) for piece in context.pieces}) > 3

    base = make_model(byte_tokenizer, backbone.model.config.model_type)
    found = peft_logits(peft.PeftModel.from_pretrained(base, tmp_path / "peft"), context)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (expected - own_logits(backbone, HardPrompt((7,)))[1]).abs().max() > 0.1  # the prompt does matter

    again = import_peft(tmp_path / "peft", backbone)
    assert artifact.save(tmp_path / "one") == again.save(tmp_path / "two")
    assert (tmp_path / "one" / "prompt.safetensors").read_bytes() == (
        tmp_path / "two" / "prompt.safetensors"
    ).read_bytes()
    assert again.calibration == artifact.calibration
    assert again.task == artifact.task


def test_a_prompt_that_tasks_share_comes_back_whole(causal, tmp_path):
    shared = torch.randn(3, causal.hidden_size)
    part = TaskPart(torch.ones(3, 1), torch.ones(1, causal.hidden_size), torch.zeros(1, causal.hidden_size))
    artifact = make_artifact(causal, SoftPrompt(part.of(shared)), sharing=Sharing(shared, part, "a" * 64))
    assert artifact.manifest.prompt.shared_sha256
    export_peft(artifact, causal, tmp_path / "peft")
    import_peft(tmp_path / "peft", causal).save(tmp_path / "artifact")
    assert torch.equal(load_artifact(tmp_path / "artifact").prompt.embeddings, 2 * shared)


def adapter(kind, byte_tokenizer, family, folder, **options):
    """An adapter that PEFT itself makes, with random weights large enough to matter."""
    configs = {
        "prompt-tuning": peft.PromptTuningConfig,
        "p-tuning": peft.PromptEncoderConfig,
        "prefix-tuning": peft.PrefixTuningConfig,
    }
    torch.manual_seed(5)
    options = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4} | options
    model = peft.get_peft_model(make_model(byte_tokenizer, family), configs[kind](**options))
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(folder)
    spoilt(folder, base_model_name_or_path=f"{type(model.base_model).__name__} in memory")
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("prompt-tuning", {}),
        ("p-tuning", {"encoder_hidden_size": 16}),
        ("p-tuning", {"encoder_hidden_size": 16, "encoder_reparameterization_type": "LSTM"}),
        ("prefix-tuning", {}),
        ("prefix-tuning", {"prefix_projection": True, "encoder_hidden_size": 16}),
    ],
)
def test_an_adapter_of_peft_answers_alike_here(kind, options, family, byte_tokenizer, tmp_path):
    model = adapter(kind, byte_tokenizer, family, tmp_path / "peft", **options)
    own = load_backbone((make_model(byte_tokenizer, family), byte_tokenizer))
    artifact = import_peft(tmp_path / "peft", own, make_task(FIRST))
    context, found = own_logits(own, artifact.prompt)
    torch.testing.assert_close(found, peft_logits(model, context), atol=1e-5, rtol=1e-5)
    assert artifact.manifest.method == kind
    assert artifact.calibration == Calibration.none(2)
    artifact.save(tmp_path / "artifact")
    assert len(load_artifact(tmp_path / "artifact").prompt) == 4


def test_a_task_can_be_given_in_words(causal, byte_tokenizer, tmp_path):
    adapter("prompt-tuning", byte_tokenizer, "llama", tmp_path)
    words = {1: ["great", "good"], 0: "bad"}
    artifact = import_peft(tmp_path, causal, template=FIRST, label_words=words)
    assert artifact.classes == (1, 0)
    assert artifact.task.verbalizer.words == (("great", "good"), ("bad",))
    by_name = import_peft(tmp_path, causal, template=FIRST, classes=["cold", "warm"])
    assert by_name.task.verbalizer.words == (("cold",), ("warm",))
    assert by_name.task.template.source == FIRST


def test_words_of_ones_own_replace_those_beside_the_adapter(causal, tmp_path):
    export_peft(make_artifact(causal, random_prompt(causal, "soft")), causal, tmp_path / "peft")
    artifact = import_peft(tmp_path / "peft", causal, label_words={"negative": "awful", "positive": "great"})
    assert artifact.task.template.source == FIRST
    assert artifact.task.verbalizer.words == (("awful",), ("great",))
    assert artifact.calibration == Calibration.none(2)  # it was fitted to other words


def test_an_adapter_trained_on_since_loses_its_calibration_with_a_warning(causal, tmp_path):
    export_peft(make_artifact(causal, random_prompt(causal, "hard")), causal, tmp_path / "peft")
    path = tmp_path / "peft" / "adapter_model.safetensors"
    moved = load_file(path)["prompt_embeddings"] + 1
    save_file({"prompt_embeddings": moved}, path)
    with pytest.warns(CuecraftWarning, match="changed after cuecraft exported it"):
        artifact = import_peft(tmp_path / "peft", causal)
    assert torch.equal(artifact.prompt.embeddings, moved)
    assert artifact.calibration == Calibration.none(2)
    assert artifact.task.template.source == FIRST


def spoilt(folder, **changes):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | changes))


def missing_config(folder):
    (folder / "adapter_config.json").unlink()


def damaged_config(folder):
    (folder / "adapter_config.json").write_text("{")


def listed_config(folder):
    (folder / "adapter_config.json").write_text("[]")


def truncated(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def pickled(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def missing(folder):
    (folder / "adapter_model.safetensors").unlink()


def other_key(folder):
    save_file({"lora": torch.zeros(4, 32)}, folder / "adapter_model.safetensors")


def more_weights(folder):
    tensors = {"prompt_embeddings": torch.zeros(4, 32), "head.weight": torch.zeros(2, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")


def whole_numbers(folder):
    save_file({"prompt_embeddings": torch.zeros(4, 32, dtype=torch.long)}, folder / "adapter_model.safetensors")


def not_finite(folder):
    save_file({"prompt_embeddings": torch.full((4, 32), torch.nan)}, folder / "adapter_model.safetensors")


def narrow(folder):
    save_file({"prompt_embeddings": torch.zeros(4, 16)}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing_config, "no PEFT adapter here .* check the path"),
        (damaged_config, "adapter_config.json: is damaged"),
        (listed_config, "is no PEFT configuration"),
        (truncated, "adapter_model.safetensors: is damaged"),
        (pickled, "is a pickle, which can run code when read"),
        (missing, "adapter_model.safetensors is missing"),
        (other_key, "has no 'prompt_embeddings'"),
        (more_weights, "holds 'head.weight' besides a prompt"),
        (whole_numbers, "int64, but adapter_config.json says 4 virtual tokens"),
        (not_finite, "holds NaN or infinity"),
        (narrow, "its vectors are 16 wide, but .* takes 32"),
        (lambda folder: spoilt(folder, num_virtual_tokens=9), "says 9 virtual tokens"),
        (lambda folder: spoilt(folder, num_transformer_submodules=2), "encoder-decoder"),
        (lambda folder: spoilt(folder, task_type="SEQ_CLS"), "task type SEQ_CLS; only CAUSAL_LM"),
        (lambda folder: spoilt(folder, peft_type="LORA"), "type LORA; only PROMPT_TUNING, P_TUNING, PREFIX_TUNING"),
        (lambda folder: spoilt(folder, peft_type="IA3"), "type IA3"),
        (lambda folder: spoilt(folder, peft_type="MULTITASK_PROMPT_TUNING"), "type MULTITASK_PROMPT_TUNING"),
        (lambda folder: (folder / "cuecraft.json").write_text("{}"), "cuecraft.json: is damaged or of a newer"),
    ],
)
def test_a_folder_that_cannot_be_imported_is_refused_in_one_line(spoil, message, causal, byte_tokenizer, tmp_path):
    adapter("prompt-tuning", byte_tokenizer, "llama", tmp_path)
    spoil(tmp_path)
    with pytest.raises(ArtifactError, match=message) as caught:
        import_peft(tmp_path, causal, make_task(FIRST))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "shape",
    [
        {"num_layers": 3},  # another depth
        {"num_attention_heads": 1},  # the same numbers, cut into other heads
        {"token_dim": 8},
    ],
)
def test_a_prefix_of_another_model_is_refused(shape, causal, byte_tokenizer, tmp_path):
    adapter("prefix-tuning", byte_tokenizer, "llama", tmp_path)
    import_peft(tmp_path, causal, make_task(FIRST))
    spoilt(tmp_path, **shape)
    with pytest.raises(ArtifactError, match="it was trained on another model"):
        import_peft(tmp_path, causal, make_task(FIRST))


def test_a_prefix_for_heads_that_do_not_share_is_refused(causal, byte_tokenizer, tmp_path):
    adapter("prefix-tuning", byte_tokenizer, "gpt2", tmp_path)  # four heads of keys, where Llama has two
    with pytest.raises(ArtifactError, match=r"= \(2, 4, 32\), but .* has \(2, 2, 16\)"):
        import_peft(tmp_path, causal, make_task(FIRST))


@pytest.mark.parametrize(
    ("base", "fits"),
    [
        ("someone/else", False),
        ("{folder}-of-another", False),
        ("demo:smollm2-135m", False),
        ("{name}", True),
        ("{folder}", True),
        ("{folder}/", True),
        ("{parent}/./{name}", True),
        ("{copy}", True),  # the same files in another place
    ],
)
def test_an_adapter_is_taken_for_the_base_model_that_it_names(
    base, fits, causal_folder, byte_tokenizer, tmp_path, monkeypatch
):
    adapter("prompt-tuning", byte_tokenizer, "llama", tmp_path / "peft")
    shutil.copytree(causal_folder, tmp_path / "copy")
    places = {"folder": causal_folder, "parent": causal_folder.parent, "name": causal_folder.name}
    named = base.format(**places, copy=tmp_path / "copy")
    spoilt(tmp_path / "peft", base_model_name_or_path=named)
    monkeypatch.chdir(causal_folder.parent)
    backbone = load_backbone(str(causal_folder))
    if fits:
        artifact = import_peft(tmp_path / "peft", backbone, make_task(FIRST))
        artifact.save(tmp_path / "artifact")
        assert "Warning" not in (tmp_path / "artifact" / "README.md").read_text()
        return
    with pytest.raises(ArtifactError, match=rf"was trained on {re.escape(named)}, and not .*any_base="):
        import_peft(tmp_path / "peft", backbone, make_task(FIRST))
    with pytest.warns(CuecraftWarning, match="its answers mean nothing"):
        artifact = import_peft(tmp_path / "peft", backbone, make_task(FIRST), any_base=True)
    artifact.save(tmp_path / "artifact")
    load_artifact(tmp_path / "artifact").save(tmp_path / "again")
    for folder in ("artifact", "again"):
        assert f"Warning: the adapter was trained on {named}, and not" in (tmp_path / folder / "README.md").read_text()


@pytest.mark.parametrize("base", [None, "", " "])
def test_an_adapter_without_the_name_of_a_base_model_is_taken_with_a_warning(base, causal, byte_tokenizer, tmp_path):
    adapter("prompt-tuning", byte_tokenizer, "llama", tmp_path)
    spoilt(tmp_path, base_model_name_or_path=base)
    with pytest.warns(CuecraftWarning, match="names no base model"):
        import_peft(tmp_path, causal, make_task(FIRST))
    spoilt(tmp_path, base_model_name_or_path=7)
    with pytest.raises(ArtifactError, match=r"adapter_config.json: the name of its base model is no text"):
        import_peft(tmp_path, causal, make_task(FIRST))


def test_a_model_of_the_hub_has_its_name_its_place_and_its_revision(byte_tokenizer, tmp_path):
    adapter("prompt-tuning", byte_tokenizer, "llama", tmp_path)
    model = make_causal(byte_tokenizer)
    model.config.name_or_path = "Org/Tiny"
    model.config._commit_hash = "0123456789abcdef"
    backbone = load_backbone((model, byte_tokenizer))
    cached = "/else/hub/models--Org--Tiny/snapshots/0123456789abcdef"
    for base, revision in (
        ("Org/Tiny", None),
        ("org/tiny/", "main"),
        (cached, None),
        ("Org/Tiny", "0123456789abcdef"),
    ):
        spoilt(tmp_path, base_model_name_or_path=base, revision=revision)
        import_peft(tmp_path, backbone, make_task(FIRST))
    for base, revision in (("Org/Tiny", "v1.1"), ("Org/Tiny", "fedcba9876543210"), ("Other/Tiny", None)):
        spoilt(tmp_path, base_model_name_or_path=base, revision=revision)
        with pytest.raises(ArtifactError, match="give the model that it was trained on"):
            import_peft(tmp_path, backbone, make_task(FIRST))


def test_an_export_with_other_words_still_has_to_be_of_the_same_weights(causal, byte_tokenizer, tmp_path):
    export_peft(make_artifact(causal, random_prompt(causal, "soft")), causal, tmp_path / "peft")
    model = make_causal(byte_tokenizer)
    model.model.norm.weight.data[0] += 1
    other = load_backbone((model, byte_tokenizer))
    assert other.name == causal.name
    with pytest.raises(ArtifactError, match="of other weights than"):
        import_peft(tmp_path / "peft", other, make_task(FIRST))


@pytest.fixture(scope="module")
def bos_backbone(byte_tokenizer):
    raw = byte_tokenizer.backend_tokenizer.from_str(byte_tokenizer.backend_tokenizer.to_str())
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    return load_backbone((make_causal(tokenizer), tokenizer))


def test_peft_puts_its_tokens_first_and_so_the_template_has_to(causal, bos_backbone, byte_tokenizer, tmp_path):
    adapter("prompt-tuning", byte_tokenizer, "llama", tmp_path / "peft")
    behind = "{text}{prompt: it was}{mask}"
    for template in (behind, "Review: {prompt}{text}{mask}"):
        with pytest.raises(ArtifactError, match="the prompt stands after other text, and PEFT puts virtual tokens"):
            import_peft(tmp_path / "peft", causal, make_task(template))
    with pytest.raises(ArtifactError, match="puts <s> before every text"):
        import_peft(tmp_path / "peft", bos_backbone, make_task(FIRST))
    with pytest.raises(ArtifactError, match="puts <s> before every text"):
        export_peft(make_artifact(bos_backbone, HardPrompt((60,))), bos_backbone, tmp_path / "out")
    with pytest.raises(ArtifactError, match="the prompt stands after other text"):
        export_peft(make_artifact(causal, HardPrompt((60,)), behind), causal, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_missing_or_doubled_in_a_task_is_said(causal, byte_tokenizer, tmp_path):
    adapter("prompt-tuning", byte_tokenizer, "llama", tmp_path)
    with pytest.raises(ArtifactError, match="PEFT keeps no template"):
        import_peft(tmp_path, causal, classes=LABELS)
    with pytest.raises(ArtifactError, match="PEFT keeps no classes"):
        import_peft(tmp_path, causal, template=FIRST)
    with pytest.raises(ArtifactError, match="give one of them"):
        import_peft(tmp_path, causal, make_task(FIRST), classes=LABELS)


def test_only_causal_models_can_have_it(masked, byte_tokenizer, tmp_path):
    adapter("prompt-tuning", byte_tokenizer, "llama", tmp_path)
    with pytest.raises(ArtifactError, match=r"is for causal language models, but .* is a masked one"):
        import_peft(tmp_path, masked, make_task("{prompt}{text} it was{mask}."))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a, b: replace(a, prompt=random_prompt(b, "deep")), "it is a deep cue"),
        (lambda a, b: replace(a, prompt=random_prompt(b, "prefix+word")), "words stand behind its prefix"),
        (lambda a, b: replace(a, prompt=HardPrompt(())), "it is empty"),
        (
            lambda a, b: replace(a, prompt=a.prompt.with_head(ClassHead(torch.zeros(2, 32), torch.zeros(2)))),
            "answers through a class head",
        ),
        (lambda a, b: replace(a, weights=StoredWeights(FullSpec(), {})), "stands on tuned weights"),
    ],
)
def test_what_peft_has_no_place_for_is_refused(change, reason, causal, tmp_path):
    artifact = change(make_artifact(causal, random_prompt(causal, "soft")), causal)
    with pytest.raises(ArtifactError, match=f"cannot be exported to PEFT: .*{reason}"):
        export_peft(artifact, causal, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_masked_prompt_or_another_backbone_is_refused(masked, causal, byte_tokenizer, tmp_path):
    of_masked = make_artifact(masked, HardPrompt((60,)), "{prompt}{text} it was{mask}.")
    with pytest.raises(ArtifactError, match="it is for a masked backbone"):
        export_peft(of_masked, masked, tmp_path / "out")
    other = load_backbone((make_causal(byte_tokenizer, "gpt2"), byte_tokenizer))
    with pytest.raises(ArtifactError, match="use the same weights and tokenizer"):
        export_peft(make_artifact(causal, HardPrompt((60,))), other, tmp_path / "out")
    export_peft(make_artifact(causal, HardPrompt((60,))), causal, tmp_path / "out")
    with pytest.raises(ArtifactError, match="use the same weights and tokenizer"):
        import_peft(tmp_path / "out", other)


def test_without_peft_the_extra_is_named_but_import_works(causal, byte_tokenizer, tmp_path, monkeypatch):
    export_peft(make_artifact(causal, HardPrompt((60, 61))), causal, tmp_path / "kept")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ArtifactError, match=r"pip install 'cuecraft\[peft\]'"):
        export_peft(make_artifact(causal, HardPrompt((60,))), causal, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert import_peft(tmp_path / "kept", causal).prompt.token_ids == (60, 61)


def test_only_an_earlier_export_is_replaced_and_a_failed_one_leaves_nothing(
    causal, byte_tokenizer, tmp_path, monkeypatch
):
    target = tmp_path / "out"
    for ids in ((60,), (61, 62)):
        export_peft(make_artifact(causal, HardPrompt(ids)), causal, target)
    assert import_peft(target, causal).prompt.token_ids == (61, 62)

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("cuecraft.export.peft_export.save_file", fail)
    with pytest.raises(ArtifactError, match=r"cannot write the folder \(disk full\)"):
        export_peft(make_artifact(causal, HardPrompt((63,))), causal, target)
    assert import_peft(target, causal).prompt.token_ids == (61, 62)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    foreign = tmp_path / "foreign"
    adapter("prompt-tuning", byte_tokenizer, "llama", foreign)
    before = sorted(foreign.iterdir())
    for folder in (foreign, foreign / "adapter_config.json"):
        with pytest.raises(ArtifactError, match="exists and was not exported by cuecraft"):
            export_peft(make_artifact(causal, HardPrompt((60,))), causal, folder)
    assert sorted(foreign.iterdir()) == before
