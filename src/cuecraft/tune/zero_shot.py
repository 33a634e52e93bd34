"""The template as written, with or without calibration: what tuning has to beat."""

from __future__ import annotations

from typing import ClassVar

from cuecraft.method import Calibrated, CalibrationKind, Method, Outcome, Problem, require_language_head
from cuecraft.untuned import begin


class ZeroShot(Method):
    """No tuning; labels are used by the `fitted` calibration only, texts by `batch`."""

    name: ClassVar[str] = "zero-shot"

    calibration: Calibrated = CalibrationKind.NONE

    def fit(self, problem: Problem) -> Outcome:
        """Return the template's own words."""
        require_language_head(problem, self.name)
        start, selection = begin(problem, self.calibration, phase=self.name)
        return selection.outcome(start)
