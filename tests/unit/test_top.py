"""`themis top`: what it shows of a status at each size, what keys do, and how keys are read."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.cells import cell_len

from tests.e2e.terminal import watching
from tests.unit.samples import server
from themis_triton.adapters.sockets import free_ports
from themis_triton.commands.status_calls import LOCAL
from themis_triton.commands.terminal import TerminalConsole
from themis_triton.commands.top import command
from themis_triton.commands.top.command import Feed, carried_out, picture, top_command
from themis_triton.commands.top.grid import folded, shares
from themis_triton.commands.top.screen import Effect, Screen, pressed
from themis_triton.commands.top.terminal_keys import keys_of
from themis_triton.core.decision import PipelineEvidence
from themis_triton.core.decoding import decode
from themis_triton.core.errors import EnvironmentCheckError, ServerError
from themis_triton.core.estimate import PipelineEstimate
from themis_triton.core.fleet import Phase
from themis_triton.core.history import DecisionDetail
from themis_triton.core.status import PipelineStatus, Status, StatusEvent, decode_status

ROOT = Path(__file__).parents[2]
SCREENSHOTS = os.environ.get("THEMIS_SCREENSHOTS")
SVG = re.sub(r"@font-face \{\{.*?\n    \}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
"""Rich's own format, without fonts from another host."""
RECORDED = Path(__file__).parent / "recorded"
SURGE = decode_status(json.loads((RECORDED / "status-surge.json").read_text(encoding="utf-8")))
GROWTH = decode(DecisionDetail, json.loads((RECORDED / "decision-growth.json").read_text(encoding="utf-8")))
AT_S = (SURGE.at_s or 0.0) + 0.4
RATES = {name: tuple(rates) for name, rates in json.loads((RECORDED / "rates-surge.json").read_text(encoding="utf-8")).items()}
CONTROL_EVENT = StatusEvent(AT_S, "d", ("grow",), "grow \x1b[2J on a\n\n\tAt:\n;")


def shown(screen: Screen, width: int = 100, height: int = 30, now_s: float = AT_S) -> list[str]:
    """The lines on a terminal of that size."""
    console = TerminalConsole(file=io.StringIO(), width=width, height=height, color_system=None, force_terminal=False)
    console.print(picture(screen, width, height, now_s))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def crowd() -> Status:
    """Twenty pipelines, the last of which misses its SLO, and sixteen servers, the last of which does not answer."""
    estimate, evidence = (
        PipelineEstimate("p", 1234.0, 0.0, 0.0, 0.0, 0.0, 250.0),
        PipelineEvidence("p", 900.0, 900.0, 4567.0, 300.0, 250.0, None, 2, 3),
    )
    pipelines = tuple(PipelineStatus(f"pipeline-{n:02}", ("m",), 300.0, 99.0, estimate, evidence, n == 19) for n in range(20))
    servers = tuple(replace(server(f"server-{n:02}"), phase=Phase.UNRESPONSIVE if n == 15 else Phase.SERVING) for n in range(16))
    return replace(SURGE, reason="scale_out", pipelines=pipelines, servers=servers)


@pytest.mark.parametrize(("width", "height"), [(20, 6), (40, 12), (60, 20), (80, 24), (100, 30), (200, 70)])
@pytest.mark.parametrize("status", [SURGE, crowd()], ids=["surge", "crowd"])
def test_it_fits_every_terminal_and_shows_what_is_worst(status: Status, width: int, height: int) -> None:
    for screen in (Screen().with_status(status, RATES), replace(Screen().with_status(status, RATES), opened=GROWTH.id, detail=GROWTH)):
        lines = shown(screen, width, height)
        assert len(lines) == height
        assert max(map(cell_len, lines)) <= width
        assert lines[-1].startswith("q quit")
    worst = min(status.pipelines, key=lambda pipeline: (not pipeline.slo_violated, pipeline.name)).name
    if height > 6:
        assert any(worst in line for line in shown(Screen().with_status(status, RATES), width, height))


def test_a_surge_shows_pipelines_servers_decisions_and_the_sentence() -> None:
    lines = shown(Screen().with_status(SURGE, RATES), 140, 40)
    (pipeline,) = SURGE.pipelines
    assert pipeline.estimate is not None
    row = next(line for line in lines if f"  {pipeline.name} " in line)
    assert f" {pipeline.estimate.recent_rps:.0f} " in row
    assert f" {pipeline.estimate.p99_ms:.0f} " in row
    for held in SURGE.servers:
        assert any(
            held.name in line and f"video-detector {held.models['video-detector'].instances}" in line for line in lines if held.models
        )
    assert SURGE.sentence.split()[0] in lines[1]
    assert "› " in "".join(lines)
    assert sum(event.sentence[:40] in line for event in SURGE.events for line in lines) >= 3


def test_what_is_worst_comes_first_and_what_has_no_space_is_counted() -> None:
    lines = shown(Screen().with_status(crowd(), RATES), 100, 30)
    pipelines = [line for line in lines if "pipeline-" in line]
    assert "✖" in pipelines[0]
    assert "pipeline-19" in pipelines[0]
    assert "SLO missed" in pipelines[0]
    assert len(pipelines) < 20
    assert any(f"… {20 - len(pipelines)} more" in line for line in lines)
    servers = [line for line in lines if "server-" in line]
    assert "server-15" in servers[0]
    assert "not answering" in servers[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"paused": True}, "PAUSED"),
        ({"mode": "advisory"}, "advisory"),
        ({"faults": ("server a hangs",)}, "fault: server a hangs"),
        ({"stale": {"proxy": "4 s old"}}, "stale: proxy: 4 s old"),
        ({"tick_error": "the last tick failed", "sentence": "the last tick failed"}, "the last tick failed"),
        ({"backing_off": {"a/m": AT_S + 6.6}}, "in back-off after a failure: a/m, for 7 s more"),
        ({"next_steps": ("grow m on a 1→2",)}, "next: grow m on a 1→2"),
        ({"events": ()}, "no decision has changed anything yet"),
    ],
)
def test_what_an_operator_must_know_is_in_words(changes: dict[str, object], words: str) -> None:
    assert words in "\n".join(shown(Screen().with_status(replace(SURGE, **changes), RATES), 120, 40))  # type: ignore[arg-type]  # fields by name


def test_before_the_first_answer_and_after_the_last_it_says_so_with_the_age_of_what_it_shows() -> None:
    assert "waiting for the sidecar's status" in shown(Screen())[0]
    assert "no response" in shown(replace(Screen(), error="no response from x"))[0]
    lines = shown(replace(Screen().with_status(SURGE, RATES), error="no response from x"), now_s=AT_S + 60.0)
    assert "no response from x. What follows is 1 m old" in lines[1]
    assert any("video" in line for line in lines[3:])
    assert "no tick has succeeded lately" in "".join(shown(Screen().with_status(SURGE, RATES), now_s=AT_S + 60.0))


def test_names_from_outside_do_not_move_the_cursor() -> None:
    status = replace(SURGE, events=(CONTROL_EVENT,), servers=(replace(server("a"), name="\x1b]0;owned\x07"),))
    text = "\n".join(shown(Screen().with_status(status, RATES)))
    assert "grow \\x1b[2J on a At: ;" in text
    assert "\x1b" not in text


def test_the_explanation_has_evidence_limits_steps_and_what_came_of_it_and_scrolls() -> None:
    screen = replace(Screen().with_status(SURGE, RATES), opened=GROWTH.id, detail=GROWTH)
    text = "\n".join(shown(screen, 140, 60))
    for words in (
        GROWTH.sentence[:60],
        "demand/s",
        "capacity/s",
        "Steps",
        GROWTH.steps[0].sentence,
        "done after",
        "What came of it",
        "esc back",
    ):
        assert words in text
    top, below = shown(screen, 60, 8), shown(pressed(screen, "down")[0], 60, 8)
    assert top[1:7] == below[0:6]
    assert "more lines below" in top[-1]
    end = shown(replace(screen, scroll=999), 60, 8)
    assert "below" not in end[-1]
    assert end[0].strip() != ""


def test_a_pause_has_no_steps_to_explain() -> None:
    screen = replace(
        Screen().with_status(SURGE, RATES), opened="paused-1", detail=DecisionDetail("paused-1", AT_S, "paused", "paused by alice")
    )
    text = "\n".join(shown(screen))
    assert ("paused by alice" in text, "teps" in text) == (True, False)


def test_a_decision_that_cannot_be_read_says_why() -> None:
    screen = replace(Screen().with_status(SURGE, RATES), opened="d", notice="the journal has no decision 'd'")
    assert "the journal has no decision 'd'" in shown(screen)[0]


# Keys


def after(screen: Screen, *keys: str) -> tuple[Screen, Effect | None]:
    effect: Effect | None = None
    for key in keys:
        screen, effect = pressed(screen, key)
    return screen, effect


def test_a_pause_is_confirmed_and_anything_but_yes_changes_nothing() -> None:
    screen = Screen().with_status(SURGE, RATES)
    asked, effect = after(screen, "p")
    assert (asked.asked, effect) == (Effect.PAUSE, None)
    assert "Pause: from the next tick on nothing is changed until it is resumed. y: yes" in shown(asked)[-1]
    assert after(asked, "y")[1] is Effect.PAUSE
    for key in ("n", "p", "escape", "q", "enter"):
        left, effect = after(asked, key)
        assert (left.asked, left.notice, effect) == (None, "nothing was changed", None)


def test_only_a_change_that_changes_something_is_asked_for() -> None:
    paused = Screen().with_status(replace(SURGE, paused=True), RATES)
    assert after(paused, "p")[0].notice == "it is paused already"
    assert after(paused, "r", "y")[1] is Effect.RESUME
    assert after(Screen().with_status(SURGE, RATES), "r")[0].notice == "it is not paused"
    assert after(Screen(), "p")[0].asked is None


def test_a_decision_is_selected_opened_and_closed() -> None:
    screen = Screen().with_status(SURGE, RATES)
    newest_first = SURGE.events[::-1]
    assert screen.selected == newest_first[0]
    second, _ = after(screen, "down")
    assert second.selected == newest_first[1]
    assert after(second, "up", "up")[0].selected == newest_first[0]
    assert after(screen, *["j"] * 99)[0].selected == newest_first[-1]
    more = second.with_status(replace(SURGE, events=(*SURGE.events, CONTROL_EVENT)), RATES)
    assert more.selected == newest_first[1], "the selection stays when newer ones arrive"
    for key in ("w", "enter"):
        assert after(second, key)[1] is Effect.OPEN
    opened = replace(second, opened=GROWTH.id, detail=GROWTH)
    for key in ("escape", "w", "enter"):
        assert after(opened, "down", key)[0].opened is None
    assert after(opened, "q")[1] is Effect.QUIT
    assert after(Screen().with_status(replace(SURGE, events=()), RATES), "w")[1] is None


def test_the_rates_of_the_last_minutes_are_bars() -> None:
    assert "▁▅█" in "\n".join(shown(Screen().with_status(SURGE, {"video": (0.0, 50.0, 100.0)}), 160))


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1b[Bw", ["up", "down", "w"]),
        (b"\x1b", ["escape"]),
        (b"\r\n", ["enter", "enter"]),
        (b"\x1b[6~\x1b[5~", ["page_down", "page_up"]),
        (b"\x1b[1;5Cp", ["p"]),
        (b"\x1b[", []),
    ],
)
def test_keys_and_sequences_that_are_no_key(data: bytes, keys: list[str]) -> None:
    assert list(keys_of(data)) == keys


def test_lines_are_shared_by_need_and_order() -> None:
    assert shares(30, [4, 5, 2, 6], [3, 3, 1, 3]) == [4, 5, 2, 6]
    assert shares(13, [9, 9, 9, 9], [3, 3, 1, 3]) == [4, 4, 2, 3]
    assert shares(99, [9, 0, 9, 9], [3, 3, 1, 3]) == [9, 0, 9, 9]
    assert shares(5, [9, 9, 9, 9], [3, 3, 1, 3]) == [3, 2, 0, 0]


def test_a_sentence_is_broken_at_spaces_and_cut_at_the_end() -> None:
    assert folded("one two three four", 9, 2) == ["one two", "three fo…"]
    assert folded("one two", 9, 2) == ["one two"]


# The program around it


@contextmanager
def answers(monkeypatch: pytest.MonkeyPatch, **calls: object) -> Iterator[None]:
    with monkeypatch.context() as patch:
        for name, call in calls.items():
            patch.setattr(command, name, call)
        yield


def test_changes_and_explanations_are_calls_of_the_sidecar_and_failures_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, posted = Screen().with_status(SURGE, RATES), []

    def fail(*_: object, **__: object) -> None:
        raise ServerError("no response from x")

    with answers(monkeypatch, change=lambda _, api_path, **__: posted.append(api_path), fetch_decision=lambda *_: GROWTH):
        paused = carried_out(screen, Effect.PAUSE, Path("x"), LOCAL)
        resumed = carried_out(screen, Effect.RESUME, Path("x"), LOCAL)
        opened = carried_out(screen, Effect.OPEN, Path("x"), LOCAL)
    assert posted == ["/v1/pause", "/v1/resume"]
    assert paused.notice.startswith("paused")
    assert resumed.notice.startswith("resumed")
    assert (opened.opened, opened.detail) == (SURGE.events[-1].decision_id, GROWTH)
    with answers(monkeypatch, change=fail, fetch_decision=fail):
        for effect in (Effect.PAUSE, Effect.RESUME, Effect.OPEN):
            assert carried_out(screen, effect, Path("x"), LOCAL).notice == "no response from x"


def test_a_failed_reading_leaves_the_last_status_and_the_next_good_one_ends_the_error() -> None:
    feed = Feed(0, 0, reading=SURGE)
    screen = feed.newest(Screen())
    assert feed.newest(screen) is screen
    feed.reading = ServerError("gone")
    failed = feed.newest(screen)
    assert (failed.status, failed.error) == (SURGE, "gone")
    feed.reading = replace(SURGE, tick=SURGE.tick + 1)
    assert feed.newest(failed).error == ""


def test_without_a_terminal_it_names_the_command_that_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(EnvironmentCheckError, match=r"themis top needs a terminal\. Fix: `themis status -c x\.yaml` prints the same once"):
        top_command(Path("x.yaml"))


def test_the_picture_in_the_documents_is_what_it_draws_of_the_recorded_surge() -> None:
    """It is drawn anew with THEMIS_SCREENSHOTS=docs."""
    console = TerminalConsole(file=io.StringIO(), record=True, width=120, height=24, force_terminal=True, color_system="truecolor")
    console.print(picture(Screen().with_status(SURGE, RATES), 120, 24, AT_S))
    drawn = console.export_svg(title="themis top", code_format=SVG, unique_id="top")
    if SCREENSHOTS is not None:
        (Path(SCREENSHOTS) / "top.svg").write_text(drawn, encoding="utf-8")
    assert words_of(drawn) == words_of((ROOT / "docs" / "top.svg").read_text(encoding="utf-8"))
    assert re.search(r"url\(['\"]?http|href", drawn) is None, "nothing is loaded from elsewhere"


def words_of(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_in_a_terminal_it_says_that_no_sidecar_runs_asks_nothing_and_quits(tmp_path: Path) -> None:
    settings = tmp_path / "themis.yaml"
    settings.write_text(f"status: {{address: '127.0.0.1:{free_ports(1)[0]}'}}\n", encoding="utf-8")
    with watching(settings, "top", columns=60, lines=12) as terminal:
        terminal.text("No sidecar is running")
        terminal.press("p")
        terminal.text("nothing can be changed before the sidecar answers")
        terminal.press("\x1b[Bq")
        assert terminal.end() == 0
