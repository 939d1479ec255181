"""A crash is told with the requests that were lost on the server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import server
from themis_triton.act.crash_reports import CrashReports
from themis_triton.adapters.envoy import broken_requests
from themis_triton.adapters.envoy.broken_requests import RECENT_S, BrokenRequests
from themis_triton.core.address import Address
from themis_triton.core.fleet import Server
from themis_triton.core.incident import BrokenRequest

BEGAN = "2026-01-01T00:00:00.500Z"
BEGAN_S = 1767225600.5


class Witness:
    def __init__(self, *requests: BrokenRequest) -> None:
        self.requests = requests

    async def broken_requests(self, _: Server) -> tuple[BrokenRequest, ...]:
        return self.requests


def test_the_lost_requests_are_named_and_repeated_crashes_of_a_model_are_counted() -> None:
    told: list[str] = []

    async def crash(reports: CrashReports, *requests: BrokenRequest) -> str:
        reports.witness = Witness(*requests)
        reports.report(server("a"), "a has crashed")
        await asyncio.gather(*reports.tasks)
        return told[-1]

    async def scenario() -> None:
        reports = CrashReports(lambda _, words: told.append(words))
        detector = BrokenRequest("detector", "10.0.0.5")
        assert await crash(reports) == "a has crashed"
        assert await crash(reports, detector) == "a has crashed; requests were lost on it: detector from 10.0.0.5"
        several = (detector, *(BrokenRequest(None, f"10.0.0.{number}") for number in range(4)))
        assert await crash(reports, *several) == (
            "a has crashed; requests were lost on it: detector from 10.0.0.5, no model from 10.0.0.0, no model from 10.0.0.1, 2 more "
            "(2 crashes of servers that ran detector)"
        )

    asyncio.run(scenario())


def line(**changes: object) -> str:
    own = {"event": "request_broken", "time": BEGAN, "duration_ms": 1500, "path": "/v2/models/a%20b/infer", "model": None, "attempts": 1}
    return json.dumps({**own, "last_server": "10.0.0.1:8000", "client": "10.0.0.9", **changes})


def test_only_new_requests_of_the_server_and_those_that_went_on_are_read_and_other_lines_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (
        "[warning] something else",
        line(),
        line(),
        line(model=["detector"], path="/inference.GRPCInferenceService/ModelInfer", last_server="10.0.0.1:8001"),
        line(client="elsewhere", last_server="10.0.0.2:8000"),
        line(client="resent", last_server="10.0.0.2:8000", attempts=2),
        line(client="long ago", duration_ms=1500 - 1000 * RECENT_S),
        *(line(**{key: "?"}) for key in ("time", "duration_ms", "attempts")),
        line()[:-30],
    )
    log = tmp_path / "envoy.log"
    log.write_text("\n".join(lines))
    own = replace(server("a"), grpc_address=Address("10.0.0.1", 8001), http_address=Address("10.0.0.1", 8000))
    bench = Bench()  # Its clock is another one than that of Envoy's log.
    monkeypatch.setattr(broken_requests, "time_of_day_s", lambda: BEGAN_S + 2.0)
    read = asyncio.run(BrokenRequests(log, bench.clock).broken_requests(own))
    assert read == (BrokenRequest("a b", "10.0.0.9"), BrokenRequest("detector", "10.0.0.9"), BrokenRequest("a b", "resent"))
    assert asyncio.run(BrokenRequests(tmp_path / "absent", bench.clock).broken_requests(own)) == ()
