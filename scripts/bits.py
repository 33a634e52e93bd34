"""Hashes of all that backbones compute, bit for bit, on tiny models: two commits that agree here compute the same.

    python scripts/bits.py --out before.json
    python scripts/bits.py --against before.json

Every architecture and head of tests/architectures.py; prompts in words, in vectors, on every layer and as keys and
values, with a class head and without; before the text and after it; label words of one token and of several; texts
kept and read again; one prompt, several over the same texts, each over its own texts, rows of different prompts, swaps,
and gradients. Bits depend on the machine and on the number of threads, so both runs belong on one machine; one thread
is set here. `--against` prints what differs and ends with exit code 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from architectures import ARCHITECTURES, CLASSES, model_class, tiny_model
from conftest import TEXTS, byte_tokenizer, make_examples, make_task, word_tokenizer

from cuecraft.backbone import ClassHead, load_backbone
from cuecraft.core.errors import CuecraftError
from cuecraft.methods.problem import label_context
from cuecraft.artifact import DeepCue, HardPrompt, PrefixPrompt, SoftPrompt

LONG = {"negative": ("a bore",), "positive": ("a joy", "a film of joy")}
WORDED = (("last", "{text}{prompt: it was}{mask}"), ("first", "{prompt}{text} so{mask}"))
POOLED = (("last", "{text}{prompt}"), ("first", "Say: {prompt}{text}"))
IDS = (11, 12, 13)


def drawn(*shape: int) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def prompts_of(backbone: Any, head: ClassHead | None) -> Iterator[tuple[str, Any]]:
    """Yield a prompt of each kind that the backbone takes."""
    base = HardPrompt(IDS, head)
    yield "hard", base
    yield "soft", SoftPrompt(drawn(len(IDS), backbone.hidden_size), head)
    with suppress(CuecraftError):  # ALBERT has no list of layers
        yield "deep", DeepCue(base, drawn(*backbone.offsets_shape(len(IDS))))
    with suppress(CuecraftError):
        yield "prefix", PrefixPrompt(base, drawn(*backbone.states_shape(2)))


def leaf(prompt: Any) -> tuple[Any, Tensor] | None:
    """Return a prompt whose tensor asks for a gradient, and the tensor; None for words."""
    for name in ("offsets", "states", "tokens"):
        tensor = getattr(prompt, name, None)
        if isinstance(tensor, Tensor):
            tensor = tensor.clone().requires_grad_()
            return replace(prompt, **{name: tensor}), tensor
    return None


def computed(backbone: Any, context: Any, prompt: Any, task: Any) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield the results of each way to ask for one prompt's answers."""
    labels = context.labels
    kept, again = context.context, context.context.unread()
    with torch.no_grad():
        yield "logits", [backbone.class_logits(kept, prompt)]
        yield "read anew", [backbone.class_logits(again, prompt)]
        if prompt.head is not None:
            yield "features", [backbone.features(kept, prompt)]
        if prompt.kind == "hard":
            yield "swaps", [backbone.score_swaps(kept, prompt, [(0, 20), (1, 21), (2, 22)])]
            yield "candidates", [backbone.score_swaps(kept, prompt, [(1, 20), (1, 21), (1, 22)])]
        ready = backbone.ready(prompt, task)
        pieces = ready.renderer.render(make_examples())
        yield "rows", backbone.mixed_logits([(ready, one) for one in pieces])
    found = leaf(prompt)
    if found is not None:
        given, tensor = found
        loss = torch.nn.functional.cross_entropy(backbone.class_logits(kept, given), labels)
        yield "gradient", list(torch.autograd.grad(loss, [tensor]))


def of_backbone(backbone: Any, kind: str) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield all results of a backbone by name."""
    for place, template in POOLED if kind == "sequence" else WORDED:
        for words in (None, LONG) if kind == "causal" else (None,):
            for has_head in (True,) if kind == "sequence" else (False, True):
                task = make_task(template, words)
                case = f"{place}/{'long' if words else 'short'}/{'head' if has_head else 'words'}"
                try:
                    context = label_context(backbone, task, make_examples())
                except CuecraftError as error:
                    yield f"{case}/refused: {error}", []
                    continue
                with torch.no_grad():
                    width = backbone.features(context.context.select([0]), HardPrompt(IDS)).shape[-1]
                head = ClassHead(drawn(2, width), drawn(2)) if has_head else None
                own = dict(prompts_of(backbone, head))
                for name, prompt in own.items():
                    try:
                        for way, tensors in computed(backbone, context, prompt, task):
                            yield f"{case}/{name}/{way}", tensors
                    except CuecraftError as error:
                        yield f"{case}/{name}/refused: {error}", []
                with torch.no_grad():
                    alike = [prompt for name, prompt in own.items() if name != "prefix"]
                    halves = [context.context.select(range(4)), context.context.select(range(4, len(TEXTS)))]
                    yield f"{case}/many", [backbone.class_logits_many(context.context, alike)]
                    yield f"{case}/each", backbone.class_logits_each(list(zip(halves, alike, strict=False)))


def hashes() -> dict[str, str]:
    """Return the SHA-256 of each result by name."""
    torch.set_num_threads(1)
    tokenizers = {False: byte_tokenizer.__wrapped__(), True: word_tokenizer.__wrapped__()}
    found = {}
    for kind in CLASSES:
        for name, architecture in ARCHITECTURES.items():
            if not model_class(name, kind):
                continue
            tokenizer = tokenizers[architecture.is_encoder]
            try:
                backbone = load_backbone((tiny_model(name, kind, tokenizer), tokenizer), kind)
            except CuecraftError as error:
                found[f"{kind}/{name}/refused: {error}"] = ""
                continue
            for case, tensors in of_backbone(backbone, kind):
                key = hashlib.sha256()
                for tensor in tensors:
                    key.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
                    key.update(tensor.detach().contiguous().numpy().tobytes())
                found[f"{kind}/{name}/{case}"] = key.hexdigest()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the hashes here")
    parser.add_argument("--against", type=Path, help="compare with the hashes that another commit wrote")
    options = parser.parse_args()
    found = hashes()
    print(f"{len(found)} results, {sum('refused' in case for case in found)} of them refusals")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.against:
        before = json.loads(options.against.read_text(encoding="utf-8"))
        differing = sorted(case for case in before.keys() | found.keys() if before.get(case) != found.get(case))
        print("\n".join(differing) or "no bit differs")
        return bool(differing)
    return 0


if __name__ == "__main__":
    sys.exit(main())
