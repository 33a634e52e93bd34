"""Serving tuned prompts: many of them, over one backbone, in one batch."""
