import io
import json
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from themis_triton.core.fleet import Phase
from themis_triton.demo.frame import DemoFrame, DemoServer, DemoSummary
from themis_triton.demo.view import EVENT_ROWS, LiveView, plain_line, render, sparkline, summary_table

FRAME = DemoFrame(
    at_s=42.0,
    duration_s=120.0,
    rate_rps=151.0,
    capacity_rps=184.0,
    p50_ms=88.0,
    p99_ms=241.0,
    slo_ms=300.0,
    servers=(
        DemoServer("triton-0", Phase.SERVING, {"video-detector": 4, "video-classifier": 3}),
        DemoServer("triton-1", Phase.WARMING, {"video-detector": 2}),
    ),
    instances=9,
    mode="absorb",
    last_decision="surge: video needs 163/s of 92/s (1→3 servers)",
    recent_events=tuple(f"event {number}" for number in range(6)),
    requests=4321,
    failed=0,
    attainment=0.9987,
)


def text_of(renderable: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_view_shows_every_fact() -> None:
    text = text_of(render(FRAME, [FRAME]))
    facts = ("42 of 120 s", "151 req/s", "184 req/s", "241 ms of SLO 300 ms", "9 on 1 server", "absorb", FRAME.last_decision)
    rows = (
        "triton-0",
        "serving",
        "triton-1",
        "warming",
        "video-detector",
        "4,321 requests",
        "0 failed",
        "99.87% within the SLO",
        "p50 88 ms",
    )
    for fact in facts + rows:
        assert fact in text, fact
    assert "event 5" in text
    assert "event 1" not in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_view_fits_a_small_terminal_and_does_not_jump(width: int) -> None:
    """Three servers and many events in 24 lines; as high with no event at all."""
    three = replace(FRAME, servers=(*FRAME.servers, DemoServer("triton-2", Phase.DRAINING, {})))
    lines = text_of(render(three, [three] * 500), width).splitlines()
    assert len(lines) <= 24
    assert max(len(line) for line in lines) <= width
    quiet, wordy = replace(three, recent_events=()), replace(three, last_decision="because " * 60)
    for other in (quiet, wordy):
        assert len(text_of(render(other, [three]), width).splitlines()) == len(lines)


def test_nothing_known_yet() -> None:
    blank = replace(FRAME, capacity_rps=None, p50_ms=None, p99_ms=None, servers=(), instances=0, last_decision="", recent_events=())
    text = text_of(render(blank, [blank]))
    assert "none yet" in text
    assert "– ms of SLO" in text
    assert "– req/s" in text


def test_a_sparkline_keeps_its_peaks_and_marks_what_is_above_the_limit() -> None:
    values = [1.0] * 500
    values[250] = 8.0
    line = sparkline(values, 20, top=8.0, limit=5.0)
    assert len(line.plain) == 20
    assert line.plain.count("█") == 1
    assert [span.style for span in line.spans].count("red") == 1


def test_a_sparkline_of_gaps_zeros_and_beyond_the_top() -> None:
    assert sparkline([None, 0.0, 99.0], 10, top=8.0).plain == " ▁█"
    assert sparkline([0.0], 10, top=0.0).plain == "▁"


def test_without_a_terminal_there_is_one_plain_line_every_five_seconds() -> None:
    console = Console(file=io.StringIO(), width=60)
    with LiveView(console) as view:
        for half_second in range(41):
            view.update(replace(FRAME, at_s=half_second / 2))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line.split("/")[0].strip() for line in lines] == ["0", "5", "10", "15", "20"]
    assert lines[0] == plain_line(replace(FRAME, at_s=0.0))
    for fact in ("151 req/s of 184", "p99 241 ms (SLO 300)", "servers 1/2", "instances 9", "failed 0", "absorb: surge: video"):
        assert fact in lines[0], fact


def test_on_a_terminal_the_view_is_drawn_in_place() -> None:
    console = Console(file=io.StringIO(), width=100, height=40, force_terminal=True)
    with LiveView(console) as view:
        view.update(FRAME)
        view.update(replace(FRAME, at_s=43.0))
    assert isinstance(console.file, io.StringIO)
    assert "43 of 120 s" in console.file.getvalue()
    assert "\x1b[" in console.file.getvalue()


def test_the_summary_says_what_it_cost_and_what_was_done() -> None:
    summary = DemoSummary("themis", 9653, 0, 300.0, 0.9981, 81.2, 262.9, 241.5, 1187.0, 3, 16, {"grow": 6, "launch": 2, "rebatch": 0})
    summary = replace(summary, server_seconds_by_kind={"adopted": 60.0, "launched": 170.0, "starting": 11.5, "draining": 0.0})
    text = text_of(summary_table(summary))
    assert "60 adopted + 170 launched + 12 starting" in text
    for fact in ("themis", "9,653", "300 ms", "99.81%", "81 / 263 ms", "242 (3)", "1,187 (16)", "6 × grow, 2 × launch"):
        assert fact in text, fact
    assert "rebatch" not in text
    assert "cold start" not in text
    assert ["launched", "servers", "served", "from", "second", "none"] in [line.split() for line in text.splitlines()]
    keys = "policy requests failed slo_ms slo_attainment p50_ms p99_ms server_seconds instance_seconds max_servers max_instances actions"
    assert list(json.loads(summary.json_line())) == [*keys.split(), "cost", "cold_start_s", "joined_at_s", "server_seconds_by_kind"]


def test_the_summary_has_the_cold_start_and_when_servers_joined() -> None:
    summary = DemoSummary("themis", 100, 0, 300.0, 1.0, 80.0, 90.0, 9.0, 9.0, 3, 9, cold_start_s=20.0, joined_at_s=(31, 45))
    rows = [line.split() for line in text_of(summary_table(summary)).splitlines()]
    assert ["cold", "start", "of", "a", "launched", "server", "20", "s"] in rows
    assert ["launched", "servers", "served", "from", "second", "31,", "45"] in rows


def test_events_take_a_fixed_number_of_rows() -> None:
    assert text_of(render(FRAME, [FRAME])).count("event ") == EVENT_ROWS
