"""The status as a value: encoded, decoded, and described by its published schema."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.unit.fakes import FakeClock
from tests.unit.samples import DETECTOR, NOW_S, action, config, record, server, snapshot
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.sockets import free_ports
from themis_triton.core.action import ActionKind
from themis_triton.core.address import Address
from themis_triton.core.attainment import SloWindow
from themis_triton.core.decision import Clamp, ClampKind, PipelineEvidence
from themis_triton.core.encoding import plain
from themis_triton.core.estimate import Estimate, ModelEstimate, PipelineEstimate
from themis_triton.core.fleet import ModelState, Phase, ProcessId
from themis_triton.core.json_schema import status_schema_text
from themis_triton.core.observation import DeviceReading, OpenCall
from themis_triton.core.record import TickRecord
from themis_triton.core.status import STATUS_PATH, Status, decode_status
from themis_triton.daemon.api import serving
from themis_triton.daemon.status import StatusBoard

SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "status.schema.json"


def ticked(at_s: float = NOW_S, p99_ms: float | None = 200.0) -> TickRecord:
    """A tick with a value in every part of the status."""
    first = replace(server("a"), process=ProcessId(1, 2))
    seen = replace(
        snapshot([first], at_s), devices=(DeviceReading("gpu:0", at_s, process_memory_bytes={7: 8}),), backing_off={"a/m": at_s + 1.0}
    )
    grown = record(action(ActionKind.GROW), seen=seen)
    estimated = Estimate(
        at_s,
        {DETECTOR: ModelEstimate(DETECTOR, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0)},
        {"video": PipelineEstimate("video", 1.0, 1.0, 1.0, 0.0, 0.0, p99_ms, per_second=(1.0, 2.0))},
        stale={"b": "silent"},
    )
    evidence = PipelineEvidence("video", 1.0, 1.0, 40.0, 300.0, p99_ms, 120.0, 1, 2)
    decision = replace(grown.decision, evidence=(evidence,), clamps=(Clamp(ClampKind.PACE, "one at a time"),))
    return replace(grown, estimate=estimated, decision=decision)


def board(*records: TickRecord) -> StatusBoard:
    result = StatusBoard(config(), NOW_S)
    for each in records:
        result.take(each, 1.5)
    return result


@pytest.mark.parametrize("records", [(), (ticked(),)], ids=["no tick yet", "one tick"])
def test_a_status_survives_encoding_and_fits_the_published_schema(records: tuple[TickRecord, ...]) -> None:
    status = board(*records).status()
    document = json.loads(json.dumps(plain(status)))
    assert decode_status(document) == status
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))


def test_the_published_schema_is_current() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == status_schema_text(), "run scripts/reference"


def test_no_key_of_model_control_leaves_the_sidecar() -> None:
    assert "secret-of-a" not in json.dumps(plain(board(ticked()).status()))


def test_the_slo_now_the_cost_and_the_next_step_are_told() -> None:
    seconds = (NOW_S, None), (NOW_S + 1.0, 200.0), (NOW_S + 2.0, 301.0), (NOW_S + 4.0, None), (NOW_S + 5.0, 301.0)
    status = board(*(ticked(at_s, p99_ms) for at_s, p99_ms in seconds)).status()
    (video,) = status.pipelines
    assert video.slo_violated is True
    assert status.next_steps == ("grow video-detector on a 1→2",)
    assert status.cost_per_s == config().prices.server + 2 * config().prices.instance
    idle = board(ticked(p99_ms=None)).status().pipelines[0]
    assert (idle.slo_violated, idle.slo_minute) == (None, SloWindow())


def test_what_is_coming_has_its_remaining_time() -> None:
    settings = config()
    profile = replace(settings.models[DETECTOR].profile, server_launch_s=15.0, instance_init_s=2.0)
    settings = replace(settings, models=settings.models | {DETECTOR: replace(settings.models[DETECTOR], profile=profile)})
    board, warming = StatusBoard(settings, NOW_S), server("new", phase=Phase.WARMING, slot="cpu:1")
    state = ModelState(1, 8)
    grown = OpenCall("a", DETECTOR, state, replace(state, instances=3), NOW_S + 3.0)
    for later_s in (0.0, 4.0):
        board.take(record(seen=replace(snapshot([server("a"), warming], NOW_S + later_s), open_calls=(grown,))), 1.0)
    assert board.status().remaining_s == {"new": 13.0, f"a/{DETECTOR}": 1.0}
    board.take(record(seen=replace(snapshot([server("a"), warming], NOW_S + 20.0))), 1.0)
    assert board.status().remaining_s == {"new": 0.0}
    board.take(record(seen=snapshot([server("a"), server("new")], NOW_S + 21.0)), 1.0)
    assert board.status().remaining_s == {}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"status_version": 2}, "status version 2 is not supported: expected 1"),
        ({"pid": "x"}, r"Status\.pid: 'x' is not a int"),
        ({"pid": True}, r"Status\.pid: True is not a int"),
        ({"tick_ms": "fast"}, r"Status\.tick_ms: 'fast' is not a number"),
        ({"servers": [{"name": "a"}]}, r"Status\.servers\[0\]\.device is missing"),
        ({"clamps": [{"kind": "whim", "sentence": ""}]}, r"Status\.clamps\[0\]\.kind: 'whim'"),
        ({"models": []}, r"Status\.models: \[\] is not a dict"),
    ],
)
def test_a_document_that_is_no_status_is_refused_with_its_place(change: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        decode_status(plain(board().status()) | change)
    assert decode_status(plain(board().status()) | {"new_key": 1}) == board().status()


def test_the_status_api_serves_its_version_links_and_a_clear_refusal_of_another() -> None:
    async def scenario() -> list[httpx.Response]:
        address = Address("127.0.0.1", free_ports(1)[0])
        async with serving(address, board(ticked()), Exporter(), FakeClock()), httpx.AsyncClient(trust_env=False) as client:
            return [await client.get(address.url(path)) for path in ("/", STATUS_PATH, "/v2/status", "/nowhere")]

    index, status, other, missing = asyncio.run(scenario())
    assert all(f'href="{path}"' in index.text for path in (STATUS_PATH[1:], "metrics"))
    assert isinstance(decode_status(status.json()), Status)
    assert (other.status_code, other.json()) == (404, {"error": "status version v2 is not served: expected /v1/status"})
    assert missing.status_code == 404


def test_advice_that_is_repeated_in_each_tick_is_one_event_and_hides_no_other() -> None:
    result = board()
    for number in range(60):
        result.take(replace(ticked(NOW_S + number), advisory=True), 1.5)
        if number == 30:
            result.add_event(NOW_S + number, "paused", "paused")
    assert [event.kinds for event in result.status().events] == [("grow",), ("paused",), ("grow",)]
    assert [event.at_s - NOW_S for event in result.status().events] == [30.0, 30.0, 59.0]
    acted = board(*(ticked(NOW_S + number) for number in range(3)))
    assert len(acted.status().events) == 3
