"""Tuned weights: LoRA against PEFT's own forward, full fine-tuning against plain torch, mixes, probes and soups."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from conftest import LABELS, TEXTS, make_causal, make_examples, make_task, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.artifact import CalibratedPrompt, Calibration, DeepCue, HardPrompt, SoftPrompt, load_artifact
from cuecraft.backbone import ClassHead, load_backbone
from cuecraft.backbone.weights import FullSpec, LoraSpec, TunedWeights, Twin, load_weights
from cuecraft.core.errors import ArtifactError, BackboneError, MethodError
from cuecraft.core.events import TrainStep
from cuecraft.methods import make_method
from cuecraft.methods.candidate import Candidate, fresh_logits
from cuecraft.methods.gradients import accumulate_gradients
from cuecraft.methods.problem import Selection, label_context, score
from cuecraft.methods.train.probe import SentenceEncoder
from cuecraft.methods.train.soup import average
from cuecraft.methods.train.weights import mix_lora
from oracles import plain_class_logits

TEXT, LABEL = [text for text, _ in TEXTS], [LABELS[label] for _, label in TEXTS]


def randomised(twin, seed=0):
    """Give every trained tensor of a twin random values."""
    generator = torch.Generator().manual_seed(seed)
    values = {n: torch.randn(t.shape, generator=generator) * 0.2 for n, t in twin.trained.items()}
    return TunedWeights(twin, values)


@torch.no_grad()
@pytest.mark.parametrize("template", ["{text}{prompt: it was}{mask}", "{prompt: it was}{text} this{mask}"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_lora_has_the_logits_of_peft(kind, template, byte_tokenizer):
    backbone = load_backbone((make_causal(byte_tokenizer, kind), byte_tokenizer))
    context = backbone.context(make_examples(), make_task(template))
    weights = randomised(Twin(backbone, LoraSpec(rank=3, alpha=5.0), seed=1))
    prompt = HardPrompt(context.renderer.prompt_ids)
    candidate = Candidate(prompt, Calibration.none(2), weights)
    found = candidate.logits(backbone, context)
    targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in weights.values})
    options = LoraConfig(r=3, lora_alpha=5.0, target_modules=targets, fan_in_fan_out=kind == "gpt2")
    peft = get_peft_model(copy.deepcopy(backbone.model), options).eval()
    own = dict(peft.get_base_model().named_parameters())
    for name, value in weights.values.items():
        own[name].copy_(value)
    plain = plain_class_logits(Stand(peft.get_base_model()), context, prompt.token_ids)
    assert torch.allclose(found.double(), plain, atol=2e-4)
    without = plain_class_logits(backbone, context, prompt.token_ids)
    assert (plain - without).abs().max() > 0.01
    assert torch.allclose(backbone.class_logits(context, prompt).double(), without, atol=2e-4)


class Stand:
    """A stand-in with another model, for the plain oracle."""

    def __init__(self, model):
        self.model = model


def test_full_fine_tuning_has_the_gradients_of_plain_torch(byte_tokenizer):
    backbone = load_backbone((make_causal(byte_tokenizer), byte_tokenizer))
    problem = tiny_problem(backbone)
    twin = Twin(backbone, FullSpec(), seed=0)
    prompt = HardPrompt(problem.initial_ids)
    candidate = Candidate(prompt, Calibration.none(2), TunedWeights(twin))
    accumulate_gradients(problem.backbone, [(lambda: candidate, problem.train)], list(twin.trained.values()))
    model = copy.deepcopy(backbone.model).requires_grad_()
    words = [ids[0][0] for ids in problem.train.context.renderer.label_ids]
    losses = []
    for piece, label in zip(problem.train.context.pieces, problem.train.labels, strict=True):
        logits = model(torch.tensor([[*piece.before, *prompt.token_ids, *piece.after]])).logits[0, -1, words]
        losses.append(functional.cross_entropy(logits[None], label[None]))
    torch.stack(losses).mean().backward()
    for name, parameter in model.named_parameters():
        expected, found = parameter.grad, twin.trained[name].grad
        assert torch.allclose(found, expected, atol=1e-5 + 1e-4 * float(expected.abs().max())), name


def test_text_before_the_prompt_carries_the_gradient_of_weights(causal):
    """A text longer than a tree may be is read with its gradient all the same."""
    problem = tiny_problem(causal)
    twin = Twin(causal, LoraSpec(), seed=0)
    twin.backbone.budget = replace(causal.budget, tree=4)
    candidate = Candidate(HardPrompt(problem.initial_ids), Calibration.none(2), TunedWeights(twin))
    tensors = list(twin.trained.values())
    accumulate_gradients(problem.backbone, [(lambda: candidate, problem.train)], tensors)
    small = [tensor.grad.clone() for tensor in tensors if tensor.grad is not None]
    twin.backbone.budget = causal.budget
    accumulate_gradients(problem.backbone, [(lambda: candidate, problem.train)], tensors)
    for one, other in zip(small, [t.grad for t in tensors if t.grad is not None], strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_values_swap_in_and_out_of_one_twin(causal):
    context = causal.context(make_examples(), make_task())
    twin = Twin(causal, LoraSpec(), seed=0)
    one, other = randomised(twin, 1), randomised(twin, 2)
    prompt = HardPrompt(context.renderer.prompt_ids)
    a, b = (Candidate(prompt, Calibration.none(2), weights) for weights in (one, other))
    with torch.no_grad():
        first = a.logits(causal, context)
        second = b.logits(causal, context)
        assert torch.equal(a.logits(causal, context), first)
        assert not torch.allclose(first, second)
        plain = Candidate(prompt, Calibration.none(2))
        mixed = fresh_logits(causal, make_task(), [a, plain, b], make_examples())
        for found, candidate in zip(mixed, (a, plain, b), strict=True):
            assert torch.allclose(found, candidate.logits(causal, context), atol=1e-5)


def test_lora_shares_the_frozen_weights_and_full_copies_them(causal):
    own = {tensor.data_ptr() for tensor in causal.model.parameters()}
    lora, full = Twin(causal, LoraSpec(), 0).backbone.model, Twin(causal, FullSpec(), 0).backbone.model
    assert own <= {tensor.data_ptr() for tensor in lora.parameters()}
    assert not own & {tensor.data_ptr() for tensor in full.parameters()}


def test_weights_of_another_backbone_are_refused(causal, byte_tokenizer, tmp_path, causal_folder):
    small = Twin(causal, LoraSpec(rank=2), seed=0)
    with pytest.raises(BackboneError, match="made for another backbone"):
        load_weights(causal, LoraSpec(rank=4), {n: t.detach() for n, t in small.trained.items()})
    classifier = PromptClassifier(str(causal_folder), "lora", method_options={"epochs": 1, "learning_rate": 0.01})
    classifier.fit(TEXT, LABEL)
    classifier.save(tmp_path / "lora")
    other = load_backbone((make_causal(byte_tokenizer, "gpt2"), byte_tokenizer))
    with pytest.raises(ArtifactError, match="was made for"):
        PromptClassifier.load(tmp_path / "lora", other)


def test_targets_that_no_layer_has_are_refused(causal):
    with pytest.raises(BackboneError, match="no LoRA can be put on it"):
        make_method("lora", {"targets": ("nothing_of_that_name",)}).fit(tiny_problem(causal))


def test_adapters_on_the_output_embedding_are_refused(causal, byte_tokenizer):
    """Scores read rows of its weight, which such an adapter is no part of."""
    with pytest.raises(BackboneError, match="changes the output embedding"):
        make_method("lora", {"targets": ("q_proj", "lm_head")}).fit(tiny_problem(causal))
    wrapped = get_peft_model(make_causal(byte_tokenizer), LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))
    with pytest.raises(BackboneError, match=r"merge it \(merge_and_unload"):
        load_backbone((wrapped, byte_tokenizer))
    load_backbone((wrapped.merge_and_unload(), byte_tokenizer))


@pytest.fixture(scope="module")
def adapters(causal_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for seed in (0, 1):
        options = {"epochs": 8, "learning_rate": 0.02, "rank": 2}
        classifier = PromptClassifier(str(causal_folder), "lora", method_options=options, seed=seed)
        classifier.fit(TEXT, LABEL, dev=(TEXT, LABEL)).save(folder / str(seed))
        assert classifier.artifact_.weights is not None
    return [folder / "0", folder / "1"]


def test_a_mix_is_the_weighted_sum_of_the_products(adapters, causal_folder):
    backbone = load_backbone(str(causal_folder))
    artifacts = [load_artifact(path) for path in adapters]
    mixed = mix_lora(artifacts, [0.7, 0.3], backbone)
    assert mixed.weights.spec.rank == 4

    def product(stored, layer):
        a, b = (stored.values[f"{layer}.lora_{part}.default.weight"].double() for part in "AB")
        return b @ a * stored.spec.alpha / stored.spec.rank

    layers = {name.split(".lora_")[0] for name in mixed.weights.values}
    for layer in layers:
        expected = 0.7 * product(artifacts[0].weights, layer) + 0.3 * product(artifacts[1].weights, layer)
        assert torch.allclose(product(mixed.weights, layer), expected, atol=1e-6)
    expected = [0.7 * a + 0.3 * b for a, b in zip(*(a.calibration.bias for a in artifacts), strict=True)]
    assert mixed.calibration.bias == pytest.approx(expected)


@pytest.mark.parametrize("combination", ["cat", "linear", "svd"])
def test_a_mix_of_one_adapter_with_all_the_weight_is_that_adapter(adapters, causal_folder, combination, tmp_path):
    backbone = load_backbone(str(causal_folder))
    artifacts = [load_artifact(path) for path in adapters]
    mixed = mix_lora(artifacts, [1.0, 0.0], backbone, combination)
    mixed.save(tmp_path / "mix")
    found = PromptClassifier.load(tmp_path / "mix").predict_proba(TEXT)
    assert np.allclose(found, PromptClassifier.load(adapters[0]).predict_proba(TEXT), atol=1e-4)
    assert load_artifact(tmp_path / "mix").manifest.method == "lora-mix"


def test_what_cannot_be_mixed_is_refused(adapters, causal_folder, tmp_path):
    backbone = load_backbone(str(causal_folder))
    one = load_artifact(adapters[0])
    with pytest.raises(ArtifactError, match="a weight each"):
        mix_lora([one], [1.0], backbone)
    with pytest.raises(ArtifactError, match="more than zero"):
        mix_lora([one, one], [0.0, 0.0], backbone)
    plain = PromptClassifier(str(causal_folder), "zero-shot").fit(TEXT, LABEL).artifact_
    with pytest.raises(ArtifactError, match="has no LoRA"):
        mix_lora([one, plain], [0.5, 0.5], backbone)
    other = PromptClassifier(
        str(causal_folder), "lora", template="{text}{prompt: so}{mask}", method_options={"learning_rate": 0.05}
    ).fit(TEXT, LABEL, dev=(TEXT, LABEL))
    with pytest.raises(ArtifactError, match="another template"):
        mix_lora([one, other.artifact_], [0.5, 0.5], backbone)
    with pytest.raises(ArtifactError, match="artifact 2 holds several prompts"):
        mix_lora([one, replace(one, others=(CalibratedPrompt(one.prompt, one.calibration),))], [0.5, 0.5], backbone)


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_a_linear_probe_is_scikit_learns(kind, request):
    backbone = request.getfixturevalue(kind)
    problem = tiny_problem(backbone)
    outcome = make_method("linear-probe", {"inverse_penalties": (1.0,)}).fit(problem)
    prompt = HardPrompt(problem.initial_ids)
    with torch.no_grad():
        train, dev = (backbone.features(d.context, prompt).double().numpy() for d in (problem.train, problem.dev))
    unit = np.sqrt((train.astype(np.float32) ** 2).mean())
    model = LogisticRegression(C=1.0, max_iter=1000).fit(train / unit, problem.train.labels.numpy())
    with torch.no_grad():
        found = outcome.best.logits(backbone, problem.dev.context).softmax(-1).numpy()
    assert np.allclose(found, model.predict_proba(dev / unit), atol=1e-4)


def test_a_sentence_encoder_reads_the_texts_itself(causal, sequence):
    data = label_context(causal, make_task(), make_examples())
    reader = SentenceEncoder(sequence, make_task("{prompt}{text}"))
    head = ClassHead(torch.randn(2, sequence.hidden_size), torch.randn(2))
    candidate = Candidate(HardPrompt((), head), Calibration.none(2), reader)
    own = sequence.context(make_examples(), make_task("{prompt}{text}"))
    with torch.no_grad():
        assert torch.equal(candidate.logits(causal, data.context), sequence.class_logits(own, HardPrompt((), head)))


def test_features_of_nothing_are_refused(causal, monkeypatch):
    monkeypatch.setattr(type(causal), "features", lambda self, context, prompt: torch.zeros(len(context), 4))
    with pytest.raises(MethodError, match="all zero"):
        make_method("linear-probe").fit(tiny_problem(causal))


def test_an_average_is_the_mean_of_each_tensor():
    heads = [ClassHead(torch.randn(2, 3), torch.randn(2)) for _ in range(2)]
    plain = Calibration.none(2)
    soft = [Candidate(SoftPrompt(torch.randn(4, 3), head), plain) for head in heads]
    mixed = average(soft).prompt
    assert torch.allclose(mixed.embeddings, (soft[0].prompt.embeddings + soft[1].prompt.embeddings) / 2)
    assert torch.allclose(mixed.head.weight, (heads[0].weight + heads[1].weight) / 2)
    assert torch.allclose(mixed.head.bias, (heads[0].bias + heads[1].bias) / 2)
    deep = [Candidate(DeepCue(HardPrompt((1, 2)), torch.randn(2, 2, 3)), plain) for _ in range(3)]
    expected = sum(candidate.prompt.offsets for candidate in deep) / 3
    assert torch.allclose(average(deep).prompt.offsets, expected)


@pytest.mark.parametrize("of", ["tune", "deep"])
def test_a_soup_keeps_a_member_only_where_it_helps_on_dev(of, causal):
    problem = tiny_problem(causal)
    problem = replace(problem, dev=problem.train)  # so that every member moves
    outcome = make_method(
        "soup", {"members": 3, "of": of, f"{of}.epochs": 5, f"{of}.learning_rate": 0.1, f"{of}.batch_size": 2}
    ).fit(problem)
    members = [event["dev_loss"] for event in outcome.trace if event["phase"] == "member"]
    assert len(members) == 3
    assert len(set(members)) == 3  # the orders differ
    best = score(causal, outcome.best, problem.dev).loss
    seen = [event["dev_loss"] for event in outcome.trace if event["phase"] in ("untuned", "member", "soup")]
    assert best == pytest.approx(min(seen))


def test_four_bit_weights_are_refused_without_a_gpu(causal_folder):
    with pytest.raises(BackboneError, match="needs a CUDA GPU"):
        load_backbone(str(causal_folder), device="cpu", dtype="nf4")


def test_a_method_that_trains_weights_says_so_in_its_size(causal):
    problem = replace(tiny_problem(causal), dev=None)
    outcome = make_method("lora", {"epochs": 3, "learning_rate": 0.01, "rank": 1}).fit(problem)
    expected = sum(tensor.numel() for tensor in outcome.best.reader.tensors().values())
    assert outcome.tuned_size == expected > 0
    selection = Selection(problem)
    untuned = outcome.start
    selection.see(untuned, score(causal, untuned, problem.train), TrainStep("untuned", 0))
    assert selection.outcome(untuned).tuned_size == 0


def test_weights_of_half_precision_are_trained_in_full(byte_tokenizer):
    model = make_causal(byte_tokenizer).bfloat16()
    backbone = load_backbone((model, byte_tokenizer))
    problem = replace(tiny_problem(backbone), dev=None)
    for name, options in (("lora", {"learning_rate": 0.01}), ("full", {"learning_rate": 1e-5})):
        outcome = make_method(name, options | {"epochs": 2}).fit(problem)
        tensors = outcome.best.reader.tensors()
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert outcome.trace[-1]["train_loss"] < outcome.trace[1]["train_loss"]
    moved = [not torch.equal(tensor, model.state_dict()[name].float()) for name, tensor in tensors.items()]
    assert all(moved)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_weights_of_few_bits_are_not_fine_tuned(byte_tokenizer):
    model = make_causal(byte_tokenizer)
    backbone = load_backbone((model, byte_tokenizer))
    packed = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    backbone.model.register_parameter("packed", packed)
    with pytest.raises(BackboneError, match="use lora"):
        make_method("full").fit(tiny_problem(backbone))


def test_memory_that_runs_out_in_a_twin_leaves_the_frozen_backbones_budget(causal, monkeypatch):
    problem = tiny_problem(causal)
    twin = Twin(causal, LoraSpec(), seed=0)
    candidate = Candidate(HardPrompt(problem.initial_ids), Calibration.none(2), TunedWeights(twin))
    plain, calls = twin.backbone.class_logits_many, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 1:  # the first pass of the step
            raise MemoryError
        return plain(*args)

    before = causal.budget
    monkeypatch.setattr(twin.backbone, "class_logits_many", failing)
    accumulate_gradients(problem.backbone, [(lambda: candidate, problem.train)], list(twin.trained.values()))
    assert causal.budget == before
    assert twin.backbone.budget.rows == before.rows // 2


def test_no_draw_from_the_global_generator(causal):
    torch.manual_seed(5)
    expected = torch.rand(3)
    for name, options in (
        ("lora", {"epochs": 1}),
        ("p-tuning", {"epochs": 1, "encoder_width": 4}),
        ("full", {"epochs": 1}),
    ):
        torch.manual_seed(5)
        make_method(name, options).fit(tiny_problem(causal))
        assert torch.equal(torch.rand(3), expected), name


def test_adapters_of_other_layers_or_ranks_are_refused(adapters, causal_folder):
    backbone = load_backbone(str(causal_folder))
    one = load_artifact(adapters[0])

    def other(**options):
        method = {"epochs": 8, "learning_rate": 0.02, "rank": 2} | options
        return PromptClassifier(str(causal_folder), "lora", method_options=method).fit(TEXT, LABEL, dev=(TEXT, LABEL))

    with pytest.raises(ArtifactError, match="other layers"):
        mix_lora([one, other(targets="o_proj").artifact_], [0.5, 0.5], backbone)
    with pytest.raises(ArtifactError, match="cannot be mixed"):
        mix_lora([one, other(rank=3).artifact_], [0.5, 0.5], backbone, "linear")
    with pytest.raises(ArtifactError, match="finite"):
        mix_lora([one, one], [float("inf"), 1.0], backbone)
