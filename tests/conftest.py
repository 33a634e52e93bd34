"""Tiny models with random weights, made here: real architectures, real tokenizers, no downloads."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

# Before what counts the cores is imported: on tiny tensors a second thread only waits, here and in children.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from cuecraft import cli
from cuecraft.backbone import load_backbone
from cuecraft.backbone.causal import CausalBackbone
from cuecraft.methods.objectives import Golds, objective_of
from cuecraft.methods.prepare import make_problem
from cuecraft.methods.problem import label_context
from cuecraft.task import Example, Task, Template, Verbalizer

WORDS = (
    *"the film is a good bad great awful joy bore from start to finish it was in one word this review".split(),
    *"sentiment positive negative plot actors never always and then again warm cold dull bright story of".split(),
    *("love", "war"),
)
CORPUS = [" ".join((*WORDS[i:], *WORDS[:i])) for i in range(len(WORDS))] * 3

torch.set_num_threads(1)

#: Of what hypothesis draws for each test in the default suite; with the slow tests, as many as each test asks for.
FEW = 25
settings.register_profile("default suite", max_examples=FEW, deadline=None)
settings.register_profile("with slow tests", max_examples=100, deadline=None)
#: Seconds after which a test fails: many times what the slowest takes on a quiet machine, so that none hangs for hours.
LIMIT, LIMIT_OF_SLOW = 300, 3600


def examples(count):
    """Return the settings of a test for which hypothesis draws `count` examples, and no more than 25 by default."""
    return settings(max_examples=min(count, FEW) if settings.get_current_profile_name() == "default suite" else count)


def pytest_configure(config):
    settings.load_profile("default suite" if config.option.markexpr == "not slow" else "with slow tests")


def freeze():
    """Leave what is there out of garbage collection: what was imported is a million objects, and stays."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish(session):
    gc.set_threshold(7000, 10, 100)
    freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item, nextitem):
    """After a module that imported much, leave that out, too."""
    done = yield
    if (nextitem is None or nextitem.path != item.path) and len(gc.get_objects()) > 100_000:
        freeze()
    return done


@contextmanager
def limited(item):
    """Let the test that runs fail after its limit, where there are alarms (not on Windows)."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return
    seconds = LIMIT_OF_SLOW if item.get_closest_marker("slow") else LIMIT

    def over(number, frame):
        pytest.fail(f"not over after {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    with limited(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with limited(item):
        return (yield)


DATA = Path(os.environ.get("CUECRAFT_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A byte-level BPE tokenizer, as GPT-2's and Llama 3's; no special token is added to a text."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([" " + line for line in CORPUS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def word_tokenizer():
    """A WordPiece tokenizer, as BERT's."""
    # A fixed vocabulary: a trained one differs from process to process.
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*"[PAD] [UNK] [CLS] [SEP] [MASK] . , : ' ! ?".split(), *letters, *(f"##{letter}" for letter in letters)]
    tokens += sorted(set(WORDS) - set(tokens))
    raw = Tokenizer(models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, raw.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def lively(model):
    """Give a random model weights large enough for its answers to differ."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
    return model.eval()


_CAUSAL_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}


def make_causal(tokenizer, kind="llama"):
    vocab = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "gpt2":
        return lively(GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **vocab)))
    shape = _CAUSAL_SHAPE | {"num_key_value_heads": 2, "intermediate_size": 64}
    if kind == "qwen2":
        return lively(Qwen2ForCausalLM(Qwen2Config(**shape, **vocab)))
    return lively(LlamaForCausalLM(LlamaConfig(**shape, **vocab)))


def make_masked(tokenizer, kind="bert"):
    shape = _CAUSAL_SHAPE | {"intermediate_size": 64, "vocab_size": len(tokenizer), "pad_token_id": 0}
    if kind == "roberta":
        return lively(RobertaForMaskedLM(RobertaConfig(**shape)))
    return lively(BertForMaskedLM(BertConfig(**shape)))


@pytest.fixture(scope="session")
def causal(byte_tokenizer):
    return load_backbone((make_causal(byte_tokenizer), byte_tokenizer))


@pytest.fixture(scope="session")
def masked(word_tokenizer):
    return load_backbone((make_masked(word_tokenizer), word_tokenizer))


@pytest.fixture(scope="session")
def sequence(word_tokenizer):
    shape = _CAUSAL_SHAPE | {"intermediate_size": 64, "vocab_size": len(word_tokenizer)}
    return load_backbone((lively(BertModel(BertConfig(**shape))), word_tokenizer))


@pytest.fixture(scope="session")
def causal_folder(byte_tokenizer, tmp_path_factory):
    """The tiny causal model as a local folder, as a user would have it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    make_causal(byte_tokenizer).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


LABELS = ("negative", "positive")
TEXTS = [
    ("a joy from start to finish", 1),
    ("a bore and then a bore again", 0),
    ("the story is warm and bright", 1),
    ("the plot is dull and the actors cold", 0),
    ("great love story", 1),
    ("awful", 0),
    ("good actors, a great plot and then it was love and joy always", 1),
    ("it was never good, it was bad from start to finish and dull again", 0),
]
LM_TEMPLATE = "{text}{prompt: it was}{mask}"


def make_task(template=LM_TEMPLATE, words=None, **options):
    return Task(Template(template), Verbalizer.from_labels(LABELS, words), **options)


def golds_of(classes):
    """Return right answers, given class numbers; of as many classes as there are numbers, two at least."""
    numbers = tuple(int(number) for number in classes)
    names = [f"class {n}" for n in range(max(2, 1 + max(numbers)))]
    return Golds(objective_of(Verbalizer.from_labels(names)), numbers)


def make_examples(texts=TEXTS):
    return [Example({"text": text}, label) for text, label in texts]


def tiny_problem(backbone, template=None, **options):
    """A problem over the eight texts: five to train on, three to choose by."""
    if template is None:
        template = "{prompt}{text}" if backbone.head_kind == "sequence" else LM_TEMPLATE
    task = make_task(template)
    problem = make_problem(backbone, task, records(TEXTS[:5]), records(TEXTS[5:]), **options)
    return problem


def records(texts=TEXTS):
    from cuecraft.data import Record

    return [Record({"text": text}, LABELS[label]) for text, label in texts]


@pytest.fixture(scope="session", autouse=True)
def nothing_is_synced():
    """Let no write wait for the disk: what these tests kill is processes, not the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def labelled(causal):
    return label_context(causal, make_task(), make_examples())


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder; return (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def command(*words, stdin=None):
        monkeypatch.setattr(sys, "argv", ["cuecraft", *map(str, words)])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return command


@pytest.fixture
def command(run, monkeypatch):
    """The `run` fixture, with the seed of hashes already fixed, so that no process is replaced."""
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    return run


@pytest.fixture
def agreeing(monkeypatch):
    """Let all prompts that causal models are asked about together answer as the first of them does."""
    separately = CausalBackbone.class_logits_many

    def alike(self, context, prompts):
        return separately(self, context, prompts[:1]).expand(len(prompts), -1, -1)

    monkeypatch.setattr(CausalBackbone, "class_logits_many", alike)


@pytest.fixture
def untraced(monkeypatch):
    """Let the folded module answer in place of its graph, where a test is about what stands around the graph."""
    from cuecraft.export import graph
    from cuecraft.export.runtime import sessions
    from cuecraft.export.runtime.manifest import INPUTS, PROMPTS

    modules = {}

    def write_graph(folded, folder):
        path = folder / graph.GRAPH
        path.write_text(str(len(modules)))
        modules[path.read_text()] = folded
        return path

    class Session:
        def __init__(self, path, options, manifest):
            self.module = modules[path.read_text()]

        def run(self, feed):
            with torch.no_grad():
                return self.module(
                    *(torch.from_numpy(feed[name]) for name in (*INPUTS, PROMPTS) if name in feed)
                ).numpy()

    monkeypatch.setattr("cuecraft.export.folder.write_graph", write_graph)
    monkeypatch.setattr(sessions, "OnnxSession", Session)


@pytest.fixture
def serve(causal):
    """Make servers over the causal model; their engines are closed in the end."""
    from serving_here import Server  # what serves is an extra, which most tests do without

    made = []

    def make(*arguments, **parts):
        made.append(Server(causal, *arguments, **parts))
        return made[-1]

    yield make
    for server in made:
        server.engine.close()


@pytest.fixture(scope="module")
def browser():
    """A Chromium without a window; not for the session, since its event loop keeps others from running."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=flags)
        yield browser
        browser.close()
