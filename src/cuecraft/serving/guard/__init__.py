"""Screening of texts before a model reads them: what does not show, what is encoded, limits, rules and detectors.

Usable alone: nothing here needs torch but a detector that is a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.core.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.serving.guard.detectors import (
        Detector,
        HubDetector,
        PromptDetector,
        attack_classes,
        only_field,
        windows,
    )
    from cuecraft.serving.guard.findings import Finding, Kind, Severity, Where
    from cuecraft.serving.guard.modes import GuardMode
    from cuecraft.serving.guard.normalise import Decoded, Encoding, Normalised, hidden_texts, normalised
    from cuecraft.serving.guard.rules import Rule, all_rules, read_rules, shipped_rules
    from cuecraft.serving.guard.screening import Guard, Limits, Screening, Verdict

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
    "normalise": (
        "Decoded",
        "Encoding",
        "hidden_texts",
        "Normalised",
        "normalised",
    ),
    "detectors": (
        "windows",
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
    "screening": (
        "Limits",
        "Guard",
        "Screening",
        "Verdict",
    ),
    "modes": ("GuardMode",),
    "rules": (
        "Rule",
        "all_rules",
        "read_rules",
        "shipped_rules",
    ),
}
__getattr__ = loaded_on_use(__name__, {name: home for home, names in _HOMES.items() for name in names})
