"""What the web page makes of a status: its view functions, run by Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.unit.samples import NOW_S, server
from themis_triton.commands.top.states import pipeline_state
from themis_triton.core.attainment import SloWindow
from themis_triton.core.config import Mode
from themis_triton.core.decision import Clamp, ClampKind, PipelineEvidence
from themis_triton.core.encoding import plain
from themis_triton.core.estimate import LearntTimes, PipelineEstimate, PipelineKnowledge
from themis_triton.core.fleet import Phase
from themis_triton.core.overrides import Bounds, Counted, Drain, ModeOverride, Overrides
from themis_triton.core.status import STATUS_VERSION, NodesStatus, NodeTypeStatus, PipelineStatus, Status, StatusEvent

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="no node")
STATE = Path(str(files("themis_triton"))) / "page" / "state.js"
SCRIPT = f"""
import {{ readFileSync }} from "node:fs";
import {{ conditions, headline, pipelineState, serverState, serverNotes }} from {json.dumps(STATE.as_uri())};
const statuses = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(statuses.map((status) => ({{
  banners: conditions(status).map((each) => [each.level, each.text]),
  headline: headline(status),
  states: status.pipelines.map((pipeline) => pipelineState(pipeline).word),
  servers: status.servers.map((server) => [serverState(server, status).word, ...serverNotes(server, status)]),
}}))));
"""
CALM = Status(
    STATUS_VERSION, "1", 1, NOW_S - 60.0, "active", "themis", paused=False, sentence="steady", tick=9, at_s=NOW_S, reason="steady"
)
PINNED = Bounds(Counted.INSTANCES, "detector", 3, 3, NOW_S + 90.0, "alice", "a test")
BOUNDED = Bounds(Counted.SERVERS, "video", 1, 4, NOW_S + 600.0)
WAITING, LEFT = Drain("a", NOW_S, launched=False, by="bob"), Drain("b", NOW_S, launched=False, left=True)
CRASH = StatusEvent(NOW_S - 5.0, "d", ("incident", "server_crashed"), "s has crashed")
SERVES_ON = "a is drained once the other servers of video carry 60/s: they carry 43/s, and another one is on its way"


@cache
def node_views(text: str, script: str = SCRIPT) -> Any:
    """The views of statuses as JSON text, or what another script makes of its input."""
    command = [str(NODE), "--input-type=module", "--eval", script]
    ended = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


CASES: Sequence[tuple[Status, Sequence[tuple[str, str]]]] = (
    (CALM, []),
    (replace(CALM, paused=True, mode="advisory"), [("warn", "Paused: Themis shows what it would do and changes nothing")]),
    (replace(CALM, mode="advisory"), [("info", "Advisory mode: Themis shows what it would do")]),
    (
        replace(CALM, overrides=Overrides((PINNED, BOUNDED))),
        [
            ("warn", "detector is pinned at 3 instances a server by alice: a test, for 90 s more"),
            ("warn", "video is bounded to 1 to 4 servers, for 10 min more"),
        ],
    ),
    (replace(CALM, overrides=Overrides(mode=ModeOverride(Mode.ACTIVE, "eve", "why"))), [("warn", "Switched to active mode by eve: why")]),
    (
        replace(CALM, reason="hold_stale", stale={"proxy": "4 s old"}),
        [("warn", "Holding, readings are stale"), ("warn", "Stale readings of proxy: 4 s old")],
    ),
    (replace(CALM, reason="hold_no_server"), [("warn", "Holding, no server is ready: nothing is changed")]),
    (replace(CALM, predictions=("predictions of video do not hold: 12 %",)), [("bad", "Predictions of video do not hold: 12 %")]),
    (replace(CALM, drift=("detector takes 1.4 times its expected time",)), [("warn", "Drift: detector takes 1.4 times")]),
    (
        replace(CALM, clamps=(Clamp(ClampKind.MEMORY, "a cannot grow"), Clamp(ClampKind.PACE, "later"))),
        [("info", "Limited: a cannot grow; and 1 other limit")],
    ),
    (replace(CALM, events=(CRASH,)), [("warn", "1 crash of servers in the last 10 min")]),
    (replace(CALM, events=(CRASH, CRASH, CRASH)), [("bad", "Crash loop: 3 crashes of servers in the last 10 min")]),
    (replace(CALM, events=(replace(CRASH, at_s=NOW_S - 700.0),)), []),
    (replace(CALM, backing_off={"cpu:0": NOW_S + 8.0}), [("warn", "cpu:0 is in back-off after a failure, for 8.0 s more")]),
    (replace(CALM, resting={"cpu:0": "the warm-up fails"}), [("warn", "cpu:0 rests: the warm-up fails")]),
    (
        replace(CALM, faults=("a does not answer",), tick_error="the last tick failed"),
        [("bad", "the last tick failed"), ("bad", "a does not answer")],
    ),
    (
        replace(CALM, routes_unwritten="disk full", journal_trouble="locked", settings_edited="the file differs"),
        [("bad", "Routes are not written: disk full"), ("bad", "locked"), ("warn", "The file differs")],
    ),
    (
        replace(
            CALM,
            overrides=Overrides(drains=(WAITING, LEFT)),
            clamps=(Clamp(ClampKind.DRAIN, SERVES_ON),),
            servers=(server("a"), server("b"), server("c")),
        ),
        [
            ("info", f"Limited: {SERVES_ON}"),
            ("warn", "a is to be drained by bob"),
            ("warn", "b is drained (it runs on, and gets no new requests)"),
        ],
    ),
)


def test_a_server_that_comes_has_its_remaining_time() -> None:
    coming = replace(CALM, servers=(server("a", phase=Phase.LAUNCHING), server("b")), busy=("b/m",), remaining_s={"a": 12.0, "b/m": 0.0})
    assert node_views(json.dumps([plain(coming)]))[0]["servers"] == [
        ["Starting", "starting, ready in about 12 s"],
        ["Serving", "changing m, longer than expected"],
    ]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_each_condition_has_its_banner_and_no_other(number: int) -> None:
    banners = node_views(json.dumps([plain(status) for status, _ in CASES]))[number]["banners"]
    expected = CASES[number][1]
    assert [level for level, _ in banners] == [level for level, _ in expected], banners
    assert all(text.startswith(words) for (_, text), (_, words) in zip(banners, expected, strict=True)), banners


def test_a_decision_of_many_pipelines_is_told_without_the_numbers_of_each() -> None:
    script = f"""
    import {{ readFileSync }} from "node:fs";
    import {{ brief }} from {json.dumps((STATE.parent / "format.js").as_uri())};
    console.log(JSON.stringify(brief(readFileSync(0, "utf8"), 20)));
    """
    numbers = "scaling out: p0 demand 9/s exceeds capacity 4/s, servers 1→2; p1 demand 2/s, capacity 4/s; and 16 further pipelines"
    assert node_views(f"{numbers}; grow m on a 3→4", script) == "grow m on a 3→4"
    assert node_views(numbers, script) == numbers


LATE = SloWindow(1000.0, 185.0, 0.815, -17.5)


@pytest.mark.parametrize(
    ("violated", "minute", "word", "headline"),
    [
        (False, SloWindow(1000.0, 0.0, 1.0, 1.0), "Inside SLO", "Steady: video is inside its SLO"),
        (False, LATE, "Just late", "Steady: video is inside its SLO again; of its last minute 18.5 % were late"),
        (True, LATE, "SLO missed", "Steady: video misses its SLO now"),
        (False, SloWindow(50.0, 1.0, 0.98, -1.0), "Inside SLO", "Steady: video is inside its SLO"),
    ],
)
def test_late_requests_of_the_last_minute_are_told_although_p99_is_inside_the_slo_by_now(
    violated: bool, minute: SloWindow, word: str, headline: str
) -> None:
    estimate = PipelineEstimate("video", 60.0, 60.0, 60.0, 0.0, 0.0, 161.0)
    pipeline = PipelineStatus("video", ("detector",), 300.0, 99.0, estimate, slo_violated=violated, slo_minute=minute)
    (view,) = node_views(json.dumps([plain(replace(CALM, pipelines=(pipeline,)))]))
    assert (view["states"], view["headline"]) == ([word], headline)
    assert pipeline_state(pipeline).words == word.lower().replace("slo", "SLO")


@pytest.mark.parametrize(("enough", "word"), [(False, "Learning"), (True, "Above capacity")])
def test_a_capacity_that_is_a_guess_is_exceeded_by_nothing(*, enough: bool, word: str) -> None:
    estimate = PipelineEstimate("video", 60.0, 60.0, 60.0, 0.0, 0.0, 161.0)
    evidence = PipelineEvidence("video", 60.0, 60.0, 40.0, 300.0, 161.0, None, 1, 1)
    knowledge = PipelineKnowledge("video", enough, (LearntTimes("detector", 34.0, 0.0, 10.0),))
    pipeline = PipelineStatus("video", ("detector",), 300.0, 99.0, estimate, evidence, knowledge=knowledge)
    (view,) = node_views(json.dumps([plain(replace(CALM, pipelines=(pipeline,)))]))
    assert (view["states"], pipeline_state(pipeline).words) == ([word], word.lower())


def test_a_drained_server_is_marked_in_the_fleet_with_what_it_waits_for() -> None:
    view = node_views(json.dumps([plain(status) for status, _ in CASES]))[-1]
    assert view["servers"] == [
        ["To be drained", SERVES_ON],
        ["Drained", "b is drained (it runs on, and gets no new requests)"],
        ["Serving"],
    ]


NODE_TYPES = f"""
import {{ readFileSync }} from "node:fs";
import {{ nodeTypeCells, nodeTypeState, nodesNote }} from {json.dumps(STATE.as_uri())};
const {{ nodes }} = JSON.parse(readFileSync(0, "utf8"));
const rows = nodes.node_types.map((each) => [nodeTypeState(each).word, ...nodeTypeCells(each)]);
console.log(JSON.stringify([nodesNote(nodes, {NOW_S}), ...rows]));
"""


def test_node_types_say_what_is_free_and_how_old_that_is() -> None:
    types = (
        NodeTypeStatus("spot", 0.45, 6, 4, 2, {"gpu": 8.0}, {"gpu": 1.0}, 0),
        NodeTypeStatus("on-demand", None, 4, 0, 1, {"gpu": 4.0}, None, None),
        NodeTypeStatus("none", 2.0, 4, 0, 0, {}, {}, 0),
        NodeTypeStatus("later", 2.0, 4, 0),
        NodeTypeStatus("used", 2.0, 4, 4, 1, {}, {}, 3),
    )
    status = replace(CALM, nodes=NodesStatus(types, NOW_S - 40.0, "no answer"))
    assert node_views(json.dumps(plain(status)), NODE_TYPES) == [
        "nodes as of 40 s ago: no answer",
        ["Full", "0.45", "4 of 6", "2", "1 of 8 gpu", "0"],
        ["Has nodes", "–", "0 of 4", "1", "4 gpu", "–"],
        ["No nodes", "2", "0 of 4", "0", "–", "0"],
        ["Not known", "2", "0 of 4", "–", "–", "–"],
        ["All slots used", "2", "4 of 4", "1", "–", "3"],
    ]
