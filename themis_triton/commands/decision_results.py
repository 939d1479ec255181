"""What was predicted for a decision, and what came of it, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from themis_triton.commands.moments import age
from themis_triton.core.history import DecisionResult


def result_words(results: Iterable[DecisionResult]) -> Iterator[str]:
    """A sentence for each pipeline of which something was observed since."""
    for row in results:
        if row.measured_p99_ms is None and row.held_after_s is None:
            continue
        expected = f", expected after {row.predicted_holds_after_s:.0f} s" if row.predicted_holds_after_s is not None else ""
        held = f"inside the SLO after {age(row.held_after_s)}{expected}" if row.held_after_s is not None else "not inside the SLO yet"
        p99 = "no p99 measured" if row.measured_p99_ms is None else f"p99 {row.measured_p99_ms:.0f} ms at most"
        p99 += "" if row.predicted_p99_ms is None else f", {row.predicted_p99_ms:.0f} ms predicted"
        servers = "" if row.servers is None else f"; {row.servers:g} servers, {row.servers_desired} wanted"
        yield f"{row.pipeline}: {held}; {p99}{servers}"
