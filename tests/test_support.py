"""Every architecture with every head and every method: it learns, or refuses with a reason.

The findings are printed into docs/support.md: `make support` writes it; without CUECRAFT_WRITE=1 the test asserts
that the page is what it would write.
"""

import copy
import os
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from architectures import ARCHITECTURES, CLASSES, model_class, tiny_model
from conftest import LABELS, lively, make_task, records
from cuecraft.backbone import load_backbone
from cuecraft.backbone.weights import TunedWeights
from cuecraft.core.errors import BackboneError, CuecraftError
from cuecraft.methods import METHODS, make_method
from cuecraft.methods.first_order import linearised
from cuecraft.methods.prepare import make_problem
from cuecraft.methods.problem import score
from cuecraft.methods.search import autoprompt
from cuecraft.methods.train.soft import PromptTuning
from cuecraft.methods.train.trainable import PromptTensor

PAGE = Path(__file__).parents[1] / "docs" / "support.md"
WRITE = os.environ.get("CUECRAFT_WRITE") == "1"
FALL = 0.05  # of the first training loss, at least
ROUNDING = 1e-6  # of a model's greatest gradient: what the bias of a key gets, which no softmax sees

# One word decides the class.
AROUND = [("a ", " film"), ("the story was ", " again"), ("it is ", " from start to finish"), ("always ", "")]
TEXTS = [(before + word + after, LABELS.index(label)) for before, after in AROUND for word, label in
         (("joy", "positive"), ("bore", "negative"))]  # fmt: skip
TEMPLATES = {"causal": "{text}{prompt: it was}{mask}", "masked": "{text}{prompt: it was}{mask}."}
TEMPLATES["sequence"] = "{prompt: it was}{text}"

TRAINING = {"epochs": 10, "learning_rate": 0.2}
ENCODED = {"epochs": 12, "encoder_learning_rate": 0.03, "encoder_width": 16}
WEIGHTS = {"epochs": 8, "learning_rate": 0.01}
OPTIONS = {
    "zero-shot": {},
    "in-context": {"shots": 2},
    "autoprompt": {"steps": 3, "candidates": 20},
    "straight-through": {"steps": 8, "learning_rate": 1.0},
    "prompt-tuning": TRAINING,
    "p-tuning": ENCODED,
    "prefix-tuning": ENCODED,
    "p-tuning-v2": {"epochs": 14, "learning_rate": 0.1},
    "deep-cue": TRAINING,
    "first-order": {"penalties": [0.001, 0.01, 0.1, 1.0]},  # a fitted class head leaves little to gain
    "contrastive": {"epochs": 12, "folds": 2, "learning_rates": [0.3], "inverse_penalties": [100.0]},
    "hybrid": {"search.steps": 2, "search.candidates": 8, "tune.epochs": 10, "tune.learning_rate": 0.2},
    "soup": {"members": 2, "deep.epochs": 10, "deep.learning_rate": 0.2},
    "linear-probe": {},
    "embedding-probe": {},
    "lora": WEIGHTS,
    "lora-prompt": WEIGHTS,
    "full": {"epochs": 10, "learning_rate": 0.002},
}
# A class head that hardly moves leaves the learning to the prompt or the weights.
STILL = {name: {"head_learning_rate": 1e-9} for name in ("prompt-tuning", "p-tuning", "prefix-tuning", "p-tuning-v2")}
STILL |= {name: {"head_learning_rate": 1e-9} for name in ("deep-cue", "lora", "lora-prompt", "full")}
STILL |= {"hybrid": {"tune.head_learning_rate": 1e-9}, "soup": {"deep.head_learning_rate": 1e-9}}
UNTUNED = {"zero-shot", "in-context"}
WITHOUT_STEPS = {"linear-probe", "embedding-probe", "first-order"}  # a regression in place of an optimizer
SEARCHES = {"autoprompt", "straight-through"}  # methods that search for words
PHASES = {"hybrid": "prompt-tuning", "soup": "deep-cue"}  # where the name of the training is not the method's
TRIED = [method for method in METHODS if method != "auto"]  # which chooses among the others
ROWS = [(name, head) for head in CLASSES for name in ARCHITECTURES if model_class(name, head)]
QUICK = {("bert", "masked"), ("bert", "sequence"), ("llama", "causal")}


@dataclass
class Watch:
    """What optimizers and searches are seen to use: trained tensors, and the greatest gradient that each ever had."""

    tensors: list[torch.Tensor] = field(default_factory=list)
    gradients: dict[int, float] = field(default_factory=dict)

    def note(self, tensor, gradient):
        if all(tensor is not own for own in self.tensors):
            self.tensors.append(tensor)
        size = 0.0 if gradient is None else float(gradient.abs().max())
        self.gradients[id(tensor)] = max(size, self.gradients.get(id(tensor), 0.0))

    def dead(self):
        """Places, among all, of the tensors that no gradient reached."""
        return [place for place, tensor in enumerate(self.tensors) if not self.gradients[id(tensor)] > 0]


@contextmanager
def watching():
    watch = Watch()

    def before_step(optimizer, args, kwargs):
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                watch.note(tensor, tensor.grad)

    plain = autoprompt.loss_gradient

    def loss_gradient(*args):
        found, gradient = plain(*args)
        watch.note(torch.empty(0), gradient)
        return found, gradient

    handle = register_optimizer_step_pre_hook(before_step)
    autoprompt.loss_gradient = loss_gradient
    try:
        yield watch
    finally:
        handle.remove()
        autoprompt.loss_gradient = plain


class Support:
    """Finds each cell of the matrix once."""

    def __init__(self, byte_tokenizer, word_tokenizer, encoder):
        self._tokenizers = {False: byte_tokenizer, True: word_tokenizer}
        self._encoder = str(encoder)
        self._backbones = {}
        self._cells = {}

    def cell(self, name, head, method):
        """Return None where the method learns, else the reason with which it refuses.

        Raises:
            AssertionError: neither.
        """
        key = (name, head, method)
        if key not in self._cells:
            try:
                options = OPTIONS[method] | (STILL.get(method, {}) if head == "sequence" else {})
                options |= {"encoder": self._encoder} if method == "embedding-probe" else {}
                check_learning(self._backbone(name, head), method, options)
                self._cells[key] = None
            except CuecraftError as error:
                self._cells[key] = reason_of(error)
        return self._cells[key]

    def _backbone(self, name, head):
        if (name, head) not in self._backbones:
            tokenizer = self._tokenizers[ARCHITECTURES[name].is_encoder]
            self._backbones[name, head] = load_backbone((tiny_model(name, head, tokenizer), tokenizer), head)
        return self._backbones[name, head]


def reason_of(error):
    """Return an error's message without the model's name; it is one line that says what to do."""
    message = str(error)
    assert "\n" not in message
    assert "; " in message
    names = [model_class(name, head).__name__ for name, head in ROWS]
    for own in sorted(names, key=len, reverse=True):
        message = message.replace(f"{own} in memory", "the model")
    return message


@pytest.fixture(scope="session")
def support(byte_tokenizer, word_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-encoder"
    tiny_model("bert", "sequence", word_tokenizer).save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    return Support(byte_tokenizer, word_tokenizer, folder)


def toy_problem(backbone):
    task = make_task(TEMPLATES[backbone.head_kind])
    return replace(make_problem(backbone, task, records(TEXTS), records(TEXTS)), dev=None)


def check_learning(backbone, method, options):
    """Assert that a method learns the toy task, reaches all that it trains, and leaves the model as it was."""
    problem = toy_problem(backbone)
    frozen = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    answer = plain_output(backbone, backbone.model)
    with watching() as watch, threadpool_limits(1):  # scikit-learn's threads wait for each other on a busy machine
        outcome = make_method(method, options).fit(problem)
    after = backbone.model.state_dict()
    assert frozen.keys() == after.keys()
    assert all(torch.equal(frozen[name], after[name]) for name in frozen), "frozen weights changed"
    assert torch.equal(plain_output(backbone, backbone.model), answer), "the model answers otherwise than before"
    check_losses(problem, method, outcome)
    if method in UNTUNED | WITHOUT_STEPS:
        assert not watch.tensors
        return
    reader = outcome.best.reader
    idle = idle_places(backbone, reader) if isinstance(reader, TunedWeights) else set()
    assert watch.tensors
    dead = set(watch.dead()) - idle
    assert not dead, f"no gradient reaches {len(dead)} of {len(watch.tensors)} trained tensors"
    if isinstance(reader, TunedWeights):
        check_twin(backbone, reader, idle)


def check_losses(problem, method, outcome):
    """Assert that the training loss fell by a clear part; or, of words, that it did not rise."""
    start, best = (score(problem.backbone, found, problem.train).loss for found in (outcome.start, outcome.best))
    assert torch.tensor([start, best]).isfinite().all()
    phase = PHASES.get(method, method)
    losses = [e["train_loss"] for e in outcome.trace if e["phase"] == phase or method in SEARCHES]
    if method == "in-context":
        assert outcome.best is not outcome.start, "it answers without its examples"
        return
    if method in UNTUNED | SEARCHES:
        assert best <= start + 1e-6
        return
    assert min(losses) < (1 - FALL) * losses[0], f"the training loss fell from {losses[0]:.4f} to {min(losses):.4f}"
    if method == "contrastive":  # another loss than that of answers; held-out answers decide what ships
        return
    if method == "first-order":  # of eight texts, held-out answers may prefer the untuned one; far steps are not linear
        best = min(score(problem.backbone, own, problem.train).loss for own in first_order(problem, outcome.start))
        assert best < losses[0], "no penalty gives offsets that help"
        return
    assert best < (1 - FALL) * losses[0], "what is returned is not what learned"


def first_order(problem, start):
    """Yield what the first-order method fits to all examples with each penalty, before held-out answers decide."""
    linear, rows = linearised(problem, start.prompt), range(len(problem.train))
    for penalty in OPTIONS["first-order"]["penalties"]:
        yield linear.candidate(linear.fitted(rows, problem, penalty))


def check_twin(backbone, reader, idle):
    """Assert that the trained copy of the weights moved, wherever a plain pass uses it."""
    own = backbone.model.state_dict()
    moved = {n: not torch.equal(t, own.get(n, torch.zeros_like(t))) for n, t in reader.tensors().items()}
    still = {name for name, has_moved in moved.items() if not has_moved}
    assert still <= {name for place, name in enumerate(moved) if place in idle}


def plain_inputs(backbone):
    """Return a plain text as the model's own tokenizer writes it, with the answer slot where it has one."""
    mask = f" {backbone.tokenizer.mask_token}" if backbone.head_kind == "masked" else ""
    return backbone.tokenizer(f"it is a joy from start to finish{mask}", return_tensors="pt")


def plain_output(backbone, model):
    """Return what a model itself gives for a text: logits, or hidden states."""
    inputs = plain_inputs(backbone)
    output = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
    return output.last_hidden_state if backbone.head_kind == "sequence" else output.logits


def idle_places(backbone, reader):
    """Return the places of trained weights that a plain pass and loss of the model itself do not reach.

    Such as a pooler that no head reads; or the bias of keys, whose gradient is zero but for rounding. Of adapters,
    those around such weights.
    """
    model = copy.deepcopy(backbone.model).requires_grad_()
    output = plain_output(backbone, model)
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    sizes = {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in model.named_parameters()}
    least = ROUNDING * max(sizes.values())
    names = [name.partition(".lora_")[0] + ".weight" if ".lora_" in name else name for name in reader.tensors()]
    return {place for place, name in enumerate(names) if sizes[name] <= least}


def cells(quick):
    """Return the cells of common architectures, or of the others.

    In the default suite, Llama is tried with every method, and BERT with each as a masked model or with a class head.
    """
    found = []
    for row in (own for own in ROWS if (own in QUICK) == quick):
        for number, method in enumerate(TRIED):
            is_default = row[0] == "llama" or (row[1] == "masked") == (number % 2 == 0)
            marks = () if quick and is_default else pytest.mark.slow
            found.append(pytest.param(*row, method, id="-".join((*row, method)), marks=marks))
    return found


def test_every_method_has_options_here():
    assert set(OPTIONS) == set(TRIED)


def printed(name, head, method):
    """Return what the page says of a cell, and the section that it stands in."""
    section = PAGE.read_text(encoding="utf-8").split("\n## ")[1 + list(CLASSES).index(head)]
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    title = f"{ARCHITECTURES[name].title} (`{model_class(name, head).__name__}`)"
    return next(row for row in rows if row[0] == title)[1 + TRIED.index(method)], section


@pytest.mark.parametrize(("name", "head", "method"), cells(quick=True))
def test_common_architectures_learn_or_refuse_as_the_page_says(name, head, method, support):
    reason = support.cell(name, head, method)
    if not WRITE:
        text, section = printed(name, head, method)
        assert text == "yes" if reason is None else f"\n{text}. {reason}" in section


@pytest.mark.parametrize(("name", "head", "method"), cells(quick=False))
def test_other_architectures_learn_or_refuse(name, head, method, support):
    support.cell(name, head, method)


@pytest.mark.slow
def test_the_page_is_what_was_found(support):
    found = page(support)
    if WRITE:
        PAGE.write_text(found, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == found, "docs/support.md is out of date; run `make support`"


INTRODUCTION = """# What works with what

Each cell was tried on a tiny model with random weights, with the library versions in `constraints.txt`.

- `yes`: the method learns. On eight short texts whose class is decided by one word, the training loss falls by
  5% or more; a gradient reaches every trained tensor; what is frozen is bitwise the same afterwards. For methods that
  search for words (`autoprompt`, `straight-through`) the loss does not rise. `zero-shot` and `in-context` train
  nothing: they answer. `auto` is not here: it chooses among the others.
- a number: the method refuses, for the reason under the table.
- `-`: transformers has no such class.

So a cell says that a method works, not that it works well: how well is what `cuecraft compare` measures.
`embedding-probe` reads the texts with a model of its own. `full` and `lora` train a copy or adapters; the model they
are made of stays as it was. Weights that no pass uses, such as a pooler that no head reads, are not counted.

`make support` writes this page; `make test-slow` fails where it is out of date.
"""
SECTIONS = {
    "causal": (
        "Causal language models",
        "The answer is the next word. Encoders are configured as decoders (`is_decoder`).",
    ),
    "masked": ("Masked language models", "The answer is the word at the mask."),
    "sequence": (
        "Class heads on pooled features",
        "`--head sequence`: a class head on pooled features, fitted, then trained with the prompt. Here the head is\n"
        "held still, so that what learns is the prompt or the weights. Encoders are pooled over all tokens, decoders\n"
        "at the last.",
    ),
}
ENDING = """## Encoder-decoders

T5, BART and similar models are refused when they are loaded, whatever head is asked for:

> {reason}

They read the text in one stack of layers and answer in another. Every layout here (text, prompt and answer slot in one
sequence; contexts kept as keys and values of one stack; prefixes) is for models of one stack. An encoder taken out of
such a model, like `T5EncoderModel`, can be given from memory and is read as a sequence backbone.
"""


def page(support):
    """Return the whole matrix as Markdown."""
    parts = [INTRODUCTION]
    for head, (title, explanation) in SECTIONS.items():
        table, reasons = [], []
        for name, architecture in ARCHITECTURES.items():
            known = model_class(name, head)
            row = [f"{architecture.title} (`{known.__name__}`)" if known else architecture.title]
            for method in TRIED:
                reason = support.cell(name, head, method) if known else "-"
                if known and reason and reason not in reasons:
                    reasons.append(reason)
                row.append("-" if not known else "yes" if reason is None else str(1 + reasons.index(reason)))
            table.append(row)
        lines = [["", *TRIED], ["---"] * (1 + len(TRIED)), *table]
        parts.append(f"## {title}\n\n{explanation}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
        if reasons:
            parts.append("".join(f"{number}. {reason}\n" for number, reason in enumerate(reasons, start=1)))
    return "\n".join([*parts, ENDING.format(reason=refusal_of_t5())])


T5_SHAPE = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
BART_SHAPE = {f"{side}_{what}": size for side in ("encoder", "decoder")
              for what, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))}  # fmt: skip


def encoder_decoder(name, tokenizer):
    if name == "t5":
        return lively(T5ForConditionalGeneration(T5Config(**T5_SHAPE, vocab_size=len(tokenizer))))
    return lively(BartForConditionalGeneration(BartConfig(**BART_SHAPE, d_model=32, vocab_size=len(tokenizer))))


def refusal_of_t5():
    with pytest.raises(BackboneError) as caught:
        load_backbone((T5ForConditionalGeneration(T5Config(**T5_SHAPE, vocab_size=10)), None))
    return reason_of(caught.value)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("head", [None, *CLASSES])
def test_encoder_decoders_are_refused_when_loaded(name, head, word_tokenizer, tmp_path):
    model = encoder_decoder(name, word_tokenizer)
    model.save_pretrained(tmp_path)
    word_tokenizer.save_pretrained(tmp_path)
    for where in ((model, word_tokenizer), tmp_path):
        with pytest.raises(BackboneError, match=f"{name} is an encoder-decoder") as caught:
            load_backbone(where, head)
        assert "; use" in reason_of(caught.value)


def test_an_encoder_taken_out_of_an_encoder_decoder_is_a_sequence_backbone(word_tokenizer):
    encoder = lively(T5EncoderModel(T5Config(**T5_SHAPE, vocab_size=len(word_tokenizer))))
    check_learning(load_backbone((encoder, word_tokenizer)), "prompt-tuning", TRAINING | STILL["prompt-tuning"])


@pytest.mark.parametrize("name", ["bert", "electra"])
def test_an_encoder_that_reads_both_ways_is_no_causal_model(name, word_tokenizer):
    model = tiny_model(name, "causal", word_tokenizer, is_decoder=False)
    with pytest.raises(BackboneError, match="does not answer alike"):
        load_backbone((model, word_tokenizer), "causal")


def test_a_method_that_leaves_its_tensors_without_gradient_fails(sequence, monkeypatch):
    monkeypatch.setattr(PromptTensor, "_value", lambda self: self._tensor.detach())
    with pytest.raises(AssertionError, match="no gradient reaches 1 of 3 trained"):
        check_learning(sequence, "prompt-tuning", {"epochs": 10, "head_learning_rate": 0.05})


def test_a_method_that_changes_the_backbone_fails(word_tokenizer, monkeypatch):
    backbone = load_backbone((tiny_model("bert", "masked", word_tokenizer), word_tokenizer))
    plain = PromptTuning.fit

    def fit(self, problem):
        with torch.no_grad():
            next(problem.backbone.model.parameters())[0, 0] += 1e-6
        return plain(self, problem)

    monkeypatch.setattr(PromptTuning, "fit", fit)
    with pytest.raises(AssertionError, match="frozen weights changed"):
        check_learning(backbone, "prompt-tuning", TRAINING)
