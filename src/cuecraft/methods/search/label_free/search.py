"""The choice of a prompt without any label: a pool of cues, one tensor of answers, a calibration, a selector."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from cuecraft.artifact import HardPrompt
from cuecraft.core.errors import CuecraftWarning, DataError
from cuecraft.core.events import Document, Event, SearchStep
from cuecraft.core.seeding import numpy_generator
from cuecraft.data.labels import label_name
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.problem import Method, Outcome, Problem, note, require_language_head
from cuecraft.methods.search.label_free.answers import (
    Agreement,
    Answers,
    Ids,
    LabelFreeCalibration,
    Panel,
    agreement_of,
    consensus,
    distrust,
    global_entropy,
    input_perplexity,
    local_entropy,
    mutual_information,
    pseudo_label_agreement,
    pseudo_labels,
)
from cuecraft.methods.search.label_free.pool import (
    TaskType,
    guess_task_type,
    read_cues,
    refuse_printed_tokens,
    shipped_cues,
    tokenised,
)
from cuecraft.methods.search.vocabulary import allowed_tokens
from cuecraft.task import Task

PHASE = "label-free"


class Selector(StrEnum):
    """By what a prompt is chosen; `cuecraft.methods.search.label_free.answers` has the formulas."""

    CONSENSUS = "consensus"
    PSEUDO_LABELS = "pseudo-labels"
    MUTUAL_INFORMATION = "mutual-information"
    PERPLEXITY = "perplexity"
    GLOBAL_ENTROPY = "global-entropy"
    LOCAL_ENTROPY = "local-entropy"


@dataclass(frozen=True)
class CueRow:
    """One cue of the leaderboard.

    Args:
        rank: 1 for the chosen one.
        cue: its words.
        token_ids: `[S]`.
        scores: by each selector, greater is better; None where a cue has no such score.
        candidate: the cue as a prompt, calibrated as all are.
    """

    rank: int
    cue: str
    token_ids: Ids
    scores: Mapping[str, float | None]
    candidate: Candidate


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranked(Event):
    """A cue's place among all, and what each selector gives it."""

    rank: int
    prompt: str
    scores: dict[str, float | None]


@dataclass(frozen=True)
class LabelFreeOutcome(Outcome):
    """What a label-free search returns.

    Args:
        task_type: whose cues were in the pool.
        texts: unlabelled texts that chose.
        leaderboard: all cues, the chosen one first.
        agreement: of the pool's cues about these texts; None where only one cue was read.
    """

    task_type: str = ""
    texts: int = 0
    leaderboard: tuple[CueRow, ...] = field(default=(), repr=False)
    agreement: Agreement | None = None

    @property
    def figures(self) -> Mapping[str, float]:
        """The agreement, as `cue_agreement` (its mean) and `lowest_cue_agreement`."""
        own = self.agreement
        return {} if own is None else {"cue_agreement": own.mean, "lowest_cue_agreement": own.lowest}


class LabelFreeSearch(Method):
    """Choice among a pool of cues, and swaps of words in the best one, by answers to texts without labels."""

    name: ClassVar[str] = PHASE

    selector: Selector = Field(Selector.CONSENSUS, description="by what the prompt is chosen")
    calibration: LabelFreeCalibration = Field(
        LabelFreeCalibration.MATCHED, description="how answers are made to have the classes' shares"
    )
    prior: tuple[float, ...] | None = Field(None, description="each class's share, in their order; None for equal ones")
    task_type: TaskType = Field(TaskType.AUTO, description="whose cues to try; `auto` guesses it from the label words")
    pool_file: Path | None = Field(None, description="cues of your own, one a line, tried with the shipped ones")
    variants: int = Field(8, ge=0, description="paraphrases and edits of the shipped cues to try, at most")
    mutations: int = Field(0, ge=0, description="rounds of word swaps in the best cue")
    candidates: int = Field(16, ge=1, description="swaps tried in each of those rounds")
    max_texts: int = Field(512, ge=1, description="unlabelled texts to choose by, at most")

    @field_validator("prior")
    @classmethod
    def _shares(cls, prior: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if prior is not None and not (min(prior, default=0) > 0 and math.isclose(sum(prior), 1, abs_tol=1e-6)):
            raise DataError(
                f"the classes' shares {', '.join(map(str, prior))} must each be above 0 and sum to 1; fix the prior"
            )
        return prior

    def pool(self, task: Task, tokenizer: Any, seed: int) -> dict[Ids, str]:
        """Return the cues to try by their token ids: the template's own words, the user's, and the shipped ones.

        Raises:
            DataError: the user's file of cues cannot be read, or one of them is written as printed tokens.
        """
        own = read_cues(self.pool_file) if self.pool_file else []
        refuse_printed_tokens(tokenizer, own)
        shipped = shipped_cues(self.resolved_type(task), task.verbalizer, self.variants, seed)
        cues = [*own, *shipped]
        if task.template.begins_turn:
            cues = [cue.lstrip() for cue in cues]
        return tokenised(tokenizer, [task.template.prompt_text, *cues])

    def fit(self, problem: Problem) -> LabelFreeOutcome:
        """Choose by the training texts; labels, where there are some, are not read.

        Warns by CuecraftWarning where the cues agree too little for the choice to be trusted, or one swaps the classes.

        Raises:
            MethodError: the backbone has no language head.
            DataError: there are not as many shares as classes, or the file of cues cannot be read.
        """
        require_language_head(problem, self.name)
        tokenizer, prior = problem.backbone.tokenizer, self._prior(problem.task)
        pool = self.pool(problem.task, tokenizer, problem.seed)
        everything = Panel(problem, problem.train.context, self.calibration, prior)
        answers, panel = everything.ask_in_time(list(pool))
        labels = pseudo_labels(answers.probabilities, prior)
        best = int(selector_scores(answers, prior, labels)[self.selector].argmax())
        agreement = agreement_of(answers.logits, prior, best)
        trace: list[Document] = []
        mutated = answers.select([best])
        with problem.in_time():
            mutated = self._mutated(panel, mutated, labels, trace)
        if mutated.prompts[0] not in pool:
            answers = answers.joined(mutated)
        rows = _leaderboard(answers, selector_scores(answers, prior, labels), self.selector, tokenizer)
        trace += [Ranked(PHASE, rank=row.rank, prompt=row.cue, scores=dict(row.scores)).document() for row in rows]
        if doubt := distrust(agreement):
            warnings.warn(doubt, CuecraftWarning, stacklevel=2)
        untuned = next(row.candidate for row in rows if row.token_ids == problem.initial_ids)
        return LabelFreeOutcome(
            untuned,
            rows[0].candidate,
            trace,
            task_type=self.resolved_type(problem.task),
            texts=len(panel.context),
            leaderboard=rows,
            agreement=agreement,
        )

    def resolved_type(self, task: Task) -> TaskType:
        """Return whose cues are tried: the given type, or the one guessed from the label words."""
        return guess_task_type(task.verbalizer) if self.task_type is TaskType.AUTO else self.task_type

    def _prior(self, task: Task) -> Tensor:
        classes = task.verbalizer.num_classes
        prior = self.prior or (1 / classes,) * classes
        if len(prior) != classes:
            raise DataError(f"the prior has {len(prior)} shares, but there are {classes} classes; give one for each")
        return torch.tensor(prior, dtype=torch.float64)

    def _mutated(self, panel: Panel, current: Answers, labels: Tensor, trace: list[Document]) -> Answers:
        """Return the best cue after rounds of single swaps, each kept where the selector's score rises."""
        problem = panel.problem
        if not self.mutations or not current.prompts[0]:
            return current
        allowed = torch.nonzero(allowed_tokens(problem.backbone, problem.task)).flatten().numpy()
        for step in range(1, self.mutations + 1):
            if problem.out_of_time():
                break
            prompt = HardPrompt(current.prompts[0])
            generator = numpy_generator(problem.seed, f"cue-mutations/{step}")
            position = int(generator.integers(len(prompt)))
            tokens = generator.permutation(allowed[allowed != prompt.token_ids[position]])[: self.candidates]
            swapped = [prompt.swapped(position, token).token_ids for token in sorted(tokens.tolist())]
            gives_back = panel.context.renderer.gives_back(swapped)
            kept = [ids for ids, good in zip(swapped, gives_back, strict=True) if good]
            answers = current.joined(panel.ask(kept)) if kept else current
            best = int(selector_scores(answers, panel.prior, labels)[self.selector].argmax())
            current = answers.select([best])
            text = HardPrompt(current.prompts[0]).text(problem.backbone.tokenizer)
            found = SearchStep("label-free-mutation", step, self.mutations, accepted=best > 0)
            note(problem, trace, replace(found, position=position, prompt=text))
        return current


def class_shares(prior: Mapping[Any, float] | Sequence[float], classes: Sequence[str]) -> tuple[float, ...]:
    """Return each class's share, in their order, of shares by class or already in order.

    Raises:
        DataError: a share is given for no class, or a class has none.
    """
    if not isinstance(prior, Mapping):
        return tuple(float(share) for share in prior)
    by_name = {label_name("the prior", name): float(share) for name, share in prior.items()}
    for name in by_name:
        if name not in classes:
            raise DataError(f"the prior names class {name!r}, but the classes are {', '.join(classes)}; fix the name")
    for name in classes:
        if name not in by_name:
            raise DataError(f"the prior has no share for class {name!r}; give one for each class")
    return tuple(by_name[name] for name in classes)


def selector_scores(answers: Answers, prior: Tensor, labels: Tensor) -> dict[Selector, Tensor]:
    """Return every selector's scores `[T]`, greater is better.

    Args:
        answers: of T prompts to X texts.
        prior: `[Y]` the classes' shares.
        labels: `[X]` the pool's pseudo-labels.
    """
    p = answers.probabilities
    return {
        Selector.CONSENSUS: consensus(p, prior, labels),
        Selector.PSEUDO_LABELS: pseudo_label_agreement(p, labels),
        Selector.MUTUAL_INFORMATION: mutual_information(p, prior),
        Selector.PERPLEXITY: input_perplexity(answers.fluency),
        Selector.GLOBAL_ENTROPY: global_entropy(p, prior),
        Selector.LOCAL_ENTROPY: local_entropy(p),
    }


def _leaderboard(
    answers: Answers, scores: Mapping[Selector, Tensor], selector: Selector, tokenizer: Any
) -> tuple[CueRow, ...]:
    # A stable sort: of equals, the template's own words or the first in the pool.
    order = scores[selector].sort(descending=True, stable=True).indices.tolist()
    rows = []
    for rank, number in enumerate(order, start=1):
        prompt = answers.prompts[number]
        values = {str(name): float(found[number]) for name, found in scores.items()}
        shown = {name: value if math.isfinite(value) else None for name, value in values.items()}
        cue = HardPrompt(prompt).text(tokenizer)
        rows.append(CueRow(rank, cue, prompt, shown, answers.candidate(number)))
    return tuple(rows)
