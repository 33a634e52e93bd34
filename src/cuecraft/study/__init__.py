"""Comparison of methods on one task, and advice before anything is tuned."""
