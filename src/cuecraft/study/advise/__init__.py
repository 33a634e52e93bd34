"""Advice: what the data and a measurement of about a minute say about which method fits, and what it will take."""

from cuecraft.study.advise.document import run_advise
from cuecraft.study.advise.rules import AdviseRequest

__all__ = ["AdviseRequest", "run_advise"]
