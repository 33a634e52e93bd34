"""`auto`: chooses method and settings by cross-validation."""

from cuecraft.methods.auto.choice import Auto

__all__ = ["Auto"]
