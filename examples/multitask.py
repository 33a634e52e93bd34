"""Two tasks on one frozen model: an adapter of PEFT for each, next to one prompt that both share.

PEFT's `PromptTuningConfig(prompt_tuning_init="TEXT")` is trained for each task, by a plain loop: last epoch, no
calibration; `PromptFamily` (after Wang et al., ICLR 2023) has both. One sees the accuracies on other texts. About ten
minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from peft import PromptTuningConfig, get_peft_model

from cuecraft import PromptFamily, load_backbone
from cuecraft.data import k_shot_split, read_records, subsample
from cuecraft.methods.train.multitask import MultitaskTuning

WORDS = "\nIn one word, this is"
TOKENIZER = "runs/example-tokenizer"  # PEFT reads the starting text with a tokenizer of its own


def columns(records):
    return [dict(record.fields) for record in records], [record.label for record in records]


def peft_accuracy(backbone, train, test, epochs):
    tokenizer, classes = backbone.tokenizer, sorted({record.label for record in train})
    words = torch.tensor([tokenizer(f" {name}", add_special_tokens=False)["input_ids"][0] for name in classes])
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6, tokenizer_name_or_path=TOKENIZER)
    config.prompt_tuning_init, config.prompt_tuning_init_text = "TEXT", WORDS
    model = get_peft_model(copy.deepcopy(backbone.model), config)
    optimizer = torch.optim.AdamW(model.prompt_encoder.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(0)

    def logits(record):
        ids = tokenizer(record.fields["text"] + WORDS, return_tensors="pt")["input_ids"]
        return model(input_ids=ids).logits[:, -1, words]

    for _ in range(epochs * len(train) // 8):
        rows = [train[n] for n in torch.randperm(len(train), generator=order)[:8].tolist()]
        truth = torch.tensor([classes.index(row.label) for row in rows])
        loss = torch.nn.functional.cross_entropy(torch.cat([logits(row) for row in rows]), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return sum(classes[int(logits(row).argmax())] == row.label for row in test) / len(test)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="demo:smollm2-135m")
parser.add_argument("--data", default="demo:movie-sentences", help="a file with text and label, or demo: data")
parser.add_argument("--shots", type=int, default=8, help="rows of each class")
parser.add_argument("--epochs", type=int, default=5)
args = parser.parse_args()
backbone = load_backbone(args.model)
backbone.tokenizer.save_pretrained(TOKENIZER)
sources = {"reviews": args.data, "topics": Path(__file__).with_name("topics.jsonl")}
splits = {name: k_shot_split(read_records(source), args.shots, 0, False) for name, source in sources.items()}
family = PromptFamily(backbone, MultitaskTuning(share="embeddings", epochs=args.epochs))
family.fit({name: columns(split.train) for name, split in splits.items()})
for name, split in splits.items():
    test = subsample(split.rest, 60, seed=0)
    theirs = peft_accuracy(backbone, split.train, test, args.epochs)
    ours = family.classifier(name).score(*columns(test))
    print(f"{name:>8}: PEFT alone {theirs:.3f}, shared prompt {ours:.3f} on {len(test)} other texts")
