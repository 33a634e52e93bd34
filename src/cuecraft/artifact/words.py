"""Decisions where any word may be the answer."""

from __future__ import annotations

from collections.abc import Sequence

from cuecraft.backbone.words import PromptTexts, likeliest_words
from cuecraft.task import Decision
from cuecraft.task.answers.cloze import Cloze
from cuecraft.task.rendering import Renderer

#: Texts whose vocabularies are held at once.
WORDS_FRESH = 16


def word_decisions(asked: Sequence[PromptTexts]) -> list[Decision]:
    """Return the likeliest words `[B]` for a few texts that one or several prompts answer.

    Args:
        asked: the prompts, each with its context of the same texts; their tasks have the same answers.
    """
    context = asked[0].context
    renderer, answers = context.renderer, context.renderer.task.answers
    assert isinstance(answers, Cloze)
    seen = _spelled(renderer, answers.seen)
    found = []
    best = likeliest_words(asked, answers.top, answers.tokens)
    for example, words in zip(context.examples, best, strict=True):
        right = () if example.gold is None else answers.answers(example.gold)
        spelled = {**seen, **_spelled(renderer, right)}
        found.append(answers.decided({spelled.get(ids, word): share for ids, word, share in words}))
    return found


def _spelled(renderer: Renderer, answers: Sequence[str]) -> dict[tuple[int, ...], str]:
    """Return answers by their tokens, as the data spells them.

    A tokenizer that knows no capitals writes ``Persian`` and ``persian`` alike, so they are one answer.
    """
    return dict(zip(reversed(renderer.answer_ids(answers)), reversed(answers), strict=True))
