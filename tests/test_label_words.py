"""Label words searched: planted words, combinations against brute force, other scripts, and what the command prints."""

import json
import shlex
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from conftest import LABELS, TEXTS, WORDS, examples, make_causal, make_masked, make_task, records, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.artifact import HardPrompt
from cuecraft.artifact.calibration import fitted_head
from cuecraft.backbone import load_backbone
from cuecraft.core.errors import LabelWordError, MethodError
from cuecraft.core.seeding import numpy_generator
from cuecraft.data import Record
from cuecraft.methods.evidence import Evidence
from cuecraft.methods.prepare import make_problem
from cuecraft.methods.problem import CalibrationKind, label_context, score
from cuecraft.methods.search.label_words import LabelWordSearch, with_label_words
from cuecraft.methods.search.word_choice import (
    WordTable,
    best_combination,
    choices,
    choose,
    contrast,
    read_words,
    shortlist,
)
from cuecraft.methods.untuned import starting_point

FILLER = "the film is a from start to finish it was in one word this plot actors and then again story of".split()
MARKS = {0: "awful", 1: "joy"}
CALIBRATED = "calibration=fitted"
PLANTED = {"negative": "dull", "positive": "bright"}


def marked_records(count=32):
    """Texts whose last word tells their class, which no label word does by itself."""
    random = numpy_generator(0, "marked")
    found = []
    for n in range(count):
        words = [FILLER[i] for i in random.integers(len(FILLER), size=4)]
        found.append(Record({"text": " ".join([*words, MARKS[n % 2]])}, LABELS[n % 2]))
    return found


def plant(backbone, names=None):
    """Have the words of PLANTED answer by class: their output embeddings point along what tells the classes apart."""
    task = make_task("{text}{prompt:}{mask}")
    data = label_context(backbone, task, task.examples(marked_records(160)))
    renderer = data.context.renderer
    with torch.no_grad():
        features = backbone.features(data.context, HardPrompt(()))
        middle = features.mean(0)
        apart = fitted_head(features - middle, data.labels, 2).weight[1]
        apart = apart - (apart @ middle) / (middle @ middle) * middle
        head = backbone.model.get_output_embeddings().weight
        for word, sign in zip((names or PLANTED).values(), (-1, 1), strict=True):
            (token,) = renderer.answer_ids([word])[0]
            head[token] = sign * apart * 3 / (features @ apart).std()
    return task


def planted_problem(backbone):
    task = plant(backbone)
    return make_problem(backbone, task, marked_records(24), marked_records(32)[24:])


@pytest.fixture(scope="module")
def planted_causal(byte_tokenizer):
    return planted_problem(load_backbone((make_causal(byte_tokenizer), byte_tokenizer)))


@pytest.fixture(scope="module")
def planted_masked(word_tokenizer):
    return planted_problem(load_backbone((make_masked(word_tokenizer), word_tokenizer)))


@pytest.fixture(params=["planted_causal", "planted_masked"])
def planted(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("way", ["contrast", "probe"])
def test_both_ways_find_planted_words(planted, way):
    found = LabelWordSearch(way=way, words=1).search(planted)
    for label, word in PLANTED.items():
        assert found.best[label] == (word,)
    assert found.words == found.best
    assert found.evidence.is_better
    assert found.evidence.rows == 32
    for label, word in PLANTED.items():
        rows = [row for row in found.table if row.label == label]
        assert [(row.word, row.is_current) for row in rows] == [(label, True), (word, False)]
        assert rows[1].is_chosen
    solved = with_label_words(planted, found.words)
    before, after = (
        score(own.backbone, starting_point(own, own.initial_ids, CalibrationKind.FITTED), own.dev)
        for own in (planted, solved)
    )
    assert after.loss < before.loss
    assert after.primary > before.primary


def test_several_words_of_a_class_are_found_together(planted):
    found = LabelWordSearch(words=4).search(planted)
    for label, word in PLANTED.items():
        assert word in found.best[label]
        assert len(found.best[label]) <= 5
    every = [word for words in found.best.values() for word in words]
    assert len(set(every)) == len(every)


def test_what_is_found_can_be_pasted(planted):
    found = LabelWordSearch(words=2).search(planted)
    parsed = [shlex.split(argument) for argument in found.arguments]
    assert [name for name, _ in parsed] == ["--label-words"] * 2
    assert [value for _, value in parsed] == [f"{label}={','.join(words)}" for label, words in found.words.items()]
    assert json.loads(json.dumps(found.document()))["words"] == {k: list(v) for k, v in found.words.items()}


def test_current_words_stay_where_labels_mean_nothing(causal):
    random = numpy_generator(3, "noise")
    noise = [Record(record.fields, LABELS[int(random.integers(2))]) for record in marked_records(24)]
    found = LabelWordSearch().search(make_problem(causal, make_task(), noise))
    assert found.words == {label: (label,) for label in LABELS}
    assert "stay" in found.reason


def test_current_words_stay_where_nothing_can_be_checked(planted):
    one_each = replace(planted, train=planted.train.select([0, 1]), dev=None)
    found = LabelWordSearch().search(one_each)
    assert found.words == {label: (label,) for label in LABELS}
    hurried = LabelWordSearch(words=1).search(replace(planted, out_of_time=lambda reserve=0.0: True))
    assert hurried.evidence is None
    assert hurried.words == {label: (label,) for label in LABELS}
    assert hurried.best != hurried.words


def test_the_evidence_never_saw_what_it_judges(planted):
    """Words that were chosen on a fold do not change with the texts and labels outside of it."""
    table = read_words(planted, planted.train, 50, HardPrompt(planted.initial_ids)).table
    rows = [row for row in table.rows if row % 3]
    turned = table.log_p.clone()
    turned[::3] = torch.randn(turned[::3].shape, dtype=turned.dtype)
    labels = table.labels.clone()
    labels[::3] = 1 - labels[::3]

    def ways(own):
        return lambda learnt: contrast(own.log_p[list(learnt)], own.labels[list(learnt)], 2)

    other = replace(table, log_p=turned, labels=labels)
    assert choose(table, rows, ways(table), 4, 0) == choose(other, rows, ways(other), 4, 0)
    assert choose(table, rows, ways(table), 4, 0) != table.own, "nothing was chosen, so this test shows nothing"


def test_what_equals_the_current_words_does_not_replace_them():
    labels = torch.arange(20) % 2
    own = torch.randn(20, 2, dtype=torch.float64)
    own[torch.arange(20), labels] += 2
    table = WordTable(own[:, [0, 1, 0, 1]].log_softmax(-1), labels, ((0,), (1,)), (2, 3))
    assert choose(table, table.rows, lambda rows: contrast(table.log_p[rows], labels[rows], 2), 1, 0) == ((0,), (1,))


def test_without_free_words_the_current_ones_are_chosen():
    labels = torch.arange(20) % 2
    table = WordTable(torch.randn(20, 2, dtype=torch.float64).log_softmax(-1), labels, ((0,), (1,)), ())
    assert choose(table, table.rows, lambda rows: contrast(table.log_p[rows], labels[rows], 2), 8, 0) == table.own


def test_contrast_is_the_mean_of_a_class_less_that_of_the_others():
    log_p, labels = torch.randn(9, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0, 0, 2, 2])
    found = contrast(log_p, labels, 3).numpy()
    values, known = log_p.numpy(), labels.numpy()
    for c, word in product(range(3), range(5)):
        others = [values[known == d, word].mean() for d in range(3) if d != c]
        assert found[c, word] == pytest.approx(values[known == c, word].mean() - np.mean(others))


def test_a_word_is_listed_for_the_class_where_it_stands_out_most():
    scores = torch.tensor([[9.0, 5.0, 1.0, 0.0, 0.0], [19.0, 12.0, 10.0, 14.0, 10.0]])
    table = WordTable(torch.zeros(1, 5), torch.zeros(1), ((0,), (0,)), (0, 1, 2, 3, 4))
    # Above their medians, 1 and 12: [8, 4, 0, -1, -1] and [7, 0, -2, 2, -2].
    assert shortlist(scores, table, 8) == [(0, 1, 2, 4), (3,)]
    assert shortlist(scores, table, 1) == [(0,), (3,)]


def test_choices_are_the_own_words_the_first_listed_and_both():
    assert choices((7,), (1, 2, 3, 4, 5), 3) == [(7,), (1,), (1, 2), (1, 2, 3), (7, 1), (7, 1, 2), (7, 1, 2, 3)]
    assert choices((7,), (1,), 1) == [(7,), (1,), (7, 1)]
    for listed in ((), (1,), (1, 2, 3, 4, 5, 6)):
        found = choices((7, 8), listed, 6)
        assert len(found) == 9, "a choice has to mean the same on every fold"
        assert all(found)


values = st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=4)


@examples(100)
@given(values)
def test_where_classes_do_not_interact_the_best_of_all_combinations_is_found(losses):
    def loss(numbers):
        return sum(own[n] for own, n in zip(losses, numbers, strict=True)) / 10

    found = best_combination(len(losses), 3, loss)
    assert loss(found) == min(loss(numbers) for numbers in product(range(3), repeat=len(losses)))


@examples(100)
@given(st.lists(st.integers(0, 5), min_size=27, max_size=27))
def test_no_single_change_of_what_is_found_gains_clearly(losses):
    table = {numbers: losses[i] / 50 for i, numbers in enumerate(product(range(3), repeat=3))}
    found = best_combination(3, 3, table.__getitem__)
    assert table[found] <= min(table[n, n, n] for n in range(3))
    for c, n in product(range(3), range(3)):
        assert table[(*found[:c], n, *found[c + 1 :])] >= table[found] - 0.05 - 1e-9
    if all(value == losses[0] for value in losses):
        assert found == (0, 0, 0)


@pytest.mark.parametrize("name", ["causal", "masked"])
def test_the_words_read_are_whole_words_with_the_models_own_probabilities(request, name):
    backbone = request.getfixturevalue(name)
    problem = tiny_problem(backbone)
    vocabulary = read_words(problem, problem.train, 1000, HardPrompt(problem.initial_ids))
    renderer = problem.train.context.renderer
    assert vocabulary.texts[:2] == ("negative", "positive")
    words = vocabulary.texts[2:]
    assert all(word.isalpha() for word in words)
    assert set(WORDS) - set(words) <= {"negative", "positive"}
    assert not {"negative", "positive"} & set(words)
    assert [(ids,) for ids in renderer.answer_ids(words)] == [((ids[0],),) for ids in vocabulary.ids[2:]]
    column = vocabulary.texts.index("film")
    piece, cue = problem.train.context.pieces[0], problem.initial_ids
    ids = [*piece.before, *cue, *piece.after]
    slot = ids.index(backbone.tokenizer.mask_token_id) if name == "masked" else -1
    with torch.no_grad():
        plain = backbone.model(torch.tensor([ids])).logits[0, slot].double().log_softmax(-1)
    (token,) = vocabulary.ids[column]
    assert float(vocabulary.table.log_p[0, column]) == pytest.approx(float(plain[token]), abs=1e-4)


def test_fewer_words_compete_the_likeliest_first(causal):
    problem = tiny_problem(causal)
    every, some = (read_words(problem, problem.train, count, HardPrompt(problem.initial_ids)) for count in (1000, 3))
    assert some.texts == every.texts[:5]
    mean = every.table.log_p.exp().mean(0)[2:]
    assert torch.equal(mean.argsort(descending=True)[:3], torch.arange(3))


def test_current_words_of_several_tokens_have_their_whole_probability(causal):
    problem = tiny_problem(causal)
    problem = with_label_words(problem, {"negative": ["never good", "bad"], "positive": "bright and warm"})
    vocabulary = read_words(problem, problem.train, 10, HardPrompt(problem.initial_ids))
    assert vocabulary.texts[:3] == ("never good", "bad", "bright and warm")
    assert vocabulary.table.own == ((0, 1), (2,))
    piece = problem.train.context.pieces[2]
    ids, word = [*piece.before, *problem.initial_ids], vocabulary.ids[2]
    with torch.no_grad():
        log_p = causal.model(torch.tensor([[*ids, *word]])).logits[0].double().log_softmax(-1)
    plain = sum(float(log_p[len(ids) - 1 + n, token]) for n, token in enumerate(word))
    assert float(vocabulary.table.log_p[2, 2]) == pytest.approx(plain, abs=1e-4)
    # What a long word begins with would be refused as a word of another class.
    assert not {word[0], vocabulary.ids[0][0]} & {ids[0] for ids in vocabulary.ids[3:]}
    assert LabelWordSearch(way="probe").search(problem).table[0].score is None


OTHER_WORDS = "фильм хороший плохой скучный яркий игра été très génial ennuyeux naïve phim hay tuyệt dở việc".split()


@pytest.fixture(scope="module")
def other_tokenizer():
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([" " + " ".join([*OTHER_WORDS, "awful", "joy", "2024", "a1"])] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def test_words_of_other_scripts_and_with_accents_are_found(other_tokenizer):
    backbone = load_backbone((make_causal(other_tokenizer), other_tokenizer))
    begin = {"negative": "phim", "positive": "việc"}
    task = make_task("{text}{prompt:}{mask}", begin)
    names = {"negative": "скучный", "positive": "génial"}
    plant(backbone, names)
    problem = make_problem(backbone, task, marked_records(32))
    vocabulary = read_words(problem, problem.train, 1000, HardPrompt(problem.initial_ids))
    assert set(OTHER_WORDS) <= set(vocabulary.texts)
    assert not {"2024", "a1"} & set(vocabulary.texts)
    found = LabelWordSearch(words=1).search(problem)
    for label, word in names.items():
        assert set(found.words[label]) - {begin[label]} == {word}
    assert shlex.split(found.arguments[1])[1] == f"positive={','.join(found.words['positive'])}"


NEW_WORDS = [
    {"negative": "bad", "positive": ["good", "great"]},
    {"negative": ["never good", "dull"], "positive": "bright and warm"},
]


@pytest.mark.parametrize("words", NEW_WORDS)
@torch.no_grad()
def test_other_label_words_need_no_new_read_and_change_no_number(causal, words):
    problem = tiny_problem(causal)
    reads = []
    hook = causal.model.base_model.register_forward_pre_hook(lambda *_: reads.append(1))
    moved = with_label_words(problem, words)
    hook.remove()
    assert not reads
    scratch = make_problem(causal, make_task(words=words), records(TEXTS[:5]), records(TEXTS[5:]))
    for part, fresh in ((moved.train, scratch.train), (moved.dev, scratch.dev)):
        assert torch.equal(part.labels, fresh.labels)
        prompt = HardPrompt(problem.initial_ids)
        assert torch.equal(causal.class_logits(part.context, prompt), causal.class_logits(fresh.context, prompt)), (
            "the same passes over the same states"
        )
    assert all(a is b for a, b in zip(moved.train.context.states, problem.train.context.states, strict=True))
    assert moved.task == scratch.task
    assert problem.task.verbalizer.words == (("negative",), ("positive",))


@torch.no_grad()
def test_other_label_words_on_a_masked_model(masked):
    words = {"negative": "bad", "positive": ["good", "great"]}
    moved = with_label_words(tiny_problem(masked), words)
    scratch = make_problem(masked, make_task(words=words), records(TEXTS[:5]), records(TEXTS[5:]))
    prompt = HardPrompt(moved.initial_ids)
    found, fresh = (masked.class_logits(own.train.context, prompt) for own in (moved, scratch))
    assert torch.equal(found, fresh)


@pytest.mark.filterwarnings("ignore::cuecraft.core.errors.CuecraftWarning")
@torch.no_grad()
def test_texts_that_were_cut_for_longer_words_are_read_again(causal):
    long = [Record({"text": " ".join(["film"] * 30)}, label) for label in LABELS]
    words = NEW_WORDS[1]
    problem = make_problem(causal, make_task(max_tokens=50), long)
    moved = with_label_words(problem, words)
    scratch = make_problem(causal, make_task(words=words, max_tokens=50), long)
    assert moved.train.context.pieces == scratch.train.context.pieces
    assert moved.train.context.pieces != problem.train.context.pieces


def test_words_that_cannot_be_scored_are_refused(causal, masked):
    with pytest.raises(LabelWordError, match="no label words for class"):
        with_label_words(tiny_problem(causal), {"positive": "good"})
    with pytest.raises(LabelWordError, match="fills one"):
        with_label_words(tiny_problem(masked), {"positive": "good great", "negative": "bad"})


def test_a_model_without_a_language_head_is_refused(sequence):
    with pytest.raises(MethodError, match="need no label words"):
        LabelWordSearch().search(tiny_problem(sequence))


def test_of_many_examples_a_sample_is_read_in_which_classes_take_turns(planted):
    found = LabelWordSearch(examples=12, words=1).search(planted)
    assert found.evidence is None or found.evidence.rows == 12
    assert isinstance(LabelWordSearch(words=1).search(planted).evidence, Evidence)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({**r.fields, "label": r.label}) + "\n" for r in marked_records()))
    return path


@pytest.fixture
def planted_folder(planted_causal, tmp_path):
    folder = tmp_path / "model"
    planted_causal.backbone.model.save_pretrained(folder)
    planted_causal.backbone.tokenizer.save_pretrained(folder)
    return folder


def test_the_command_prints_a_table_and_what_to_paste(run, data, planted_folder):
    where = (data, "--model", planted_folder, "--template", "{text}{prompt:}{mask}", "--words", 1)
    code, out, err = run("words", *where, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert all(set(document["words"][label]) - {label} == {word} for label, word in PLANTED.items())
    assert document["arguments"] == [f"--label-words {k}={','.join(own)}" for k, own in document["words"].items()]
    assert {"label", "word", "score", "is_current", "is_chosen"} == set(document["table"][0])
    assert document["evidence"]["rows"] == 32
    code, out, _ = run("words", *where, "--way", "probe", "--candidates", 30, "--seed", 2)
    assert code == 0
    pasted = [line.partition("--label-words ")[2] for line in out.splitlines() if line.startswith("--label-words ")]
    assert [line.partition("=")[0] for line in pasted] == list(LABELS)
    assert "dull" in pasted[0]
    assert "bright" in pasted[1]
    code, out, _ = run("words", *where, "--dev", data, "--shots", 8, "--json")
    assert code == 0
    assert json.loads(out)["evidence"]["rows"] == 16 + 32


def test_tune_searches_label_words_first(run, data, planted_folder):
    where = (data, "--model", planted_folder, "--template", "{text}{prompt:}{mask}", "--method", "zero-shot")
    code, out, err = run("tune", *where, "--label-words", "auto", "--test", data, "--json", "--option", CALIBRATED)
    assert code == 0, err
    found = json.loads(out)
    manifest = json.loads(run("show", "runs/zero-shot-0", "--json")[1])
    assert manifest["task"]["answers"]["words"] == [found["label_words"][label] for label in LABELS]
    assert "dull" in found["label_words"]["negative"]
    assert "bright" in found["label_words"]["positive"]
    assert found["metrics"]["test_accuracy"] > 0.9
    code, out, _ = run("predict", "runs/zero-shot-0", "the plot is joy", "--json")
    assert json.loads(out)["predictions"][0]["label"] == "positive"


def test_classes_that_are_numbers_need_no_warning(planted_causal):
    texts = [record.fields["text"] for record in marked_records()]
    labels = [LABELS.index(record.label) for record in marked_records()]
    classifier = PromptClassifier(
        planted_causal.backbone,
        "zero-shot",
        template="{text}{prompt:}{mask}",
        label_words="auto",
        method_options={"calibration": "fitted"},
    ).fit(texts, labels)
    assert classifier.task_.verbalizer.labels == ("0", "1")
    assert "bright" in classifier.task_.verbalizer.words[1]
    assert classifier.score(texts, labels) > 0.9


BAD = {
    "way": (["--way", "magic"], "way"),
    "words": (["--words", "0"], "words"),
    "a class that is not there": (["--label-words", "neutral=so"], "neutral"),
    "not a word": (["--label-words", "auto"], "CLASS=word"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_mistakes_are_told_in_one_line(run, data, causal_folder, arguments, message):
    code, out, err = run("words", data, "--model", causal_folder, *arguments)
    assert code == 2
    assert not out
    assert message in err.splitlines()[-1]


def test_auto_goes_with_labels_and_a_language_model_only(run, data, causal, sequence, causal_folder):
    with pytest.raises(MethodError, match="searched with labels"):
        PromptClassifier(causal, label_words="auto").fit_unlabeled(["a joy"], LABELS)
    with pytest.raises(MethodError, match="need no label words"):
        PromptClassifier(sequence, "prompt-tuning", label_words="auto").fit(
            [t for t, _ in TEXTS], [c for _, c in TEXTS]
        )
    with pytest.raises(LabelWordError, match="'auto'"):
        PromptClassifier(causal, label_words="good").fit([t for t, _ in TEXTS], [c for _, c in TEXTS])
    code, _, err = run("tune", data, "--model", causal_folder, "--unlabeled", "--label-words", "auto")
    assert code == 2
    assert "without any" in err
