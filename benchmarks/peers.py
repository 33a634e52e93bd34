"""What people use today, as they use it: plain AutoPrompt scoring, PEFT's training and prediction, SetFit."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM

from cuecraft.artifact import Prompt
from cuecraft.backbone import CausalBackbone, Context, MaskedBackbone, SequenceBackbone
from cuecraft.core.assets import model_folder
from cuecraft.task import Example, Task
from cuecraft.task.batches import TokenBudget, token_batches

BATCH = 16  # texts of one training step
EVAL_BATCH = 32  # texts of one forward pass without a gradient
THRIFTY = TokenBudget(1536)  # of one such pass, where seconds do not count


def plain_candidate_logits(backbone: CausalBackbone, context: Context, prompt: Prompt) -> torch.Tensor:
    """Score one candidate as published AutoPrompt code does: whole inputs, padded batches, logits of all words.

    Returns class logits `[B, C]`; label words of one token.
    """
    columns = [words[0][0] for words in context.renderer.label_ids]
    texts = [[*piece.before, *prompt.token_ids, *piece.after] for piece in context.pieces]
    parts = []
    for start in range(0, len(texts), EVAL_BATCH):
        ids, mask = padded(texts[start : start + EVAL_BATCH])
        logits = backbone.model(input_ids=ids, attention_mask=mask).logits
        last = mask.sum(1) - 1
        parts.append(logits[torch.arange(len(ids)), last][:, columns])
    return torch.cat(parts)


def padded(texts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad sequences of ids on the right; return ids and attention mask."""
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    return ids, mask


def fresh_model(name: str) -> Any:
    """Load a model of its own, because PEFT changes the one it is given."""
    return AutoModelForCausalLM.from_pretrained(model_folder(name), dtype=torch.float32)


def peft_prompt_tuning(model: Any, length: int, text: str | None = None) -> Any:
    """Wrap a model with PEFT's soft prompt: of random vectors, or of a text's."""
    options: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": length}
    if text is not None:
        folder = str(model.config.name_or_path)
        options |= {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": text, "tokenizer_name_or_path": folder}
    return get_peft_model(model, PromptTuningConfig(**options))


def peft_prefix_tuning(model: Any, length: int) -> Any:
    """Wrap a model with PEFT's trained keys and values."""
    return get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length))


class PeftLoop:
    """PEFT's usual training loop for causal models: text and label word as labels, AdamW, padded batches.

    Args:
        model: a PEFT model.
        backbone: gives tokenizer and label words.
        task: gives template and verbalizer.
        examples: to train on.
        cue: ids of words that stand behind every text.
        rate: AdamW step.
    """

    def __init__(
        self,
        model: Any,
        backbone: CausalBackbone,
        task: Task,
        examples: Sequence[Example],
        cue: Sequence[int] = (),
        rate: float = 1e-3,
    ) -> None:
        self.model = model.train()
        renderer = backbone.renderer(task)
        answers = [words[0] for words in renderer.label_ids]
        self.texts = [
            ([*piece.before, *cue, *piece.after], list(answers[example.gold or 0]))
            for piece, example in zip(renderer.render(examples), examples, strict=True)
        ]
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=rate)

    def epoch(self, order: Sequence[int] | None = None) -> None:
        """Take one step for each batch of texts, in their own or another order."""
        texts = self.texts if order is None else [self.texts[row] for row in order]
        for start in range(0, len(texts), BATCH):
            self.step(texts[start : start + BATCH])

    def step(self, texts: Sequence[tuple[list[int], list[int]]]) -> None:
        """Take one step."""
        ids, mask = padded([[*text, *answer] for text, answer in texts])
        labels = torch.full_like(ids, -100)
        for row, (text, answer) in enumerate(texts):
            labels[row, len(text) : len(text) + len(answer)] = torch.tensor(answer)
        self.optimizer.zero_grad()
        self.loss(ids, mask, labels).backward()
        self.optimizer.step()

    def loss(self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of the labels `[B, L]` that are not -100, as the model computes it."""
        loss: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        return loss


class AnswerOnlyLoop(PeftLoop):
    """The same loss from the logits of the answers' positions alone; for accuracy, where seconds do not count."""

    def loss(self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of the labels `[B, L]` that are not -100."""
        rows, places = torch.nonzero(labels != -100, as_tuple=True)
        return functional.cross_entropy(answer_logits(self.model, ids, mask, rows, places - 1), labels[rows, places])


def answer_logits(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """Return logits `[N, V]` at one place of each of some rows (`[N]` both) of texts `[B, L]`."""

    def keep(module: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        (hidden,) = given
        return (hidden[rows, places + hidden.shape[1] - ids.shape[1]][None],)  # virtual tokens may stand in front

    handle = model.get_base_model().get_output_embeddings().register_forward_pre_hook(keep)
    try:
        found: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits[0]
    finally:
        handle.remove()
    return found


def rendered(
    backbone: CausalBackbone, task: Task, examples: Sequence[Example], cue: Sequence[int]
) -> tuple[list[list[int]], list[int]]:
    """Return the texts' ids, `cue` behind each, and the columns of the label words' first tokens."""
    renderer = backbone.renderer(task)
    texts = [[*piece.before, *cue, *piece.after] for piece in renderer.render(examples)]
    return texts, [words[0][0] for words in renderer.label_ids]


@torch.no_grad()
def peft_predict(
    model: Any, backbone: CausalBackbone, task: Task, examples: Sequence[Example], cue: Sequence[int] = ()
) -> torch.Tensor:
    """Classify texts with a PEFT model: padded batches in the order of the texts; class logits `[B, C]`.

    `cue` stands behind every text.
    """
    texts, columns = rendered(backbone, task, examples, cue)
    parts = []
    for start in range(0, len(texts), EVAL_BATCH):
        ids, mask = padded(texts[start : start + EVAL_BATCH])
        logits = model(input_ids=ids, attention_mask=mask).logits
        last = mask.sum(1) - 1 + logits.shape[1] - ids.shape[1]  # virtual tokens may stand in front
        parts.append(logits[torch.arange(len(ids)), last][:, columns])
    return torch.cat(parts)


@torch.no_grad()
def thrifty_peft_predict(
    model: Any, backbone: CausalBackbone, task: Task, examples: Sequence[Example], cue: Sequence[int] = ()
) -> torch.Tensor:
    """Return what `peft_predict` does, from batches sorted by length and the last positions alone."""
    texts, columns = rendered(backbone, task, examples, cue)
    found = torch.empty(len(texts), len(columns))
    for batch in token_batches([len(text) for text in texts], THRIFTY):
        ids, mask = padded([texts[row] for row in batch])
        found[batch] = answer_logits(model, ids, mask, torch.arange(len(ids)), mask.sum(1) - 1)[:, columns]
    return found


@torch.no_grad()
def bare_predict(
    backbone: CausalBackbone, task: Task, examples: Sequence[Example], cue: Sequence[int], tokens: int = 1536
) -> torch.Tensor:
    """Classify texts with the bare model, as thriftily as an ordinary forward allows.

    Sorted by length, in batches of `tokens` tokens, logits of the last position and of the label words only.
    """
    texts, columns = rendered(backbone, task, examples, cue)
    head = backbone.model.get_output_embeddings().weight[columns]
    found = torch.empty(len(texts), len(columns))
    for batch in token_batches([len(text) for text in texts], TokenBudget(tokens)):
        ids, mask = padded([texts[row] for row in batch])
        # Padded on the right, where no real token of a causal model sees it: no mask, which is the fastest kernel.
        hidden = backbone.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        found[batch] = functional.linear(hidden[torch.arange(len(ids)), mask.sum(1) - 1], head)
    return found


@torch.no_grad()
def plain_encoder_logits(backbone: MaskedBackbone | SequenceBackbone, context: Context, prompt: Prompt) -> torch.Tensor:
    """Score one candidate on an encoder: padded batches in the order of the texts, logits of all words; `[B, C]`.

    A sequence backbone pools by the mean over the text's tokens and reads out through the prompt's class head.
    """
    parts = []
    cue = prompt.token_ids
    for start in range(0, len(context), EVAL_BATCH):
        pieces = context.pieces[start : start + EVAL_BATCH]
        ids, mask = padded([[*piece.before, *cue, *piece.after] for piece in pieces])
        output = backbone.model(input_ids=ids, attention_mask=mask)
        if isinstance(backbone, MaskedBackbone):
            slots = [p.answer + (len(cue) if p.answer >= len(p.before) else 0) for p in pieces]
            columns = [words[0][0] for words in context.renderer.label_ids]
            parts.append(output.logits[torch.arange(len(ids)), slots][:, columns])
            continue
        assert prompt.head is not None
        for row, piece in enumerate(pieces):
            mask[row, len(piece.before) : len(piece.before) + len(cue)] = 0
        weights = mask.to(output.last_hidden_state.dtype)[..., None]
        features = (output.last_hidden_state * weights).sum(1) / weights.sum(1)
        parts.append(functional.linear(features, prompt.head.weight, prompt.head.bias))
    return torch.cat(parts)


#: One epoch over pairs of texts, drawn for ten iterations; all else is SetFit's default.
SETFIT_OPTIONS = {"num_iterations": 10, "num_epochs": 1, "batch_size": 16}


def setfit_missing() -> str | None:
    """Return a line that says what to install where SetFit is not, or None where it is."""
    if all(find_spec(name) for name in ("setfit", "sentence_transformers", "datasets")):
        return None
    return (
        "setfit is left out: it is not installed; `make bench-setfit` installs benchmarks/setfit.txt in an environment "
        "of its own and runs it there"
    )


def setfit_model(folder: Path) -> Any:
    """Load a sentence encoder from a folder, with a class head that is not fitted yet."""
    from setfit import SetFitModel

    return SetFitModel.from_pretrained(str(folder))


def setfit_train(model: Any, texts: Sequence[str], labels: Sequence[int], seed: int) -> None:
    """Train the encoder on pairs of texts, and then its class head (a logistic regression on embeddings)."""
    from datasets import Dataset
    from setfit import Trainer, TrainingArguments

    data = Dataset.from_dict({"text": list(texts), "label": list(labels)})
    with TemporaryDirectory() as folder:
        asked = {"output_dir": folder, "report_to": "none", "save_strategy": "no"}
        arguments = TrainingArguments(**SETFIT_OPTIONS, **asked, seed=seed)
        Trainer(model=model, args=arguments, train_dataset=data).train()


def setfit_probabilities(model: Any, texts: Sequence[str]) -> torch.Tensor:
    """Return class probabilities `[B, C]`."""
    found: torch.Tensor = model.predict_proba(list(texts))
    return found
