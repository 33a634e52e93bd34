"""The template as written, with or without calibration: what tuning has to beat."""

from __future__ import annotations

from typing import ClassVar

from cuecraft.method import (
    Calibrated,
    CalibrationKind,
    Method,
    Outcome,
    Problem,
    Selection,
    require_language_head,
    score,
    starting_point,
)


class ZeroShot(Method):
    """No tuning; labels are used by the `fitted` calibration only, texts by `batch`."""

    name: ClassVar[str] = "zero-shot"

    calibration: Calibrated = CalibrationKind.NONE

    def fit(self, problem: Problem) -> Outcome:
        """Return the template's own words."""
        require_language_head(problem, self.name)
        start = starting_point(problem, problem.initial_ids, self.calibration)
        selection = Selection(problem)
        selection.see(start, score(problem.backbone, start, problem.train), phase=self.name, step=0)
        return selection.outcome(start)
