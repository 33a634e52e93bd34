"""Few-shot training of a prefix: the library's own for language models, a plain loop for classification heads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cuecraft.backbone import HeadKind, Pieces, load_backbone
from cuecraft.backbone.vocabulary import within_vocabulary
from cuecraft.classic.dataset import Rows, texts_and_labels
from cuecraft.data.labels import class_names, label_name, words_by_name
from cuecraft.data.texts import as_records
from cuecraft.errors import BackboneError, DataError
from cuecraft.method import Labelled, Selection
from cuecraft.options import make_options
from cuecraft.predictor import Candidate
from cuecraft.prompts import Calibration, HardPrompt, PrefixPrompt
from cuecraft.seeding import torch_generator
from cuecraft.tune.encoder import EncoderKind
from cuecraft.tune.loop import TrainingOptions, train
from cuecraft.tune.prefix_tuning import PrefixTuning as PrefixMethod
from cuecraft.tune.prepare import DEFAULT_CUE, make_problem, make_task

if TYPE_CHECKING:
    from cuecraft.classic.prefix import PrefixTuning

_SEED = 0  # of the hold-out and of the order of rows


def train_language_model(
    module: PrefixTuning,
    dataset: Rows,
    tokenizer: Any,
    label_words: Mapping[Any, str | Sequence[str]] | None,
    epochs: int,
    batch_size: int,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return the prefix of least loss on held-out rows, and the trace.

    Args:
        module: whose prefix training begins with; it is not changed.
        dataset: see `PrefixTuning.train_fewshot`, as for the rest.
        tokenizer: or None.
        label_words: or None.
        epochs: at most.
        batch_size: of a step.
    """
    texts, labels = texts_and_labels(dataset)
    records, classes = as_records(texts, labels), class_names(labels)
    backbone = load_backbone((module.model, tokenizer or _tokenizer(module.model)))
    ending = "." if backbone.head_kind is HeadKind.MASKED else ""
    template = f"{{prompt}}{{text}}{DEFAULT_CUE}{{mask}}{ending}"
    words = words_by_name(label_words)
    options = {"encoder": EncoderKind.MLP if module.prefix_projection else None, "epochs": epochs}
    method = make_options(
        PrefixMethod, options | {"prefix_length": module.num_virtual_tokens, "batch_size": batch_size}
    )
    task = make_task(backbone, records, template, words, None, list(classes), method.longest_prompt())
    problem = make_problem(backbone, task, records, seed=_SEED)
    if backbone.head_kind is HeadKind.CAUSAL:
        dev = problem.dev and _prefix_first(problem.dev)
        problem = replace(problem, train=_prefix_first(problem.train), dev=dev)
    # Uncalibrated, so that the loss is that of the model's own logits.
    prompt = PrefixPrompt(HardPrompt(()), module.prefix_states.detach())
    start = Candidate(prompt, Calibration.none(len(classes)))
    selection = Selection(problem)
    train(method, problem, method.trainable(problem, start), selection)
    outcome = selection.outcome(start)
    assert isinstance(outcome.best.prompt, PrefixPrompt)
    return outcome.best.prompt.states, outcome.trace


def _prefix_first(data: Labelled) -> Labelled:
    """Put what a tokenizer writes before every text behind the prefix, where a module's own pass has it."""
    context = data.context
    pieces = tuple(Pieces((), piece.before + piece.after) for piece in context.pieces)
    return Labelled(replace(context.unread(), pieces=pieces), data.labels)


def train_class_head(
    module: PrefixTuning, dataset: Rows, tokenizer: Any, epochs: int, batch_size: int
) -> list[dict[str, Any]]:
    """Train by a plain loop over ``module(**batch)``; return one event for each epoch.

    Args:
        module: whose prefix is trained.
        dataset: see `PrefixTuning.train_fewshot`, as for the rest.
        tokenizer: or None.
        epochs: passes over the rows.
        batch_size: of a step.

    Raises:
        BackboneError: the model has no head.
        DataError: more classes than the head has, or a class that it does not know.
    """
    model = module.model
    make_options(TrainingOptions, {"epochs": epochs, "batch_size": batch_size})  # refuses what cannot be
    if "labels" not in inspect.signature(model.forward).parameters:
        raise BackboneError(f"{type(model).__name__} has no head to train for; load it with a language or class head")
    texts, labels = texts_and_labels(dataset)
    tokenizer = within_vocabulary(tokenizer or _tokenizer(model), model, type(model).__name__)
    truth = torch.tensor(_class_numbers(model.config, labels), device=model.device)
    texts = [record.fields["text"] for record in as_records(texts)]
    rate = 1e-3 if module.prefix_projection else 0.02 * float(module.start.square().mean().sqrt())
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    generator = torch_generator(_SEED, "order")
    trace = []
    for epoch in range(1, epochs + 1):
        losses = []
        for rows in torch.randperm(len(texts), generator=generator).split(batch_size):
            batch = _encoded(module, tokenizer, [texts[row] for row in rows.tolist()])
            loss = module(**batch, labels=truth[rows.to(truth.device)]).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            losses += [float(loss.detach())] * len(rows)
        trace.append(
            {"phase": "prefix-tuning", "step": epoch, "total": epochs, "train_loss": sum(losses) / len(losses)}
        )
    return trace


def _encoded(module: PrefixTuning, tokenizer: Any, texts: list[str]) -> dict[str, Tensor]:
    room = module.room
    batch = tokenizer(texts, padding=True, truncation=room is not None, max_length=room, return_tensors="pt")
    return {name: tensor.to(module.model.device) for name, tensor in batch.items()}


def _class_numbers(config: Any, labels: Sequence[Any]) -> list[int]:
    """Return the head's number of each label: the label itself, by the head's own names, or in sorted order."""
    names = class_names(labels)
    if all(isinstance(label, int) for label in names.values()):
        known = {name: int(label) for name, label in names.items()}
    else:
        named = {str(name): int(number) for name, number in (config.label2id or {}).items()}
        known = named if set(names) <= set(named) else {name: number for number, name in enumerate(names)}
    wrong = [name for name in names if not 0 <= known[name] < config.num_labels]
    if wrong:
        raise DataError(f"label {wrong[0]!r} has no place in the model's head, which has {config.num_labels} classes")
    return [known[label_name(f"row {row}", label)] for row, label in enumerate(labels, start=1)]


def _tokenizer(model: Any) -> Any:
    from transformers import AutoTokenizer

    name = getattr(model, "name_or_path", "")
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"no tokenizer was saved with the model ({name or 'made in memory'}); give tokenizer="
        ) from error
