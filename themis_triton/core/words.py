"""Parts of sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence

ADVICE = "; would "
MOST_NAMED = 4
"""Items, such as pipelines or actions, that a sentence names; `themis why` and the page show all of them."""


def without_numbers(sentence: str, decision_id: str) -> tuple[str, str]:
    """What a tick's sentence says, without the numbers of its evidence, and its actions, without the names that this decision gives."""
    opening, _, actions = sentence.rpartition(ADVICE) if ADVICE in sentence else sentence.partition(";")
    return re.sub(r"\d+(\.\d+)?", "#", opening), actions.replace(f"-{decision_id}", "-#")


def first_of(texts: Sequence[str], separator: str, noun: str, *, total: int | None = None) -> str:
    """At most `MOST_NAMED` of the texts; of any others their number. `total`: how many there are, where not all are given."""
    further = (len(texts) if total is None else total) - MOST_NAMED
    named = separator.join(texts[:MOST_NAMED])
    return f"{named}{separator}and {further} further {noun}" if further > 0 else named
