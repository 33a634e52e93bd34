"""Prefix-tuning in a training loop of one's own: forward, loss, backward, step.

One sees the loss on label words fall while the model's weights stay as they are, the accuracy on texts that were not
trained on, and the size of the prefix on disk. About two minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from cuecraft import PrefixTuning, load_backbone
from cuecraft.data import k_shot_split, read_records, subsample

ASK = "\nIn one word, this is"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--data", default="demo:movie-sentences", help="a file with text and label, or demo: data")
    parser.add_argument("--shots", type=int, default=8, help="rows of each class")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("runs/prefix.safetensors"))
    args = parser.parse_args()

    backbone = load_backbone(args.model)
    model, tokenizer = backbone.model, backbone.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    split = k_shot_split(read_records(args.data), args.shots, seed=0, with_dev=False)
    classes = sorted({record.label for record in split.train})
    words = torch.tensor([tokenizer(f" {name}", add_special_tokens=False)["input_ids"][0] for name in classes])

    prefix = PrefixTuning(model, prefix_projection=True)
    prefix.prefix_tokens = tokenizer("Is the text negative or positive?", add_special_tokens=False)["input_ids"]
    optimizer = torch.optim.AdamW([part for part in prefix.parameters() if part.requires_grad], lr=1e-3)

    def logits(records):
        texts = [record.fields["text"] + ASK for record in records]
        # Padded on the left, so that the answer follows the last token of every row.
        batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        return prefix(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, -1, words]

    def truth(records):
        return torch.tensor([classes.index(record.label) for record in records])

    order = torch.Generator().manual_seed(0)
    for epoch in range(args.epochs):
        rows = [split.train[n] for n in torch.randperm(len(split.train), generator=order).tolist()]
        for start in range(0, len(rows), 8):
            loss = torch.nn.functional.cross_entropy(logits(rows[start : start + 8]), truth(rows[start : start + 8]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss of its last batch {loss.item():.3f}")

    test = subsample(split.rest, 100, seed=0)
    with torch.no_grad():
        hits = [(logits([row]).argmax(-1) == truth([row])).item() for row in test]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: states.contiguous() for name, states in prefix.prefix_state_dict().items()}, args.out)
    size = args.out.stat().st_size
    print(f"accuracy on {len(test)} other texts: {sum(hits) / len(hits):.3f}; {args.out}: {size:,} bytes")


if __name__ == "__main__":
    main()
