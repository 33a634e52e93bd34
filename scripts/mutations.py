"""Wrong formulas that the default test suite has to catch: one at a time is put in, and the tests are run.

    python scripts/mutations.py [--only masks] [--list] [--whole]

Each mutation replaces a line of the core that occurs once in the source: masks, positions, offsets, normalisers,
calibration, halving, folds, resuming, hashing. It is caught where a test fails. The test modules named with it are run
first; where these pass, and with `--whole` always, the whole default suite is. Exit code 1 where one is not caught.
The source itself stays as it is: each mutation is made in a copy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "cuecraft"


@dataclass(frozen=True)
class Mutation:
    """One wrong formula.

    Args:
        subject: what it is about.
        before: text that occurs once in the source.
        after: what stands there in the copy.
        tests: modules that are run first, without `test_` and ending.
    """

    subject: str
    before: str
    after: str
    tests: str


M = Mutation
MUTATIONS = [
    M("masks", "< past.lengths[:, None]\n", "<= past.lengths[:, None]\n", "causal mixed"),
    M(
        "masks",
        "plan.sees.to(inputs.device) & plan.valid[:, None, :]",
        "plan.sees.to(inputs.device) | plan.valid[:, None, :]",
        "causal",
    ),
    M(
        "masks",
        "real = functional.pad(real, (0, past.prefix_length), value=True)",
        "real = functional.pad(real, (0, past.prefix_length), value=False)",
        "prefix",
    ),
    M(
        "masks",
        "valid[row, stop - len(own) : stop] = True",
        "valid[row, max(0, stop - len(own) - 1) : stop] = True",
        "causal",
    ),
    M("masks", "ancestors[node] |= ancestors[parent]", "ancestors[node, parent] = True", "causal"),
    M(
        "masks",
        "own[start:stop, len(row.lead) : start] = False",
        "own[start:stop, len(row.lead) : start] = True",
        "mixed",
    ),
    M(
        "masks",
        "own[end:stop, end:stop] = part.prompt.branches.ancestors",
        "own[end:stop, end:stop] = torch.ones_like(part.prompt.branches.ancestors).tril()",
        "mixed",
    ),
    M(
        "masks",
        "functional.pad(mask, (scores.shape[-1] - mask.shape[-1], 0))",
        "functional.pad(mask, (0, scores.shape[-1] - mask.shape[-1]))",
        "prefix",
    ),
    M("masks", "valid[row, :stop] = True", "valid[row, : stop - size] = True", "encoder"),
    M("masks", "text[rows, columns] = False", "text[rows, columns] = True", "encoder"),
    M("masks", "real = real & plan.sees_past[:, None]", "real = real | plan.sees_past[:, None]", "folding"),
    M("positions", "past.lengths[:, None] + past.prefix_length", "past.lengths[:, None]", "prefix"),
    M("positions", ".sum(-1).to(torch.long) - 1", ".sum(-1).to(torch.long)", "causal"),
    M("positions", "before * plan.sees_past)", "before)", "folding"),
    M(
        "positions",
        "own = [text[shared:] for text in texts]",
        "own = [text[shared - 1 :] for text in texts]",
        "causal in_context",
    ),
    M("positions", "end - 1 if part.path else len(row.lead) - 1", "end - 1", "mixed"),
    M(
        "positions",
        "plan.valid.to(torch.long).sum(1) - 1",
        "plan.valid.to(torch.long).sum(1) - 2",
        "encoder",
    ),
    M("attention", "(width**-0.5 if scaling is None else scaling)", "width**-0.5", "causal prefix"),
    M(
        "attention",
        "(torch.cat([k, own[0]], dim=2), torch.cat([v, own[1]], dim=2))",
        "(torch.cat([own[0], k], dim=2), torch.cat([own[1], v], dim=2))",
        "prefix",
    ),
    M("offsets", "* (codes >= 0)[..., None]", "* (codes > 0)[..., None]", "deep_cue"),
    M(
        "offsets",
        "self.offsets[:, [cue[at] for at in positions]]",
        "self.offsets[:, [cue[0] for at in positions]]",
        "deep_cue prompt_kinds",
    ),
    M(
        "offsets",
        "torch.tensor([self._firsts[row] for row in rows])[:, None] * is_cue",
        "torch.tensor([0 for row in rows])[:, None] * is_cue",
        "gradients tune",
    ),
    M(
        "offsets",
        "first.new_zeros(first.shape[0], len(own), first.shape[2]) if part is None",
        "first.new_ones(first.shape[0], len(own), first.shape[2]) if part is None",
        "deep_cue mixed",
    ),
    M(
        "normalisers",
        "table[:, :, read, column] - norms[:, :, read - 1]",
        "table[:, :, read, column] - norms[:, :, 0]",
        "causal",
    ),
    M(
        "normalisers",
        "of_words[..., own.to(of_words.device)].logsumexp(-1) for own",
        "of_words[..., own.to(of_words.device)].amax(-1) for own",
        "causal verbalizer",
    ),
    M(
        "normalisers",
        "return torch.stack(parts, dim=-1).logsumexp(-1)",
        "return torch.stack(parts, dim=-1).amax(-1)",
        "causal memory",
    ),
    M(
        "normalisers",
        "return (hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)",
        "return (hidden * weights[..., None]).sum(1) / weights.shape[1]",
        "encoder",
    ),
    M(
        "threads",
        'ContextVar("cuecraft_pass", default=None)',
        'type("One", (), {"of_all": None, "get": lambda self: self.of_all, "set": lambda self, own: '
        '(self.of_all, setattr(self, "of_all", own))[0], "reset": lambda self, own: setattr(self, "of_all", own)})()',
        "threads",
    ),
    M("threads", "lambda: (nullcontext(), _within(own))", "lambda: (nullcontext(), nullcontext())", "threads"),
    M("calibration", "own * other.scale + added for own, added", "own + added for own, added", "held_out"),
    M(
        "calibration",
        "return scaled + torch.tensor(self.bias, dtype=values.dtype, device=values.device)",
        "return (values + torch.tensor(self.bias, dtype=values.dtype, device=values.device)) * self.scale",
        "tune auto",
    ),
    M(
        "calibration",
        "logits.double().log_softmax(-1).logsumexp(-2)",
        "logits.double().log_softmax(-1).mean(-2)",
        "label_free tune",
    ),
    M("calibration", "prior.to(log_mean).log() - log_mean", "-prior.to(log_mean).log() - log_mean", "label_free"),
    M("calibration", "residual *= shares", "residual *= 1", "weights_of_examples"),
    M("calibration", "strength / (2 * len(y)) * log_scale**2", "strength * log_scale**2", "held_out auto"),
    M(
        "calibration",
        "torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2",
        "torch.cat([weight, -weight]) / 2, torch.cat([bias, -bias]) / 2",
        "tune",
    ),
    M("halving", "else -(-len(alive) // 2)", "else max(1, len(alive) // 2)", "elimination"),
    M(
        "halving",
        "stop = stop if len(rows) - stop >= stop else len(rows)",
        "stop = stop if len(rows) - stop >= 0 else len(rows)",
        "elimination",
    ),
    M(
        "halving",
        "losses.sort(stable=True).indices[:keep]",
        "losses.sort(stable=True, descending=True).indices[:keep]",
        "elimination",
    ),
    M(
        "halving",
        "- (gradient * current).sum(-1, keepdim=True)",
        "+ (gradient * current).sum(-1, keepdim=True)",
        "search",
    ),
    M(
        "folds",
        "rarest = min(Counter(label for label, _ in set(zip(known, own, strict=True))).values())",
        "rarest = max(Counter(label for label, _ in set(zip(known, own, strict=True))).values())",
        "held_out auto",
    ),
    M("folds", "dev=pool.select(fold.held_out)", "dev=pool.select(fold.train)", "held_out auto_crossfit"),
    M(
        "folds",
        "self.golds.select(learnt).tempered(self.values[learnt])",
        "self.golds.select(held).tempered(self.values[held])",
        "held_out",
    ),
    M(
        "folds",
        "return tuned[0] < untuned[0] and tuned[1] >= untuned[1]",
        "return tuned[0] < untuned[0] or tuned[1] >= untuned[1]",
        "evidence",
    ),
    M("folds", "dev.update(rows[shots:needed])", "dev.update(rows[:shots])", "sampling"),
    M("training", "rate * (1 - done)", "rate * done", "tune golden"),
    M(
        "training",
        "self._since_least = 0 if is_least else self._since_least + 1",
        "self._since_least = self._since_least + 1",
        "tune",
    ),
    M("resuming", 'order.set_state(tensors[f"order/{n}"])', "order.get_state()", "checkpoints"),
    M("resuming", '{"state": entries}', '{"state": {}}', "checkpoints"),
    M("resuming", 'self._since_least = document["since_least"]', "self._since_least = 0", "checkpoints"),
    M("resuming", "if key != self._key:", "if key == 0:", "checkpoints"),
    M(
        "resuming",
        'self._epoch, self._least = document["epoch"], document["least"]',
        'self._epoch, self._least = document["epoch"], None',
        "checkpoints",
    ),
    M("hashing", "json.dumps(body, sort_keys=True)", "json.dumps(sorted(body))", "artifact"),
    M("hashing", "record.label, *weight, *options]", "*weight, *options]", "fingerprint"),
    M("hashing", 'f"{seed}/{purpose}"', 'f"{seed}"', "golden sampling"),
]


def check_texts() -> list[str]:
    """Return the mutations whose text does not occur exactly once."""
    texts = [path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")]
    counts = [sum(text.count(one.before) for text in texts) for one in MUTATIONS]
    return [f"{n} times: {one.before!r}" for one, n in zip(MUTATIONS, counts, strict=True) if n != 1]


def is_caught(one: Mutation, tests: list[str]) -> bool:
    """Make the mutation in a copy of the source, and return whether a test fails."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(SOURCE, Path(scratch, "cuecraft"), ignore=shutil.ignore_patterns("__pycache__"))
        for path in Path(scratch).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if one.before in text:
                path.write_text(text.replace(one.before, one.after), encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": scratch, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(f"pytest could not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="the mutations of one subject")
    parser.add_argument("--list", action="store_true", help="print them and stop")
    parser.add_argument("--whole", action="store_true", help="run the whole default suite for each")
    options = parser.parse_args()
    if wrong := check_texts():
        raise SystemExit("the text of these mutations does not occur once:\n" + "\n".join(wrong))
    chosen = [one for one in MUTATIONS if options.only in (None, one.subject)]
    missed = []
    for number, one in enumerate(chosen, start=1):
        print(f"{number}/{len(chosen)} {one.subject}: {one.before.strip()} -> {one.after.strip()}", flush=True)
        if options.list:
            continue
        begun = time.perf_counter()
        own = [f"tests/test_{name}.py" for name in one.tests.split()]
        caught = (not options.whole and is_caught(one, own)) or is_caught(one, ["tests"])
        print(f"    {'caught' if caught else 'NOT CAUGHT'}, {time.perf_counter() - begun:.0f} s", flush=True)
        if not caught:
            missed.append(one)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} caught" if not options.list else f"{len(chosen)} mutations")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
