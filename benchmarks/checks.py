"""What a training step holds in memory, and whether the fast paths give the plain answers."""

from __future__ import annotations

from dataclasses import replace

import torch
from common import peak_bytes
from peers import (
    PeftLoop,
    fresh_model,
    peft_prompt_tuning,
    plain_candidate_logits,
)
from tasks import CANDIDATES, FIRST_CANDIDATE, LENGTH, MEMORY_LENGTHS, MEMORY_TEXTS, MODEL, Bench

from cuecraft.backbone import CausalBackbone
from cuecraft.method import (
    Problem,
    fresh_logits,
    label_context,
)
from cuecraft.prompts import DeepCue, HardPrompt, SoftPrompt
from cuecraft.task import Example
from cuecraft.tune import make_method


def memory(bench: Bench) -> dict[str, dict[str, float]]:
    found = {}
    words = bench.backbone.tokenizer(" ".join(e.fields["text"] for e in bench.examples))["input_ids"]
    for length in MEMORY_LENGTHS:
        texts = [
            Example({"text": bench.backbone.tokenizer.decode(words[n : n + length])}, n % bench.classes)
            for n in range(MEMORY_TEXTS)
        ]
        ours = min(_our_step(bench, texts) for _ in range(3))
        theirs = _peft_step(bench, texts)
        found[str(length)] = {"peft": theirs, "ours": ours, "ratio": theirs / ours}
    return found


def _peft_step(bench: Bench, texts: list[Example]) -> int:
    """Return the peak bytes of a step of PEFT's loop."""
    peft = PeftLoop(peft_prompt_tuning(fresh_model(MODEL), LENGTH), bench.backbone, bench.task, texts)
    peft.step(peft.texts)  # the optimizer's state and the gradients come into being
    return min(peak_bytes(lambda: peft.step(peft.texts)) for _ in range(2))


def _our_step(bench: Bench, texts: list[Example]) -> int:
    """Return the peak bytes of a step, with the contexts that it works on."""
    backbone = bench.backbone
    data = label_context(backbone, bench.task, texts)
    vectors = bench.soft().embeddings.detach().requires_grad_()

    def step() -> None:
        logits = backbone.class_logits(data.context, SoftPrompt(vectors))
        torch.nn.functional.cross_entropy(logits, data.labels).backward()

    step()
    kept = {id(state): state.nbytes for state in data.context.states if state is not None}
    return peak_bytes(step) + sum(kept.values())


@torch.no_grad()
def differences(bench: Bench) -> dict[str, float]:
    """Return the greatest difference of each fast path from the plain forward of one unpadded text at a time."""
    backbone, prompt = bench.backbone, HardPrompt(bench.cue)
    data = bench.train.select(list(range(0, len(bench.train), 4)))
    context = data.context
    columns = [words[0][0] for words in context.renderer.label_ids]

    def plain(inputs_of: object, offsets: torch.Tensor | None = None) -> torch.Tensor:
        rows = []
        for piece in context.pieces:
            text = backbone.embed(torch.tensor(piece.before))
            handles = []
            if offsets is not None:
                for layer, offset in zip(backbone.model.base_model.layers, offsets, strict=True):
                    handles.append(layer.register_forward_pre_hook(_adding(offset, len(text))))
            inputs = torch.cat([text, inputs_of])[None]
            rows.append(backbone.model(inputs_embeds=inputs).logits[0, -1, columns])
            for handle in handles:
                handle.remove()
        return torch.stack(rows)

    def worst(ours: torch.Tensor, theirs: torch.Tensor) -> float:
        return float((ours - theirs).abs().max())

    vectors, soft = prompt.vectors(backbone.embed), bench.soft()
    swapped = prompt.swapped(3, FIRST_CANDIDATE)
    offsets = torch.randn(
        len(backbone.layers), LENGTH, backbone.hidden_size, generator=torch.Generator().manual_seed(0)
    )
    deep = DeepCue(prompt, offsets * 0.02)
    together = backbone.class_logits_many(context, [prompt, soft, deep])
    fresh = fresh_logits(
        backbone, bench.task, [bench.plain(soft)], [bench.examples[n] for n in range(0, len(bench.examples), 4)]
    )
    return {
        "cached": worst(backbone.class_logits(context, prompt), plain(vectors)),
        "packed": worst(
            backbone.score_candidates(context, prompt, 3, range(FIRST_CANDIDATE, FIRST_CANDIDATE + CANDIDATES))[0],
            plain(swapped.vectors(backbone.embed)),
        ),
        "many": max(worst(together[0], plain(vectors)), worst(together[1], plain(soft.embeddings))),
        "deep": worst(together[2], plain(vectors, deep.offsets)),
        "fresh": worst(fresh[0], plain(soft.embeddings)),
    }


def _adding(offset: torch.Tensor, start: int) -> object:
    def hook(module: object, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0].clone()
        hidden[:, start:] += offset
        return (hidden, *args[1:])

    return hook


def trajectory(bench: Bench) -> dict[str, object]:
    """Compare the path of a short search with packed scoring and with one plain forward per candidate."""
    half = bench.train.select(list(range(0, len(bench.train), 4)))
    problem = replace(Problem(bench.backbone, bench.task, half, None, seed=13), backbone=bench.backbone)
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
