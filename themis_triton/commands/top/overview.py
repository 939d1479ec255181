"""The overview of `themis top`: what it does and why, pipelines, servers on their devices, and the newest decisions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.text import Text

from themis_triton.commands.moments import age
from themis_triton.commands.status_command import counted, headline, instances_words, notices
from themis_triton.commands.top.grid import Column, first_lines, folded, line, shares, table
from themis_triton.commands.top.screen import Effect, Screen
from themis_triton.commands.top.states import pipeline_state, server_notes, server_state
from themis_triton.core.fleet import Server
from themis_triton.core.printable import one_line
from themis_triton.core.status import PipelineStatus, Status

SENTENCE_LINES = 2
SELECTED_LINES = 3
LEAST_LINES = (4, 4, 2, 4)
"""Of pipelines, servers, notices and decisions, on a low terminal."""
STALE_S = 5.0
BARS = "▁▂▃▄▅▆▇█"
BAR_CELLS = 10
RATES_SHOWN = 16
KEYS = "q quit   w why   p pause   r resume   ↑↓ select"
_STYLES = ("red", "yellow")


def overview(screen: Screen, width: int, height: int, now_s: float) -> list[Text]:
    """The lines of the overview, as many as the terminal has."""
    status = screen.status
    if status is None:
        words = screen.error or "waiting for the sidecar's status"
        body = [line(row, width, "red" if screen.error else "dim") for row in folded(words, width, height - 1)]
        return _with_footer(body, screen, width, height)
    top = _top(screen, status, width, now_s)
    sections = [_pipelines(status, screen, width), _servers(status, width), _notices(status, width), _decisions(screen, width, now_s)]
    space = height - len(top) - 1
    given = shares(space, [len(section) for section in sections], LEAST_LINES)
    body = [text for section, lines in zip(sections, given, strict=True) for text in first_lines(section, lines)]
    return _with_footer(top + body, screen, width, height)


def _with_footer(body: Sequence[Text], screen: Screen, width: int, height: int) -> list[Text]:
    kept = list(body[: height - 1])
    return [*kept, *[Text()] * (height - 1 - len(kept)), footer(screen, width, KEYS)]


def footer(screen: Screen, width: int, keys: str) -> Text:
    """The last line: a question, the outcome of the last change, or the keys."""
    if screen.asked is Effect.PAUSE:
        return line("Pause: from the next tick on nothing is changed until it is resumed. y: yes, any other key: no", width, "bold reverse")
    if screen.asked is Effect.RESUME:
        return line("Resume: decisions are carried out again. y: yes, any other key: no", width, "bold reverse")
    return line(screen.notice or keys, width, "bold" if screen.notice else "dim")


def _top(screen: Screen, status: Status, width: int, now_s: float) -> list[Text]:
    mode = "PAUSED" if status.paused else status.mode
    at = f"last tick {age(now_s - status.at_s)} ago" if status.at_s is not None else "no tick yet"
    first = Text(no_wrap=True)
    first.append("themis top", style="bold")
    first.append(f"  {status.policy}, ")
    first.append(mode, style="bold yellow reverse" if status.paused else "bold")
    first.append(f"  {at}, cost {status.cost_per_s:g} price units/s", style="dim")
    first.truncate(width, overflow="ellipsis")
    silent_s = now_s - status.at_s if status.at_s is not None else 0.0
    if screen.error or silent_s > STALE_S:
        words = screen.error or "no tick has succeeded lately"
        rows = folded(f"{words}. What follows is {age(silent_s)} old", width, SENTENCE_LINES)
        return [first, *(line(row, width, "bold red") for row in rows)]
    style = "bold red" if status.tick_error is not None else "bold"
    return [first, *(line(row, width, style) for row in folded(headline(status), width, SENTENCE_LINES))]


def _notices(status: Status, width: int) -> list[Text]:
    """Limits, faults, what is under way and what comes next, the worst first."""
    found = sorted(notices(status), key=lambda notice: _STYLES.index(notice[1]) if notice[1] in _STYLES else len(_STYLES))
    return [Text(), *(line(words, width, "" if style == "default" else style) for words, style in found)] if found else []


def _pipelines(status: Status, screen: Screen, width: int) -> list[Text]:
    columns = (
        Column("", rank=0),
        Column("pipeline", flexible=True),
        Column("state", rank=1),
        Column("rate/s", right=True),
        Column("last 5 minutes", rank=7),
        Column("capacity", right=True, rank=2),
        Column("used", rank=6),
        Column("p99 ms", right=True),
        Column("SLO ms", right=True, rank=3),
        Column("late 1h", right=True, rank=4),
        Column(counted(status), right=True, rank=5),
    )
    ordered = sorted(status.pipelines, key=lambda pipeline: (pipeline_state(pipeline).rank, pipeline.name))
    rows = table(columns, [_pipeline_cells(pipeline, screen.rates.get(pipeline.name, ())) for pipeline in ordered], width)
    return [Text(), *rows] if ordered else []


def _pipeline_cells(pipeline: PipelineStatus, rates: Sequence[float]) -> list[tuple[str, str]]:
    state, estimate, evidence = pipeline_state(pipeline), pipeline.estimate, pipeline.evidence
    servers = "–" if evidence is None else str(evidence.servers_now)
    if evidence is not None and evidence.servers_desired != evidence.servers_now:
        servers += f"→{evidence.servers_desired}"
    p99_ms = estimate.p99_ms if estimate is not None else None
    capacity_rps = evidence.capacity_rps if evidence is not None and pipeline.is_known else None
    used = evidence.demand_fast_rps / capacity_rps if evidence is not None and capacity_rps else None
    return [
        (state.mark, state.style),
        (pipeline.name, ""),
        (state.words, state.style),
        (_number(estimate.recent_rps if estimate is not None else None), ""),
        (_trend(rates), "dim"),
        (_number(capacity_rps), ""),
        (_bar(used), "yellow" if used is not None and used > 1.0 else "dim"),
        (_number(p99_ms), "bold red" if pipeline.slo_violated else ""),
        (_number(pipeline.slo_ms), "dim"),
        (_late(pipeline.slo_hour.attainment), ""),
        (servers, ""),
    ]


def _late(attainment: float | None) -> str:
    return "–" if attainment is None else f"{100 * (1 - attainment):.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _trend(rates: Sequence[float]) -> str:
    """Rates as bars, the largest as the highest."""
    top = max(rates, default=0.0)
    return "".join(BARS[min(len(BARS) - 1, int(len(BARS) * rate / top))] if top else BARS[0] for rate in rates[-RATES_SHOWN:])


def _bar(used: float | None) -> str:
    """The demand's part of the capacity, as a bar and a number."""
    if used is None:
        return "–"
    filled = min(BAR_CELLS, round(BAR_CELLS * used))
    return f"{'█' * filled}{'░' * (BAR_CELLS - filled)} {100 * used:.0f} %"


def _servers(status: Status, width: int) -> list[Text]:
    columns = (
        Column("", rank=0),
        Column("device", rank=1, flexible=True),
        Column("server", flexible=True),
        Column("state"),
        Column("instances", flexible=True, rank=2),
        Column("under way", flexible=True, rank=3),
        Column("free", right=True, rank=4),
    )
    ordered = sorted(status.servers, key=lambda server: (server_state(server, status).rank, server.device, server.name))
    rows = table(columns, [_server_cells(server, status) for server in ordered], width)
    return [Text(), *rows] if ordered else []


def _server_cells(server: Server, status: Status) -> list[tuple[str, str]]:
    state = server_state(server, status)
    models = ", ".join(f"{model} {instances_words(held)}" for model, held in sorted(server.models.items()))
    return [
        (state.mark, state.style),
        (", ".join(device for device in server.devices if server.runs_on(device)) or server.device, ""),
        (server.name, ""),
        (state.words, state.style),
        (models, ""),
        (server_notes(server, status), "cyan"),
        (_free_memory(server, status), "dim"),
    ]


def _free_memory(server: Server, status: Status) -> str:
    """The free memory of the server's device, where it is measured."""
    for reading in status.devices:
        if reading.device == server.device and reading.memory_free_bytes is not None:
            return f"{reading.memory_free_bytes / 2**30:.1f} GiB"
    return ""


def _decisions(screen: Screen, width: int, now_s: float) -> list[Text]:
    """The newest changes, newest first, from the selected one on where it would be out of sight."""
    events, selected = screen.events, screen.selected
    lines = [
        Text(),
        line(f"{'decisions':<10}(w explains the selected one)" if events else "no decision has changed anything yet", width, "dim"),
    ]
    place = events.index(selected) if selected is not None else 0
    for event in events[max(0, place - 2) :]:
        at = f"{datetime.fromtimestamp(event.at_s, UTC).astimezone():%H:%M:%S} {age(now_s - event.at_s):>5}"
        if event != selected:
            lines.append(line(f"  {at}  {one_line(event.sentence)}", width))
            continue
        first, *rest = folded(event.sentence, width - len(at) - 4, SELECTED_LINES)
        lines.append(line(f"› {at}  {first}", width, "reverse"))
        lines += [line(" " * (len(at) + 4) + row, width, "bold") for row in rest]
    return lines
