"""Choice of a prompt without labels."""

from cuecraft.methods.search.label_free.answers import Agreement, LabelFreeCalibration
from cuecraft.methods.search.label_free.pool import TaskType
from cuecraft.methods.search.label_free.search import (
    CueRow,
    LabelFreeOutcome,
    LabelFreeSearch,
    Selector,
    class_shares,
    selector_scores,
)

__all__ = [
    "Agreement",
    "CueRow",
    "LabelFreeCalibration",
    "LabelFreeOutcome",
    "LabelFreeSearch",
    "Selector",
    "TaskType",
    "class_shares",
    "selector_scores",
]
