"""The names and calls that papers and blog posts use, over the same code as everything else.

`AutoPrompt(...).search()` finds words; `PrefixTuning(model)` is a module for a training loop of one's own.
"""

from cuecraft.api.classic.autoprompt import AutoPrompt
from cuecraft.api.classic.prefix import PrefixTuning

__all__ = ["AutoPrompt", "PrefixTuning"]
