"""The explanation of one decision in `themis top`: evidence, limits, what lost, steps with outcomes, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from themis_triton.commands.decision_results import result_words
from themis_triton.commands.moments import moment
from themis_triton.commands.top.grid import Column, folded, line, table
from themis_triton.commands.top.overview import footer
from themis_triton.commands.top.screen import Screen
from themis_triton.core.history import DecisionDetail, DecisionStep

KEYS = "q quit   esc back   ↑↓ scroll"
MAX_LINES = 20
_OUTCOMES = {"done": "green", "refused": "bold red", "timed_out": "bold red", "lost": "bold red", "skipped": "dim"}


def explanation(screen: Screen, width: int, height: int, now_s: float) -> list[Text]:
    """The lines of the explanation, as many as the terminal has."""
    if screen.detail is None:
        words = screen.notice or f"reading {screen.opened}"
        lines = [line(row, width) for row in folded(words, width, height - 1)]
    else:
        lines = list(_lines(screen.detail, width, now_s))
    start = min(screen.scroll, max(0, len(lines) - (height - 1)))
    shown = lines[start : start + height - 1]
    below = len(lines) - start - len(shown)
    keys = f"{KEYS}   {below} more lines below" if below > 0 else KEYS
    return [*shown, *[Text()] * (height - 1 - len(shown)), footer(screen, width, keys)]


def _lines(detail: DecisionDetail, width: int, now_s: float) -> Iterator[Text]:
    yield line(f"{moment(detail.at_s, now_s)}  {detail.id}", width, "dim")
    yield from _folded(detail.sentence, width, "bold")
    if detail.policy is not None:
        advisory = ", advisory: nothing was changed" if detail.advisory else ""
        yield line(f"policy {detail.policy}, {detail.reason.replace('_', ' ')}{advisory}", width)
    yield from _evidence(detail, width)
    yield from _titled("Limits", [f"{clamp.kind.value}: {clamp.sentence}" for clamp in detail.clamps], width)
    lost = [f"{row.pipeline}: {row.runner_up}" for row in detail.evidence if row.runner_up]
    yield from _titled("Next best, and why it lost", lost, width)
    if detail.policy is not None:  # none: a change of the sidecar itself, such as a pause
        yield from _steps(detail, width)
    yield from _results(detail, width)


def _folded(words: str, width: int, style: str = "") -> Iterator[Text]:
    yield from (line(row, width, style) for row in folded(words, width, MAX_LINES))


def _titled(title: str, sentences: list[str], width: int) -> Iterator[Text]:
    if sentences:
        yield Text()
        yield line(title, width, "dim")
    for sentence in sentences:
        yield from _folded(sentence, width)


def _evidence(detail: DecisionDetail, width: int) -> Iterator[Text]:
    if not detail.evidence:
        return
    columns = (
        Column("pipeline", flexible=True),
        *(Column(title, right=True, rank=rank) for title, rank in (("demand/s", 0), ("stable/s", 3), ("capacity/s", 0))),
        *(Column(title, right=True, rank=rank) for title, rank in (("p99 ms", 1), ("predicted", 4), ("SLO ms", 2), ("now→wanted", 0))),
    )
    rows = [
        (
            row.pipeline,
            *map(
                _number, (row.demand_fast_rps, row.demand_slow_rps, row.capacity_rps, row.measured_p99_ms, row.predicted_p99_ms, row.slo_ms)
            ),
            f"{row.servers_now}→{row.servers_desired}",
        )
        for row in detail.evidence
    ]
    yield Text()
    yield from table(columns, [[(cell, "") for cell in row] for row in rows], width)


def _steps(detail: DecisionDetail, width: int) -> Iterator[Text]:
    yield Text()
    yield line("Steps" if detail.steps else "No steps: nothing had to be changed", width, "dim")
    for step in detail.steps:
        yield line(_step_words(step, detail), width, _OUTCOMES.get(step.outcome or "", "cyan"))
        if step.detail:
            yield from _folded(step.detail, width)


def _step_words(step: DecisionStep, detail: DecisionDetail) -> str:
    if step.outcome is None or step.duration_s is None:
        return f"{step.sentence}: {'not carried out' if detail.advisory else 'under way'}"
    return f"{step.sentence}: {step.outcome.replace('_', ' ')} after {step.duration_s:.1f} s"


def _results(detail: DecisionDetail, width: int) -> Iterator[Text]:
    yield from _titled("What came of it", list(result_words(detail.results)), width)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
