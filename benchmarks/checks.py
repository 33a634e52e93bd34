"""What a training step holds in memory, and whether the fast paths give the plain answers."""

from __future__ import annotations

import statistics
from dataclasses import replace

import torch
from peers import (
    PeftLoop,
    fresh_model,
    peft_prompt_tuning,
    plain_candidate_logits,
)
from tasks import CANDIDATES, FIRST_CANDIDATE, LENGTH, MEMORY_LENGTHS, MEMORY_TEXTS, MODEL, Bench

from cuecraft.artifact import DeepCue, HardPrompt, SoftPrompt
from cuecraft.backbone import CausalBackbone, Context
from cuecraft.methods import make_method
from cuecraft.methods.candidate import fresh_logits
from cuecraft.methods.problem import Problem, label_context
from cuecraft.study.compare.trial import peak_bytes
from cuecraft.task import Example, Template


def memory(bench: Bench) -> dict[str, dict[str, float]]:
    found = {}
    words = bench.backbone.tokenizer(" ".join(e.fields["text"] for e in bench.examples))["input_ids"]
    for length in MEMORY_LENGTHS:
        texts = [
            Example({"text": bench.backbone.tokenizer.decode(words[n : n + length])}, n % bench.classes)
            for n in range(MEMORY_TEXTS)
        ]
        ours = statistics.median(_our_step(bench, texts) for _ in range(bench.rounds))
        theirs = _peft_step(bench, texts)
        found[str(length)] = {"peft": theirs, "ours": ours, "ratio": theirs / ours}
    return found


def _peft_step(bench: Bench, texts: list[Example]) -> int:
    """Return the peak bytes of a step of PEFT's loop."""
    peft = PeftLoop(peft_prompt_tuning(fresh_model(MODEL), LENGTH), bench.backbone, bench.task, texts)
    peft.step(peft.texts)  # the optimizer's state and the gradients come into being
    return int(statistics.median(peak_bytes(lambda: peft.step(peft.texts)) for _ in range(bench.rounds)))


def _our_step(bench: Bench, texts: list[Example]) -> int:
    """Return the peak bytes of a step, the reading of its contexts included."""
    backbone = bench.backbone
    vectors = bench.soft().embeddings.detach().requires_grad_()
    optimizer = torch.optim.AdamW([vectors], lr=1e-3)

    def step() -> None:
        data = label_context(backbone, bench.task, texts)
        optimizer.zero_grad()
        logits = backbone.class_logits(data.context, SoftPrompt(vectors))
        torch.nn.functional.cross_entropy(logits, data.labels).backward()
        optimizer.step()

    step()
    return peak_bytes(step)


@torch.no_grad()
def differences(bench: Bench) -> dict[str, float]:
    """Return the greatest difference of each fast path from the plain forward of one unpadded text at a time."""
    backbone, prompt, soft = bench.backbone, HardPrompt(bench.cue), bench.soft()
    examples = bench.examples[::4]
    context = backbone.context(examples, bench.task)
    vectors = prompt.vectors(backbone.embed)
    generator = torch.Generator().manual_seed(0)
    offsets = 0.02 * torch.randn(len(backbone.layers), LENGTH, backbone.hidden_size, generator=generator)
    together = backbone.class_logits_many(context, [prompt, soft, DeepCue(prompt, offsets)])
    tokens = range(FIRST_CANDIDATE, FIRST_CANDIDATE + CANDIDATES)
    swaps = [(position, token) for position, token in zip([*range(LENGTH)] * 3, tokens, strict=True)]
    packed = backbone.score_swaps(context, prompt, swaps)
    checked = {swap: packed[n] for n, swap in enumerate(swaps) if n % 5 == 0}
    tailed = replace(bench.task, template=Template("{text}{prompt}\nAnswer:{mask}"))
    first = replace(bench.task, template=Template("{prompt} {text}\nAnswer:{mask}"))
    found = {
        "cached": _worst(backbone, context, backbone.class_logits(context, prompt), vectors),
        "packed": max(
            _worst(backbone, context, logits, prompt.swapped(*swap).vectors(backbone.embed))
            for swap, logits in checked.items()
        ),
        "many": max(_worst(backbone, context, together[n], v) for n, v in enumerate((vectors, soft.embeddings))),
        "deep": _worst(backbone, context, together[2], vectors, offsets),
        "unkept": _worst(
            backbone,
            context,
            fresh_logits(backbone, bench.task, [bench.plain(soft)], examples)[0],
            soft.embeddings,
        ),
    }
    for name, task in (("words after", tailed), ("prompt first", first)):
        other = backbone.context(examples, task)
        found[name] = _worst(backbone, other, backbone.class_logits(other, prompt), vectors)
    return found


def _worst(
    backbone: CausalBackbone,
    context: Context,
    ours: torch.Tensor,
    vectors: torch.Tensor,
    offsets: torch.Tensor | None = None,
) -> float:
    """Return the greatest difference from plain forward passes, one unpadded text each, over the full vocabulary."""
    columns = [words[0][0] for words in context.renderer.label_ids]
    rows = []
    for piece in context.pieces:
        before, after = (backbone.embed(torch.tensor(ids, dtype=torch.long)) for ids in (piece.before, piece.after))
        handles = []
        if offsets is not None:
            for layer, offset in zip(backbone.model.base_model.layers, offsets, strict=True):
                handles.append(layer.register_forward_pre_hook(_adding(offset, len(before))))
        rows.append(backbone.model(inputs_embeds=torch.cat([before, vectors, after])[None]).logits[0, -1, columns])
        for handle in handles:
            handle.remove()
    return float((ours - torch.stack(rows)).abs().max())


def _adding(offset: torch.Tensor, start: int) -> object:
    def hook(module: object, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0].clone()
        hidden[:, start : start + len(offset)] += offset
        return (hidden, *args[1:])

    return hook


def trajectory(bench: Bench) -> dict[str, object]:
    """Compare the path of a short search with packed scoring and with one plain forward per candidate."""
    half = bench.train.select(list(range(0, len(bench.train), 4)))
    problem = Problem(bench.backbone, bench.task, half, None, seed=13)
    method = make_method("autoprompt", {"steps": 5, "candidates": 8, "prompt_length": 4, "scoring": "exact"})
    packed = method.fit(problem).trace
    fast = CausalBackbone.score_swaps

    def slow(self, context, prompt, swaps):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            return torch.stack([plain_candidate_logits(self, context, prompt.swapped(*swap)) for swap in swaps])

    CausalBackbone.score_swaps = slow  # type: ignore[method-assign]
    try:
        plain = method.fit(problem).trace
    finally:
        CausalBackbone.score_swaps = fast  # type: ignore[method-assign]
    return {
        "accepted": sum(bool(event.get("accepted")) for event in packed),
        "same_swaps": [e.get("token_ids") for e in packed] == [e.get("token_ids") for e in plain],
        "max_loss_diff": max(abs(a["train_loss"] - b["train_loss"]) for a, b in zip(packed, plain, strict=True)),
    }
