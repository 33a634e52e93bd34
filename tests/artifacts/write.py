"""Write the stored artifacts of a schema, with the code of a commit that had it (see README.md).

`python write.py 3` with that commit's `src` on PYTHONPATH writes those of schema 3; `python write.py model` writes the
tiny model that all of them are tuned on.
"""

import json
import os
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
ASKED = ("a joy from start to finish", "the plot is dull and the actors cold", "it was never good")
TEXTS = (
    ("a joy from start to finish", "good"),
    ("a bore and then a bore again", "bad"),
    ("the story is warm and bright", "good"),
    ("the plot is dull", "bad"),
    ("great love story", "good"),
    ("awful", "bad"),
    ("good actors", "good"),
    ("it was never good", "bad"),
)
X, Y = [text for text, _ in TEXTS], [label for _, label in TEXTS]
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUICK = {"epochs": 4, "learning_rate": 0.1, "batch_size": 4}


def write_model(folder):
    """Write a Llama of two layers in float16, with a byte-level tokenizer that knows a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for word in "good bad great dull it was".split():
        for end in range(1, len(word) + 1):
            pair = ("Ġ" + word[: end - 1], word[end - 1])
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
    raw = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHAT_TEMPLATE
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True}
    config = LlamaConfig(vocab_size=len(tokens), intermediate_size=32, max_position_embeddings=512, **shape, **ends)
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.25
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), separators=(",", ":")) + "\n")


def fitted(method, seed=0, words=("bad", "good"), classes=("bad", "good"), **more):
    """Return a classifier over the tiny model, which answers in single tokens."""
    from cuecraft import PromptClassifier

    template = more.pop("template", "{text}{prompt: it was}{mask}")
    options = {"template": template, "label_words": dict(zip(classes, words, strict=True)), "seed": seed}
    if more.get("head") == "sequence":
        del options["label_words"]
    method_options = more.pop("method_options", QUICK)
    classifier = PromptClassifier("model", method, method_options=method_options, **options, **more)
    labels = [classes[label == "good"] for label in Y]
    return classifier.fit(X, labels, dev=(X, labels))  # on the same texts, so that what was tuned ships


def joined(first, others):
    """Return a classifier whose prompt answers together with others."""
    from cuecraft import PromptClassifier
    from cuecraft.prompts import Artifact  # a name of earlier commits

    backbone, first = first.backbone_, first.artifact_
    kept = first.manifest
    described = {name: getattr(kept, name) for name in ("method", "method_options", "seed", "metrics", "data")}
    made = Artifact.create(
        first.prompt,
        first.calibration,
        first.task,
        backbone,
        classes=first.classes,
        others=others,
        **described,
    )
    return PromptClassifier.of(made, backbone)


def family():
    """Return two tasks whose prompts share their offsets."""
    from cuecraft.family import PromptFamily
    from cuecraft.tune.multitask import MultitaskTuning

    lengths = ["long" if len(text) > 17 else "short" for text in X]
    tasks = {"tone": (X, Y), "length": (X, lengths)}
    options = MultitaskTuning(share="offsets", epochs=4, learning_rate=0.1)
    return PromptFamily("model", options).fit(tasks, dev=tasks)


def of_schema_1():
    ids = {"words": ("dull", "great"), "classes": (0, 1)}
    search = {"search.steps": 3, "search.candidates": 5, **{f"tune.{name}": value for name, value in QUICK.items()}}
    yield "hard", fitted("autoprompt", method_options={"steps": 3, "candidates": 5})
    yield "soft", fitted("prompt-tuning", **ids)
    yield "head", fitted("prompt-tuning", template="{prompt: it was}{text}", head="sequence")
    yield "hybrid", fitted("hybrid", method_options=search)


def of_schema_2():
    yield "deep", fitted("deep-cue", max_tokens=64)


def of_schema_3():
    yield "prefix", fitted("p-tuning-v2", method_options=QUICK | {"prefix_length": 3})
    yield "lora", fitted("lora", method_options={"epochs": 4, "learning_rate": 0.05, "rank": 2})
    yield "lora-prompt", fitted("lora-prompt", method_options={"epochs": 4, "learning_rate": 0.05, "rank": 1})
    yield "probe", fitted("linear-probe", method_options={})
    yield "family", family()


def of_schema_4():
    first, *rest = [fitted("deep-cue", seed) for seed in range(3)]
    yield "several", joined(first, [own.prompt_ for own in rest])
    kinds = [fitted("prompt-tuning"), fitted("p-tuning-v2")]
    yield "kinds", joined(fitted("zero-shot", method_options={}), [own.prompt_ for own in kinds])


def of_schema_5():
    from cuecraft.prompts import CalibratedPrompt

    kinds = {"none": "prompt-tuning", "fitted": "deep-cue", "batch": "deep-cue"}
    first, *rest = [fitted(own, method_options=QUICK | {"calibration": kind}) for kind, own in kinds.items()]
    parts = [own.artifact_ for own in rest]
    yield "several", joined(first, [CalibratedPrompt(own.prompt, own.calibration) for own in parts])


def of_schema_6():
    yield "shots", fitted("in-context", method_options={"shots": 3})
    yield "nearest", fitted("in-context", method_options={"shots": 2, "choice": "nearest"})
    yield "behind-shots", fitted("deep-cue", method_options=QUICK | {"shots": 2})


def of_schema_7():
    turns = {"system": "Judge.", "user": "{text}"}
    yield "chat", fitted("deep-cue", template=None, chat=turns)
    yield "chat-shots", fitted("in-context", template=None, chat=turns, method_options={"shots": 2})
    options = {"epochs": 4, "folds": 2, "learning_rates": (0.3,)}
    yield "unit-head", fitted("contrastive", template="{prompt: it was}{text}", head="sequence", method_options=options)


def of_schema_8():
    yield "labels", fitted("deep-cue", words=("dull", "great"), classes=(0, 1))
    yield "shots", fitted("in-context", method_options={"shots": 2})


def save(folder, made):
    """Write an artifact, or a family, and what it answers to the texts `ASKED` by folder."""
    made.save(folder)
    if hasattr(made, "artifacts"):
        return {
            f"{folder}/tasks/{name}": made.classifier(name).predict_proba(ASKED).tolist() for name in made.artifacts
        }
    return {str(folder): made.predict_proba(ASKED).tolist()}


def write_artifacts(schema):
    """Write the artifacts of the schema that `cuecraft` has, and add their answers to answers.json."""
    os.chdir(HERE)  # so that the backbone is called `model`
    path = Path("answers.json")
    document = json.loads(path.read_text()) if path.exists() else {"texts": ASKED}
    for name, made in globals()[f"of_schema_{schema}"]():
        document |= save(Path(f"schema-{schema}-{name}"), made)
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    (what,) = sys.argv[1:]
    write_model(HERE / "model") if what == "model" else write_artifacts(int(what))
