"""How long things take: ours and theirs, in turns."""

from __future__ import annotations

import torch
from common import DATA, rounds, seconds
from peers import (
    PeftLoop,
    bare_predict,
    fresh_model,
    peft_predict,
    peft_prefix_tuning,
    peft_prompt_tuning,
    plain_candidate_logits,
    plain_encoder_logits,
)
from tasks import CANDIDATES, CURVE_LENGTHS, ENCODERS, FIRST_CANDIDATE, LENGTH, MODEL, Bench
from torch.utils.flop_counter import FlopCounterMode

from cuecraft.artifact import HardPrompt
from cuecraft.backbone import load_backbone
from cuecraft.core.events import Event
from cuecraft.core.seeding import numpy_generator
from cuecraft.data import read_records
from cuecraft.methods import make_method
from cuecraft.methods.candidate import fresh_logits
from cuecraft.methods.prepare import make_task
from cuecraft.methods.problem import CalibrationKind, Problem, label_context
from cuecraft.methods.search.halving import best_swap, halving_rounds
from cuecraft.methods.search.space import filled_ids
from cuecraft.methods.untuned import starting_point
from cuecraft.task import Example


def candidates(position: int) -> list[tuple[int, int]]:
    """Return the swaps of one position that are timed."""
    return [(position, token) for token in range(FIRST_CANDIDATE, FIRST_CANDIDATE + CANDIDATES)]


@torch.no_grad()
def search(bench: Bench) -> dict[str, float]:
    backbone, context, prompt = bench.backbone, bench.train.context, HardPrompt(bench.cue)

    def packed(position: int) -> float:
        return seconds(lambda: backbone.score_swaps(context, prompt, candidates(position))) / CANDIDATES

    found = rounds(
        {
            "plain": lambda: seconds(lambda: plain_candidate_logits(backbone, context, prompt.swapped(3, 1000))),
            "ours": lambda: (packed(1) + packed(6)) / 2,
        },
        bench.rounds,
    )
    context_seconds = seconds(lambda: backbone.context(bench.examples, bench.task))
    # After so many candidates the reading of the contexts is paid for.
    break_even = context_seconds / (found["plain"] - found["ours"])
    return found | {
        "ratio": found["plain"] / found["ours"],
        "context_seconds": context_seconds,
        "break_even_candidates": break_even,
    }


@torch.no_grad()
def nanogcg(bench: Bench) -> dict[str, float] | str:
    try:
        from nanogcg import GCGConfig
        from nanogcg.gcg import GCG
    except Exception as error:  # not installed, or not made for this transformers
        return f"not run: {error}"
    backbone = bench.backbone
    row = max(range(len(bench.train)), key=lambda n: len(bench.train.context.pieces[n].before))
    context, prompt = bench.train.context.select([row]), HardPrompt(bench.cue)
    tokens = list(range(FIRST_CANDIDATE, FIRST_CANDIDATE + CANDIDATES))
    answer = context.renderer.label_ids[0][0]
    ids = [[*context.pieces[0].before, *prompt.swapped(3, token).token_ids, *answer] for token in tokens]
    engine = GCG(backbone.model, backbone.tokenizer, GCGConfig(use_prefix_cache=False, early_stop=False))
    engine.prefix_cache, engine.target_ids = None, torch.tensor([answer])
    inputs = backbone.embed(torch.tensor(ids))
    found = rounds(
        {
            "nanogcg": lambda: seconds(lambda: engine._compute_candidates_loss_original(CANDIDATES, inputs)),
            "ours": lambda: seconds(lambda: backbone.score_swaps(context, prompt, candidates(3))),
        },
        bench.rounds,
    )
    return found | {"ratio": found["nanogcg"] / found["ours"]}


def tune(bench: Bench, method: str) -> dict[str, float]:
    wrap = peft_prompt_tuning if method == "prompt-tuning" else peft_prefix_tuning
    peft = PeftLoop(wrap(fresh_model(MODEL), LENGTH), bench.backbone, bench.task, bench.examples)
    found = rounds({"peft": lambda: seconds(peft.epoch), "ours": lambda: _epoch(bench, method)}, bench.rounds)
    return found | {"ratio": found["peft"] / found["ours"]}


def _epoch(bench: Bench, method: str) -> float:
    """Return the seconds of the second epoch of a training run without a dev set."""
    import time

    times: list[float] = []

    def note(event: Event) -> None:
        if event.phase == method:
            times.append(time.perf_counter())

    problem = Problem(bench.backbone, bench.task, bench.train, None, report=note)
    options = {"epochs": 2, "calibration": "none", "prompt_length": LENGTH}
    options |= {"init": "vocabulary"} if method == "prompt-tuning" else {}
    make_method(method, options).fit(problem)
    return times[2] - times[1]


@torch.no_grad()
def predict(bench: Bench) -> dict[str, float]:
    peft = peft_prompt_tuning(fresh_model(MODEL), LENGTH).eval()
    backbone, task, texts = bench.backbone, bench.task, bench.test
    tuned = [bench.plain(bench.soft())]
    found = rounds(
        {
            "peft": lambda: seconds(lambda: peft_predict(peft, backbone, task, texts)),
            "bare": lambda: seconds(lambda: bare_predict(backbone, task, texts, bench.cue)),
            "bare_text_only": lambda: seconds(lambda: bare_predict(backbone, task, texts, ())),
            "ours": lambda: seconds(lambda: fresh_logits(backbone, task, tuned, texts)),
        },
        bench.rounds,
    )
    return found | {
        "ratio": found["peft"] / found["ours"],
        "overhead": found["ours"] / found["bare"],
        "overhead_text_only": found["ours"] / found["bare_text_only"],
        "texts_per_second": len(texts) / found["ours"],
    }


def many(bench: Bench) -> dict[str, float]:
    backbone, task, texts = bench.backbone, bench.task, bench.test[:64]
    runs = {}
    for length in (4, LENGTH):
        one = bench.plain(bench.soft(length))
        for count in (1, 16):
            asked = [one] * count
            runs[f"{count}x{length}"] = lambda asked=asked: seconds(lambda: fresh_logits(backbone, task, asked, texts))
    found = rounds(runs, bench.rounds)
    return found | {"ratio_4": found["16x4"] / found["1x4"], "ratio_8": found["16x8"] / found["1x8"]}


@torch.no_grad()
def roof(bench: Bench) -> dict[str, float]:
    backbone, context, prompt = bench.backbone, bench.train.context, HardPrompt(bench.cue)
    counter = FlopCounterMode(display=False)
    with counter:
        backbone.score_swaps(context, prompt, candidates(3))
    square = torch.randn(3072, 3072)
    found = rounds(
        {
            "matmul": lambda: 2 * 3072**3 / seconds(lambda: square @ square),
            "packed": lambda: (
                counter.get_total_flops() / seconds(lambda: backbone.score_swaps(context, prompt, candidates(3)))
            ),
        },
        bench.rounds,
    )
    return found | {"ratio": found["packed"] / found["matmul"], "flop": counter.get_total_flops()}


@torch.no_grad()
def curve(bench: Bench) -> dict[str, list[float]]:
    """Measure seconds per candidate against the length of the text, for eight texts."""
    backbone, prompt = bench.backbone, HardPrompt(bench.cue)
    words = backbone.tokenizer(" ".join(e.fields["text"] for e in bench.examples))["input_ids"]
    runs = {}
    for length in CURVE_LENGTHS:
        texts = [Example({"text": backbone.tokenizer.decode(words[n : n + length])}, 0) for n in range(8)]
        context = backbone.context(texts, bench.task)
        runs[f"plain {length}"] = lambda context=context: seconds(
            lambda: plain_candidate_logits(backbone, context, prompt)
        )
        runs[f"packed {length}"] = lambda context=context: (
            seconds(lambda: backbone.score_swaps(context, prompt, candidates(3))) / CANDIDATES
        )
    found = rounds(runs, bench.rounds)
    series = {name: [found[f"{name} {length}"] for length in CURVE_LENGTHS] for name in ("plain", "packed")}
    return {"tokens": list(CURVE_LENGTHS), **series}


def encoder(bench: Bench) -> dict[str, dict[str, object]]:
    """Time one search step of 24 swaps on each encoder: a plain loop, all swaps in sorted batches, and halving."""
    found = {}
    for model in ENCODERS:
        backbone = load_backbone(model)
        records = read_records(DATA / bench.name / "seed-13" / "train.jsonl")
        task = make_task(backbone, records)
        data = label_context(backbone, task, task.examples(records))
        problem = Problem(backbone, task, data, None, seed=13)
        current = starting_point(problem, filled_ids(problem, LENGTH), CalibrationKind.FITTED)
        prompt = current.prompt
        swaps = [(3, token) for token in range(FIRST_CANDIDATE, FIRST_CANDIDATE + CANDIDATES)]
        everything = [list(range(len(data)))]
        halving = halving_rounds(data.golds.strata, numpy_generator(13, "rounds"))
        winners: dict[str, tuple[int, int]] = {}

        def plain(backbone=backbone, data=data, current=current, prompt=prompt, swaps=swaps, winners=winners) -> None:
            losses = {}
            for swap in swaps:
                logits = plain_encoder_logits(backbone, data.context, prompt.swapped(*swap))
                losses[swap] = data.scores(current.calibration.apply(logits)).mean.loss
            winners["plain"] = min(swaps, key=lambda swap: losses[swap])

        def ours(name, rounds, backbone=backbone, data=data, current=current, swaps=swaps, winners=winners) -> None:
            winners[name], _ = best_swap(backbone, current, data, swaps, rounds)

        times = rounds(
            {
                "plain": lambda plain=plain: seconds(plain),
                "exact": lambda ours=ours, rows=everything: seconds(lambda: ours("exact", rows)),
                "halving": lambda ours=ours, rows=halving: seconds(lambda: ours("halving", rows)),
            },
            bench.rounds,
        )
        with torch.no_grad():
            scored = backbone.score_swaps(data.context, prompt, swaps[:4])
            alone = [plain_encoder_logits(backbone, data.context, prompt.swapped(*swap)) for swap in swaps[:4]]
        difference = float((scored - torch.stack(alone)).abs().max())
        found[model] = times | {
            "ratio": times["plain"] / times["halving"],
            "ratio_exact": times["plain"] / times["exact"],
            "max_logit_diff": difference,
            "same_winner_exact": winners["plain"] == winners["exact"],
            "same_winner_halving": winners["plain"] == winners["halving"],
        }
    return found
