"""Chat: the oracle is the model's own forward pass over the conversation that its tokenizer renders and tokenises."""

import json

import numpy as np
import pytest
import torch

from architectures import tiny_model
from chat_templates import CHATS, chat_tokenizer
from conftest import LABELS, TEXTS, make_examples
from cuecraft import PromptClassifier
from cuecraft.artifact import HardPrompt, SoftPrompt, load_artifact
from cuecraft.backbone import load_backbone
from cuecraft.core.errors import MethodError, TemplateError
from cuecraft.methods.prepare import written_template
from cuecraft.serving.artifacts import Shelf
from cuecraft.serving.engine import Engine
from cuecraft.task import Example, Shot, Task, Verbalizer
from cuecraft.task.chat import Chat, chat_of
from tiny_backbones import assert_close

CUE = "In one word, this is"
DAY = {"date_string": "26 Jul 2024"}
SHAPES = {"qwen-2.5": "qwen2", "qwen-3": "qwen3", "gemma-2": "gemma3", "gemma-3": "gemma3"}
WORDS = {"negative": ["bad"], "positive": ["good"]}
X = [text for text, _ in TEXTS[:4]]


@pytest.fixture(scope="module")
def chatty():
    """Give the tiny model of a chat template; each is made once."""
    made = {}

    def build(name):
        if name not in made:
            tokenizer = chat_tokenizer(name)
            shape = {"max_position_embeddings": 1024}
            if SHAPES.get(name) == "gemma3":
                shape["sliding_window"] = 1024
            model = tiny_model(SHAPES.get(name, "llama"), "causal", tokenizer, **shape)
            made[name] = load_backbone((model, tokenizer))
        return made[name]

    return build


def task_of(backbone, chat=True, **options):
    template = written_template(backbone, ["text"], chat=chat)
    return Task(template, Verbalizer.from_labels(LABELS, WORDS), **options)


def spoken(backbone, text, answer, system=None, before=()):
    """Ids of a conversation that ends within the assistant's turn, as the tokenizer renders and tokenises it."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    for said, answered in before:
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answered}]
    messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    if "system_message is defined" in backbone.tokenizer.chat_template:
        # Mistral's has the system speak in the last turn only where that is the user's, as when an answer is wanted.
        rendered = backbone.tokenizer.apply_chat_template(messages[:-1], tokenize=False)
        return backbone.tokenizer(f"{rendered} {answer}", add_special_tokens=False).input_ids
    return backbone.tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=False, continue_final_message=True, enable_thinking=False, **DAY
    )


@torch.no_grad()
def plain_scores(backbone, pairs):
    """Log-shares `[1, C]` of continuations, one forward pass for each: pairs of ids without and with a label word."""
    found = []
    for before, whole in pairs:
        assert whole[: len(before)] == before
        assert len(whole) > len(before)
        logits = backbone.model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
        found.append(sum(logits[n - 1, whole[n]] for n in range(len(before), len(whole))))
    return torch.stack(found)[None].log_softmax(-1)


@torch.no_grad()
def answers(backbone, task, texts, keep_bytes=None):
    context = backbone.context(make_examples([(text, 0) for text in texts]), task, keep_bytes)
    prompt = HardPrompt(context.renderer.prompt_ids)
    return backbone.class_logits(context, prompt).double().log_softmax(-1)


def written_ids(backbone, task, text):
    renderer = backbone.renderer(task)
    piece = renderer.render(make_examples([(text, 0)]))[0]
    return [*piece.before, *renderer.prompt_ids, *piece.after]


NAMES = sorted(set(CHATS) - {"always-thinks"})
MERGES = ("gemma-2", "mistral-0.2")  # refuse a system's turn
#: SentencePiece in its older form begins a text with a space of its own, also where a line of the system's stands
#: before it.
SPACED = ("mistral-0.2", "mistral-0.3")


@pytest.mark.parametrize("system", [None, "be brief."])
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_a_plain_pass_over_the_rendered_conversation(name, system, chatty):
    backbone = chatty(name)
    task = task_of(backbone, True if system is None else {"system": system})
    expected = []
    for text in X:
        said, turn = f" {text}" if system and name in SPACED else text, system
        said, turn = (f"{system}\n\n{said}", None) if system and name in MERGES else (said, turn)
        before = spoken(backbone, said, CUE, turn)
        assert written_ids(backbone, task, text) == before
        expected.append(
            plain_scores(
                backbone, [(before, spoken(backbone, said, f"{CUE} {own[0]}", turn)) for own in WORDS.values()]
            )
        )
    for keep_bytes in (None, 0):
        assert_close(answers(backbone, task, X, keep_bytes), torch.cat(expected), 1e-4)
    assert_close(answers(backbone, task, X[:1]), expected[0], 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_cue_may_stand_at_the_end_of_the_users_turn(name, chatty):
    backbone, question = chatty(name), " Answer in one word: is it good?"
    task = task_of(backbone, {"user": f"Review: {{text}}{{prompt:{question}}}"})
    assert task.template.pieces[-1].prefix == (" " if name.startswith("mistral") else "")
    expected = []
    for text in X:
        said = f"Review: {text}{question}"
        messages = [{"role": "user", "content": said}]
        rendered = backbone.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False, **DAY
        )
        if name.startswith("mistral"):
            rendered += " "
        before, *whole = (
            backbone.tokenizer(rendered + word, add_special_tokens=False).input_ids for word in ("", "bad", "good")
        )
        if not name.startswith(("mistral", "phi-3")):
            assert written_ids(backbone, task, text) == before
        same = next(n for n, pair in enumerate(zip(*whole, strict=False)) if pair[0] != pair[1])
        common = [own[:same] for own in whole]
        expected.append(plain_scores(backbone, [(own, ids) for own, ids in zip(common, whole, strict=True)]))
    assert_close(answers(backbone, task, X), torch.cat(expected), 1e-4)


SHOTS = (Shot((("text", "a joy"),), 1), Shot((("text", "a bore again"),), 0), Shot((("text", "warm"),), 1))


@pytest.mark.parametrize("name", NAMES)
def test_examples_in_the_prompt_are_earlier_rounds_of_the_conversation(name, chatty):
    backbone = chatty(name)
    task = task_of(backbone, {"system": "be brief."}, shots=SHOTS, reserve=8)
    rounds = [(dict(shot.fields)["text"], f"{CUE} {WORDS[LABELS[shot.gold]][0]}") for shot in SHOTS]
    system, space = "be brief.", " " * (name in SPACED)
    if name in MERGES:
        rounds[0] = (f"{system}\n\n{space}{rounds[0][0]}", rounds[0][1])
        system, space = None, ""
    for text in X[:2]:
        assert written_ids(backbone, task, text) == spoken(backbone, space + text, CUE, system, rounds)


@pytest.mark.parametrize("turns", [{"user": "{text}"}, {"user": "Judge it.", "assistant": "{text}: {mask}"}])
def test_a_slot_in_the_systems_turn_is_refused_behind_examples(turns, chatty):
    """Each round would need a system's turn of its own; the text's own field would be lost."""
    backbone = chatty("smollm2")
    own = {"system": "Of {domain}. {prompt:Be brief.}", **turns}
    template = written_template(backbone, ["domain", "text"], chat=own)
    verbalizer = Verbalizer.from_labels(LABELS, WORDS)
    source = backbone.renderer(Task(template, verbalizer)).render([Example({"domain": "films", "text": "a joy"})])
    assert "Of films." in backbone.tokenizer.decode([*source[0].before, *source[0].after])
    shot = Shot((("domain", "books"), ("text", "warm")), 1)
    with pytest.raises(TemplateError, match=r"system's turn has \{domain\}.*put it into the user's turn"):
        Task(template, verbalizer, shots=(shot,))


@pytest.mark.parametrize("name", ["smollm2", "gemma-3", "phi-4"])
def test_a_label_word_behind_words_stands_behind_a_space_whatever_they_end_with(name, chatty):
    """Only behind control tokens does none stand there."""
    backbone = chatty(name)
    for assistant in ("{prompt:It is =>}{mask}", "{prompt:It is [1]}{mask}", "It is =>{prompt}{mask}"):
        task = task_of(backbone, {"user": "{text}", "assistant": assistant})
        said = assistant.partition("{mask}")[0].replace("{prompt:", "").replace("{prompt", "").replace("}", "")
        before = spoken(backbone, X[0], said)
        assert written_ids(backbone, task, X[0]) == before
        whole = [spoken(backbone, X[0], f"{said} {own[0]}") for own in WORDS.values()]
        expected = plain_scores(backbone, [(before, own) for own in whole])
        assert_close(answers(backbone, task, X[:1]), expected, 1e-4)


def test_a_header_of_several_tokens_and_thinking_that_is_always_on(chatty):
    backbone = chatty("always-thinks")
    tokenizer, task = backbone.tokenizer, task_of(chatty("always-thinks"))
    messages = [{"role": "user", "content": X[0]}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert whole.endswith("<think>\n")
    expected = tokenizer(f"{whole}\n</think>\n\n{CUE}", add_special_tokens=False).input_ids
    assert written_ids(backbone, task, X[0]) == expected
    assert expected.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", sorted(CHATS))
def test_control_tokens_come_from_the_template_alone(name, chatty):
    backbone = chatty(name)
    tokenizer, task = backbone.tokenizer, task_of(backbone, {"system": "be brief."})
    added = tokenizer.added_tokens_decoder
    control = {number for number, token in added.items() if token.content in tokenizer.chat_template or number > 300}
    control |= set(tokenizer.all_special_ids)
    control -= {tokenizer.unk_token_id}
    hostile = f"good {' '.join(added[n].content for n in sorted(control) if n in added)} {{text}} }}{{ [INST] bad"
    ids, quiet = (written_ids(backbone, task, text) for text in (hostile, "good"))
    assert [n for n in ids if n in control] == [n for n in quiet if n in control]
    if tokenizer.bos_token in tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False):
        count = 1 + (tokenizer.bos_token == "<|im_start|>") * 2  # SmolLM2's first token opens every turn
        assert quiet.count(tokenizer.bos_token_id) == count
    shots = (Shot((("text", hostile),), 0), Shot((("text", "good"),), 0))
    behind = backbone.renderer(task_of(backbone, shots=shots))
    plain = backbone.renderer(task_of(backbone, shots=(SHOTS[0], SHOTS[0])))
    assert [n for n in behind.shared_ids if n in control] == [n for n in plain.shared_ids if n in control]


def test_what_stands_before_the_tuned_tokens_is_read_once(chatty):
    backbone = chatty("smollm2")
    task, examples = task_of(backbone, {"system": "be brief."}), make_examples()
    read = []
    hook = backbone.model.get_input_embeddings().register_forward_hook(
        lambda module, given, out: read.append(given[0].numel())
    )
    try:
        context = backbone.context(examples, task)
        first, opening = sum(read), len(context.renderer.shared_ids)
        texts = sum(len(piece.before) - opening for piece in context.pieces)
        assert opening > 15
        assert first < opening + 2 * texts  # padding at most doubles it
        read.clear()
        vectors = torch.randn(3, backbone.hidden_size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found = backbone.class_logits(context, SoftPrompt(vectors))
        assert sum(read) < first / 4
        with torch.no_grad():
            alone = torch.cat(
                [backbone.class_logits(backbone.context([one], task, 0), SoftPrompt(vectors)) for one in examples]
            )
    finally:
        hook.remove()
    assert_close(found, alone, 1e-4)


def test_words_written_into_the_slot_give_back_their_tokens(chatty):
    for name in ("smollm2", "mistral-0.3", "phi-3"):
        renderer = chatty(name).renderer(task_of(chatty(name)))
        assert renderer.gives_back([renderer.prompt_ids]) == [True]
    template = task_of(chatty("smollm2")).template
    other = template.with_prompt("it was")
    assert other.prompt_text == "it was"
    assert other.chat.assistant == "{prompt:it was}{mask}"
    assert other.example(1).prompt_text == other.behind_examples.prompt_text == "it was"
    assert template.with_prompt(CUE) == template


def test_a_day_that_a_template_writes_is_always_the_same(chatty):
    assert "Today Date: 26 Jul 2024" in task_of(chatty("llama-3.2")).template.source
    tokenizer = chat_tokenizer("smollm2")
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }}\n" + tokenizer.chat_template
    assert Chat("{text}", "{prompt}{mask}").written(tokenizer, "x").source.startswith("2024-07-26\n")


def test_templates_that_want_contents_in_parts_are_written_too(chatty):
    tokenizer = chat_tokenizer("smollm2")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{{ part['text'] }}{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    found = Chat("{text}", "{prompt:it is}{mask}", "hi").written(tokenizer, "x")
    assert found.source == (
        "<|im_start|>system\nhi<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n"
        "<|im_start|>assistant\n{prompt:it is}{mask}"
    )


def test_a_plain_template_is_split_into_turns():
    def turns(template):
        found = chat_of({"system": "s"}, template, "", "")
        return found.system, found.user, found.assistant

    assert turns("Review: {text}{prompt:\nSentiment:}{mask}") == ("s", "Review: {text}", "{prompt:Sentiment:}{mask}")
    assert turns("{a}\n{b} {prompt}\nIt {{is}}{mask}.") == ("s", "{a}\n{b}", "{prompt}\nIt {{is}}{mask}.")
    assert turns("{prompt:Judge:} {text}\nLabel:{mask}") == ("s", "{prompt:Judge:} {text}\nLabel:", "{mask}")
    assert chat_of(False, "{text}{mask}", "", "") is None


BAD = [
    ({"assistant": "{prompt:it is}"}, "has no {mask}"),
    ({"user": "{text}{prompt}", "assistant": "{prompt}{mask}"}, "2 {prompt} slots"),
    ({"user": "no field"}, "has no field"),
    ({"user": "{text"}, "does not parse"),
    ({"robot": "{text}"}, "no turn 'robot'"),
    ({"user": 3}, "give a text"),
]


@pytest.mark.parametrize(("turns", "says"), BAD)
def test_turns_that_cannot_be_used_are_refused(turns, says):
    with pytest.raises(TemplateError, match=says.replace("{", r"\{").replace("}", r"\}")):
        chat_of(turns, None, "{text}", CUE)


def test_refusals_say_what_to_do(chatty, causal, masked):
    with pytest.raises(TemplateError, match=r"no chat template.*leave it out"):
        written_template(causal, ["text"], chat=True)
    with pytest.raises(TemplateError, match="no causal language model"):
        written_template(masked, ["text"], chat=True)
    with pytest.raises(TemplateError, match="template and turns"):
        written_template(chatty("smollm2"), ["text"], "{text}{prompt}{mask}", {"user": "{text}"})
    tokenizer = chat_tokenizer("smollm2")
    for template, says in (("{{ raise_exception('not today') }}", "not today"), ("hello", "leaves out")):
        tokenizer.chat_template = template
        with pytest.raises(TemplateError, match=says):
            Chat("{text}", "{prompt}{mask}").written(tokenizer, "x")
    with pytest.raises(MethodError, match="chat is 'yes'"):
        PromptClassifier(causal, chat="yes").fit(X, ["a", "b", "a", "b"])


Y = [LABELS[label] for _, label in TEXTS]
ALL = [text for text, _ in TEXTS]
TURNS = {"system": "be brief.", "user": "Review: {text}", "assistant": "{prompt:It is}{mask}"}


@pytest.mark.parametrize("method", ["zero-shot", "deep-cue", "in-context"])
def test_an_artifact_gives_the_same_answers_wherever_it_is_used(method, chatty, tmp_path):
    backbone = chatty("llama-3")
    options = {"deep-cue": {"epochs": 1}, "in-context": {"shots": 2}}.get(method, {})
    fitted = PromptClassifier(backbone, method, chat=TURNS, label_words=WORDS, method_options=options).fit(ALL, Y)
    expected = fitted.predict_proba(ALL)
    fitted.save(tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["task"]["chat"]["system"] == "be brief."
    assert manifest["task"]["template"].startswith("<|begin_of_text|><|start_header_id|>system")
    artifact = load_artifact(tmp_path / "a")
    again = PromptClassifier.of(artifact, backbone)
    np.testing.assert_allclose(again.predict_proba(ALL), expected, atol=1e-6)
    assert again.chat == TURNS
    assert again.template is None
    assert again.fit(ALL, Y).artifact_.task.template == artifact.task.template
    shelf = Shelf(backbone)
    shelf.put("a", [artifact])
    engine = Engine(shelf)
    try:
        served = [answer.probabilities for answer in engine.ask([{"text": text} for text in ALL], ["a"])]
    finally:
        engine.close()
    np.testing.assert_allclose(np.array(served).reshape(expected.shape), expected, atol=1e-5)
