"""What the command line shows: progress on stderr, tables and documents on stdout."""

from cuecraft.display.advice import print_advice
from cuecraft.display.bulk import bulk_progress, print_classified
from cuecraft.display.console import (
    agrees,
    already_finished,
    fail,
    page,
    print_json,
    progress,
    resumable,
    serving,
    stopped,
    stopping,
    warn,
)
from cuecraft.display.demo import demo_document, print_demo
from cuecraft.display.guarding import print_guard_data, print_guard_rates, print_screenings
from cuecraft.display.results import (
    print_comparison,
    print_exported,
    print_family,
    print_manifest,
    print_mix,
    print_predictions,
    print_tuned,
    print_words,
)
from cuecraft.display.runs import (
    print_check,
    print_differences,
    print_recipes,
    print_run,
    print_run_comparison,
    print_runs,
)

__all__ = [
    "agrees",
    "already_finished",
    "bulk_progress",
    "demo_document",
    "fail",
    "page",
    "print_advice",
    "print_check",
    "print_classified",
    "print_comparison",
    "print_demo",
    "print_differences",
    "print_exported",
    "print_family",
    "print_guard_data",
    "print_guard_rates",
    "print_json",
    "print_manifest",
    "print_mix",
    "print_predictions",
    "print_recipes",
    "print_run",
    "print_run_comparison",
    "print_runs",
    "print_screenings",
    "print_tuned",
    "print_words",
    "progress",
    "resumable",
    "serving",
    "stopped",
    "stopping",
    "warn",
]
