"""Advice: what the data and a measurement of about a minute say about which method fits, and what it will take."""

from cuecraft.advise.command import run_advise
from cuecraft.advise.request import AdviseRequest

__all__ = ["AdviseRequest", "run_advise"]
