"""`auto`: chooses method and settings by cross-validation."""

from cuecraft.tune.auto.choice import Auto

__all__ = ["Auto"]
