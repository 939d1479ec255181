"""Parts of sentences."""

from __future__ import annotations

from collections.abc import Sequence

MOST_NAMED = 4
"""Items, such as pipelines or actions, that a sentence names; `themis why` and the page show all of them."""


def first_of(texts: Sequence[str], separator: str, noun: str) -> str:
    """At most `MOST_NAMED` of the texts; of any others their number."""
    further = len(texts) - MOST_NAMED
    named = separator.join(texts[:MOST_NAMED])
    return f"{named}{separator}and {further} further {noun}" if further > 0 else named
