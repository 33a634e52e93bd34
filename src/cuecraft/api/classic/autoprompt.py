"""AutoPrompt by its usual arguments (Shin et al., EMNLP 2020, arXiv 2010.15980)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cuecraft.api.classic.prefix import Rows, texts_and_labels
from cuecraft.artifact import Artifact, Prompt
from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.backbone.hooks import training
from cuecraft.core.errors import BackboneError
from cuecraft.data.labels import class_names, words_by_name
from cuecraft.data.texts import as_records
from cuecraft.methods import make_method
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.prepare import make_problem, make_task
from cuecraft.methods.problem import Outcome
from cuecraft.task.answers.labels import LabelOptions


class AutoPrompt:
    """Search for the words of a prompt.

    Args:
        model: a transformers model with a language head, or anything that `cuecraft.load_backbone` takes, such as
            ``demo:smollm2-135m`` or a folder.
        tokenizer: of a transformers model; left out otherwise.
        train_dataset: rows ``{"text": ..., "label": ...}``; labels are strings or integers. A quarter of them is held
            out to choose by.
        batch_size: rows that each step's gradient is taken on and its swaps are scored on, at most. The published
            code draws them again at each step; here they are drawn once, so that two prompts are never compared on
            different rows.
        num_tokens: trigger tokens that are searched. They stand between text and answer.
        iterations: search steps.
        label_words: class -> word or words; None for the classes' own names. Integer labels need words.
        template: None for a general one.
        seed: of everything random.

    After `search`: ``prompt_`` (its token ids), ``outcome_`` (the untuned prompt, the best one, the trace) and
    ``artifact_``, which `save` writes for `cuecraft predict`.
    """

    outcome_: Outcome
    artifact_: Artifact

    def __init__(
        self,
        *,
        model: Any,
        tokenizer: Any = None,
        train_dataset: Rows,
        batch_size: int = 128,
        num_tokens: int = 5,
        iterations: int = 24,
        label_words: Mapping[Any, str | Sequence[str]] | None = None,
        template: str | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.train_dataset = train_dataset
        self.batch_size = batch_size
        self.num_tokens = num_tokens
        self.iterations = iterations
        self.label_words = label_words
        self.template = template
        self.seed = seed

    @property
    def prompt_(self) -> Prompt:
        """The best prompt; there after `search`."""
        prompt = self.outcome_.best.prompt
        assert prompt.kind == "hard"
        return prompt

    @training()
    def search(self) -> str:
        """Return the best prompt as text.

        The template's own words, untuned, compete to the end: where no found prompt is better on the held-out rows
        they are returned, and `outcome_.is_tuned` is false.

        Raises:
            CuecraftError: data, model, template, label words or an argument cannot be used.
        """
        options = {"steps": self.iterations, "prompt_length": self.num_tokens, "search_examples": self.batch_size}
        method = make_method("autoprompt", options)
        texts, labels = texts_and_labels(self.train_dataset)
        records, classes = as_records(texts, labels), class_names(labels)
        backbone = self._backbone()
        words = words_by_name(self.label_words)
        task = make_task(
            backbone, records, self.template, words, None, LabelOptions(classes=tuple(classes)), method.longest_prompt()
        )
        problem = make_problem(backbone, task, records, seed=self.seed)
        outcome = method.fit(problem)
        self.artifact_ = make_artifact(problem, outcome, method, classes)
        self.outcome_ = outcome
        return self.prompt_.text(backbone.tokenizer)

    def _backbone(self) -> AnyBackbone:
        if self.tokenizer is None and hasattr(self.model, "config"):
            raise BackboneError("a transformers model comes with its tokenizer; give tokenizer=")
        if self.tokenizer is not None and not hasattr(self.model, "config"):
            raise BackboneError("a model that is named brings its own tokenizer; leave tokenizer= out")
        return load_backbone(self.model if self.tokenizer is None else (self.model, self.tokenizer))
