"""Recorded time again: the same decisions, or others, and what would have come of them."""
