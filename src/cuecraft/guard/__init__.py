"""Screening of texts before a model reads them: what does not show, what is encoded, limits, rules and detectors.

Usable alone: nothing here needs torch but a detector that is a model.
"""

from cuecraft.guard.decode import Decoded, Encoding, hidden_texts
from cuecraft.guard.detectors import Detector, HubDetector, PromptDetector, attack_classes, only_field
from cuecraft.guard.findings import Finding, Kind, Severity, Where
from cuecraft.guard.limits import Limits
from cuecraft.guard.normalise import Normalised, normalised
from cuecraft.guard.rules import Rule, all_rules, read_rules, shipped_rules
from cuecraft.guard.screening import Guard, GuardMode, Screening, Verdict
from cuecraft.guard.windows import windows

__all__ = [
    "Decoded",
    "Detector",
    "Encoding",
    "Finding",
    "Guard",
    "GuardMode",
    "HubDetector",
    "Kind",
    "Limits",
    "Normalised",
    "PromptDetector",
    "Rule",
    "Screening",
    "Severity",
    "Verdict",
    "Where",
    "all_rules",
    "attack_classes",
    "hidden_texts",
    "normalised",
    "only_field",
    "read_rules",
    "shipped_rules",
    "windows",
]
