"""Screening of texts before a model reads them: what does not show, what is encoded, limits, rules and detectors.

Usable alone: nothing here needs torch but a detector that is a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.guard.windows import windows  # now, since its module has the same name
from cuecraft.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.guard.decode import Decoded, Encoding, hidden_texts
    from cuecraft.guard.detectors import Detector, HubDetector, PromptDetector, attack_classes, only_field
    from cuecraft.guard.findings import Finding, Kind, Severity, Where
    from cuecraft.guard.limits import Limits
    from cuecraft.guard.modes import GuardMode
    from cuecraft.guard.normalise import Normalised, normalised
    from cuecraft.guard.rules import Rule, all_rules, read_rules, shipped_rules
    from cuecraft.guard.screening import Guard, Screening, Verdict

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

# Loaded on first use: the command line asks for the names of the modes alone.
_HOMES = {
    "decode": (
        "Decoded",
        "Encoding",
        "hidden_texts",
    ),
    "detectors": (
        "Detector",
        "HubDetector",
        "PromptDetector",
        "attack_classes",
        "only_field",
    ),
    "findings": (
        "Finding",
        "Kind",
        "Severity",
        "Where",
    ),
    "limits": ("Limits",),
    "modes": ("GuardMode",),
    "normalise": (
        "Normalised",
        "normalised",
    ),
    "rules": (
        "Rule",
        "all_rules",
        "read_rules",
        "shipped_rules",
    ),
    "screening": (
        "Guard",
        "Screening",
        "Verdict",
    ),
}

__getattr__ = loaded_on_use(__name__, {name: home for home, names in _HOMES.items() for name in names})
