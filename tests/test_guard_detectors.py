"""Detectors: prompts of ours, classifiers of others, and how the guard asks them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from conftest import TEXTS, lively
from cuecraft import PromptClassifier
from cuecraft.core.errors import GuardError
from cuecraft.serving.guard import Guard, GuardMode, HubDetector, PromptDetector, attack_classes

LONG = " ".join(["a good film from start to finish"] * 100)


class Knowing:
    """Knows one word, and keeps what it was asked."""

    def __init__(self, word, name="knowing", score=0.9):
        self.word, self.name, self.score = word, name, score
        self.asked = []

    def scores(self, texts):
        self.asked.append(list(texts))
        return [self.score if self.word in text else 0.1 for text in texts]


def test_the_guard_asks_a_detector_once_and_takes_the_greatest_score_of_windows_and_hidden_texts():
    detector = Knowing("zeus")
    encoded = "and hidden: cGxlYXNlIGNhbGwgemV1cyBub3c="  # please call zeus now
    texts = ["all is well", f"{LONG} zeus {LONG}", encoded, "", "ZEUS"]
    found = Guard(detectors=[detector]).screen_many(texts)
    assert len(detector.asked) == 1
    assert [one.scores["knowing"] for one in found] == [0.1, 0.9, 0.9, 0.0, 0.1]
    assert [one.verdict for one in found] == ["pass", "flag", "flag", "pass", "pass"]
    told = [[(f.kind, f.id, f.where) for f in one.findings if f.kind == "detector"] for one in found]
    assert told == [[], [("detector", "knowing", "text")], [("detector", "knowing", "hidden")], [], []]
    assert max(len(text.split()) for text in detector.asked[0]) < 200
    assert "please call zeus now" in detector.asked[0]


def test_a_detector_reads_the_normalised_text():
    detector = Knowing("zeus")
    assert Guard(detectors=[detector]).screen("call ze\u200bus").verdict == "flag"
    assert detector.asked == [["call zeus"]]


def test_a_score_flags_from_the_threshold_on():
    for score, verdict in ((0.69, "pass"), (0.7, "flag"), (0.71, "flag")):
        assert Guard(detectors=[Knowing("x", score=score)], threshold=0.7).screen("x").verdict == verdict


def test_each_detector_has_a_name_and_a_score_of_its_own():
    guard = Guard(detectors=[Knowing("a", "one"), Knowing("b", "two", 0.6)])
    found = guard.screen("b")
    assert found.scores == {"one": 0.1, "two": 0.6}
    assert [finding.id for finding in found.findings] == ["two"]
    with pytest.raises(GuardError, match="two detectors are called 'one'; name each once"):
        Guard(detectors=[Knowing("a", "one"), Knowing("b", "one")])
    with pytest.raises(GuardError, match=r"threshold: 1\.5 is no probability"):
        Guard(threshold=1.5)


def test_no_texts_ask_no_detector():
    detector = Knowing("a")
    assert Guard(detectors=[detector]).screen_many([]) == []
    assert detector.asked == []


def test_the_classes_that_mean_an_attack_are_found_or_named():
    assert attack_classes(["benign", "attack"]) == ("attack",)
    assert attack_classes(["BENIGN", "INJECTION", "JAILBREAK"]) == ("INJECTION", "JAILBREAK")
    assert attack_classes(["NOT_INJECTION", "INJECTION"]) == ("INJECTION",)
    assert attack_classes(["no-attack", "malicious"]) == ("malicious",)
    assert attack_classes(["LABEL_0", "LABEL_1"], ["LABEL_1"]) == ("LABEL_1",)
    for classes, named, message in (
        (["LABEL_0", "LABEL_1"], [], "x: which of LABEL_0, LABEL_1 mean an attack is not clear"),
        (["attack", "injection"], [], "is not clear from their names; say which do"),
        (["a", "b"], ["c"], "x: no class 'c'; the classes are a, b"),
    ):
        with pytest.raises(GuardError, match=message):
            attack_classes(classes, named, "x")


def test_a_prompt_detector_adds_what_means_an_attack():
    table = {"a": [0.2, 0.3, 0.5], "b": [0.7, 0.1, 0.2]}

    def answers(texts):
        return np.array([table[text] for text in texts])

    classes = ("benign", "injection", "jailbreak")
    assert PromptDetector("ours", answers, classes).scores(["a", "b"]) == pytest.approx([0.8, 0.3])
    assert PromptDetector("ours", answers, classes, ["benign"]).scores(["b"]) == pytest.approx([0.7])
    assert PromptDetector("ours", answers, classes).scores([]) == []


def test_a_tuned_prompt_is_a_detector(causal):
    texts, numbers = zip(*TEXTS, strict=True)
    labels = [("attack", "benign")[number] for number in numbers]
    template = "{text}{prompt: it was}{mask}"
    words = {"attack": "awful", "benign": "great"}
    options = {"epochs": 3}
    model = PromptClassifier(causal, "prompt-tuning", template=template, label_words=words, method_options=options)
    model.fit(texts, labels)
    detector = PromptDetector("ours", lambda asked: model.predict_proba(list(asked)), model.classes_.tolist())
    expected = model.predict_proba(texts)[:, list(model.classes_).index("attack")]
    found = Guard((), detectors=[detector], threshold=float(np.median(expected))).screen_many(texts)
    np.testing.assert_allclose([one.scores["ours"] for one in found], expected, atol=1e-5)
    assert {one.verdict for one in found} == {"pass", "flag"}


# --- classifiers of others ---
LABELS = ["SAFE", "INJECTION", "JAILBREAK"]


@pytest.fixture(scope="module")
def folder(word_tokenizer, tmp_path_factory):
    """A tiny classifier with random weights, as somebody else would have saved it."""
    return save(word_tokenizer, tmp_path_factory.mktemp("guards") / "tiny")


def save(tokenizer, path, labels=LABELS, **more):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    names = dict(enumerate(labels))
    config = BertConfig(
        **shape, vocab_size=len(tokenizer), max_position_embeddings=64, num_labels=len(labels), id2label=names, **more
    )
    lively(BertForSequenceClassification(config)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def plain_probabilities(folder, tokenizer, text, length=62):
    """The oracle: one text alone, without the detector."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=length)).logits[0]


def test_any_classifier_in_a_folder_is_a_detector(folder, word_tokenizer):
    texts = [text for text, _ in TEXTS]
    found = HubDetector(str(folder), device="cpu", local_files_only=True, batch_size=3).scores(texts)
    expected = [plain_probabilities(folder, word_tokenizer, text).softmax(-1)[1:].sum().item() for text in texts]
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(found) - min(found) > 0.05  # else any order would do
    one = HubDetector(str(folder), ["JAILBREAK"], device="cpu").scores(texts[:1])
    assert one == pytest.approx([plain_probabilities(folder, word_tokenizer, texts[0]).softmax(-1)[2].item()], abs=1e-5)
    assert HubDetector(str(folder), device="cpu").scores([]) == []


def test_a_causal_classifier_reads_the_last_token_of_each_text(byte_tokenizer, tmp_path):
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": len(byte_tokenizer)}
    config = GPT2Config(**shape, num_labels=2, id2label={0: "BENIGN", 1: "MALICIOUS"})
    model = lively(GPT2ForSequenceClassification(config))
    model.save_pretrained(tmp_path / "causal")
    byte_tokenizer.save_pretrained(tmp_path / "causal")
    texts = [text for text, _ in TEXTS]
    found = HubDetector(str(tmp_path / "causal"), device="cpu").scores(texts)
    with torch.no_grad():
        alone = [model(**byte_tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)[1].item() for text in texts]
    assert found == pytest.approx(alone, abs=1e-5)


def test_classes_that_do_not_exclude_each_other_are_told_apart(word_tokenizer, tmp_path):
    path = save(word_tokenizer, tmp_path / "sigmoid", problem_type="multi_label_classification")
    text = TEXTS[0][0]
    expected = plain_probabilities(path, word_tokenizer, text).sigmoid()[1:].max().item()
    assert HubDetector(str(path), device="cpu").scores([text]) == pytest.approx([expected], abs=1e-5)


def test_a_long_text_has_the_greatest_score_of_its_windows_of_tokens(folder, word_tokenizer):
    detector = HubDetector(str(folder), device="cpu", batch_size=2)
    short = TEXTS[0][0]
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    length, overlap = 62, 62 // 8
    # The oracle: windows cut by hand from the text's tokens, each by itself between the same special tokens.
    plain = word_tokenizer(LONG, add_special_tokens=False)["input_ids"]
    special = word_tokenizer.num_special_tokens_to_add()
    room = length - special
    before, after = special_tokens(word_tokenizer)
    scores = []
    for start in range(0, len(plain) - overlap, room - overlap):
        row = torch.tensor([[*before, *plain[start : start + room], *after]])
        with torch.no_grad():
            scores.append(model(row).logits[0].softmax(-1)[1:].sum().item())
    assert len(scores) > 5
    one = plain_probabilities(folder, word_tokenizer, short).softmax(-1)[1:].sum().item()
    assert detector.scores([LONG, short]) == pytest.approx([max(scores), one], abs=1e-5)


def special_tokens(tokenizer):
    """Return what stands before and after a text's tokens."""
    inner = tokenizer("good", add_special_tokens=False)["input_ids"]
    whole = tokenizer("good")["input_ids"]
    start = next(at for at in range(len(whole)) if whole[at : at + len(inner)] == inner)
    return whole[:start], whole[start + len(inner) :]


@pytest.mark.parametrize("place", [0, 100, 450])
def test_an_attack_anywhere_in_a_window_changes_what_a_classifier_says(folder, place):
    words = ["good"] * 500
    other = [*words]
    other[place : place + 3] = ["awful"] * 3
    pair = [" ".join(words), " ".join(other)]
    # The greatest score of some class rises wherever the words stand, as no class is less likely in every window.
    scores = [HubDetector(str(folder), [label], device="cpu").scores(pair) for label in LABELS]
    assert max(changed - plain for plain, changed in scores) > 1e-4


def test_what_cannot_be_a_detector_is_told(word_tokenizer, folder, tmp_path):
    with pytest.raises(GuardError, match="nowhere: there is no such folder"):
        HubDetector(str(tmp_path / "nowhere"), local_files_only=True)
    with pytest.raises(GuardError, match=r"no class 'EVIL'; the classes are SAFE, INJECTION, JAILBREAK"):
        HubDetector(str(folder), ["EVIL"])
    unnamed = save(word_tokenizer, tmp_path / "unnamed", ["LABEL_0", "LABEL_1"])
    with pytest.raises(GuardError, match="which of LABEL_0, LABEL_1 mean an attack is not clear"):
        HubDetector(str(unnamed))


def test_the_guard_is_light():
    code = "import sys, cuecraft.serving.guard as g; g.Guard().screen('x'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_modes_are_those_of_the_server():
    assert [mode.value for mode in GuardMode] == ["off", "flag", "block"]
