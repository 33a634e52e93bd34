"""Right answers that are words or several tokens: their ids, and which rows have none that a model can give."""

from __future__ import annotations

from collections.abc import Sequence

from cuecraft.core.errors import DataError
from cuecraft.data import Record
from cuecraft.task.answers.cloze import Cloze
from cuecraft.task.rendering import HeadKind, Renderer

Ids = tuple[int, ...]


def answer_tokens(
    renderer: Renderer, answers: Sequence[Sequence[str]], rows: Sequence[str] | None = None
) -> list[list[Ids]]:
    """Return the ids of right answers as they stand in the answer slot, of each text those that a model can give.

    Args:
        renderer: the task as the backbone's tokenizer writes it.
        answers: `[B]` right answers of each text, one or several.
        rows: `[B]` what to call the texts in errors; None to count them.

    Raises:
        DataError: a text has no right answer that this model can give.
    """
    distinct = list(dict.fromkeys(answer for own in answers for answer in own))
    written = dict(zip(distinct, renderer.answer_ids(distinct), strict=True))
    unknown = getattr(renderer.tokenizer, "unk_token_id", None)
    found = []
    for number, own in enumerate(answers):
        known = {written[answer]: answer for answer in own if written[answer] and unknown not in written[answer]}
        fitting = [ids for ids in known if len(ids) == 1 or renderer.head is HeadKind.CAUSAL]
        if not fitting:
            where = f"text {number + 1}" if rows is None else rows[number]
            raise DataError(f"{where}: {_reason(renderer, own, known)}")
        found.append(fitting)
    return found


def _reason(renderer: Renderer, answers: Sequence[str], known: dict[Ids, str]) -> str:
    """Return why a model can give none of a text's right answers."""
    if not known:
        return f"answer {answers[0]!r} is not in this tokenizer's vocabulary; remove the row, or give another"
    ids, answer = next(iter(known.items()))
    shown = " ".join(renderer.tokenizer.convert_ids_to_tokens(list(ids)))
    return (
        f"answer {answer!r} is {len(ids)} tokens ({shown}), but a masked LM fills one {{mask}}; remove the row, or use "
        "a causal model"
    )


def check_answers(renderer: Renderer, answers: Cloze, records: Sequence[Record]) -> None:
    """Raise DataError where a row has no right answer that a model can give.

    Args:
        renderer: writes answers as the backbone's tokenizer does.
        answers: the answer space.
        records: the rows to learn from and to choose by.
    """
    names = [record.place(number) for number, record in enumerate(records, start=1)]
    right = [answers.answers(gold) for gold in answers.golds(records)]
    answer_tokens(renderer, right, names)
