"""The reading calls of the status API: history, one decision, what-if plans, events and the API's own description.

None of them delays a tick: threads read the journal, each through a connection of its own, compute plans and encode the answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import wraps
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from themis_triton.adapters.store.history import read_decision, read_history
from themis_triton.adapters.store.minutes import read_report
from themis_triton.adapters.store.reader import JournalReader, reading
from themis_triton.core.day_report import REPORT_PATH, local_day
from themis_triton.core.encoding import plain
from themis_triton.core.errors import EnvironmentCheckError, SettingsError
from themis_triton.core.history import DECISION_PATH, HISTORY_PATH
from themis_triton.daemon.access import answer_error
from themis_triton.daemon.events import MAX_CLIENTS, EventHub, stream
from themis_triton.daemon.kernels import in_thread
from themis_triton.daemon.openapi import EVENTS_PATH, OPENAPI_PATH, PLAN_PATH, PlanAnswer, openapi_text
from themis_triton.daemon.requests import checked, number
from themis_triton.daemon.status import StatusBoard
from themis_triton.planning import WhatIf, plan_rates, selected_pipeline
from themis_triton.planning_measured import measured_start
from themis_triton.ports import Clock

MAX_RANGE_S = 8 * 86_400.0
MAX_POINTS = 1_000
MAX_RATES = 100
MAX_RATE_RPS = 1e6
MAX_SLO_MS = 3.6e6
READS_AT_ONCE = 2
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Reads:
    """What the reading calls work with.

    Args:
        board: the last tick and the settings in force.
        journal: the journal's file.
        can_plan: whether plans can be computed now: not while the interpreter runs the solvers.
    """

    board: StatusBoard
    clock: Clock
    journal: Path
    hub: EventHub
    can_plan: Callable[[], bool] = lambda: True
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(READS_AT_ONCE))
    _planning: asyncio.Lock = field(default_factory=asyncio.Lock)

    def routes(self) -> list[web.RouteDef]:
        """The routes."""
        return [
            web.get(HISTORY_PATH, answering(self.history)),
            web.get(DECISION_PATH, answering(self.decision)),
            web.get(PLAN_PATH, answering(self.plan)),
            web.get(REPORT_PATH, answering(self.report)),
            web.get(EVENTS_PATH, self.events),
            web.get(OPENAPI_PATH, openapi),
        ]

    async def history(self, request: web.Request) -> bytes | None:
        """Series, decisions and actions of a range of time."""
        until_s = number(request, "until_s", self.clock.now_s(), 0.0, 1e11)
        range_s = number(request, "range_s", 3600.0, 1.0, MAX_RANGE_S)
        points = int(number(request, "points", 300.0, 1.0, MAX_POINTS))
        slos_ms = {pipeline.name: pipeline.slo_ms for pipeline in self.board.config.pipelines}
        names = request.query.getall("pipeline", list(slos_ms))
        unknown = next((name for name in names if name not in slos_ms), None)
        if unknown is not None:
            raise SettingsError(f"pipeline: {unknown!r:.40} is invalid: expected {' or '.join(slos_ms)}")
        chosen = {name: slos_ms[name] for name in names}
        return await self._read(lambda journal: read_history(journal, until_s - range_s, until_s, points, chosen))

    async def decision(self, request: web.Request) -> bytes | None:
        """One decision whole."""
        name = request.match_info["id"]
        detail = await self._read(lambda journal: read_decision(journal, name))
        if detail is None:
            raise web.HTTPNotFound(text=f"the journal has no decision {name!r:.60}: it never was, is not written yet, or was removed")
        return detail

    async def report(self, request: web.Request) -> bytes | None:
        """The report of a day."""
        day = request.query.get("day", local_day(self.clock.now_s(), days_before=1))
        report = await self._read(lambda journal: read_report(journal, day))
        if report is None:
            raise web.HTTPNotFound(text=f"the journal has no report of {day!r:.40}: one is made after the end of each day")
        return report

    async def plan(self, request: web.Request) -> bytes | None:
        """Plans of one pipeline at other rates or another SLO."""
        if not self.can_plan():
            raise web.HTTPServiceUnavailable(text="the solvers are being compiled: ask again in a minute", headers={"Retry-After": "10"})
        rates = request.query.getall("rate_rps", [])
        if not 1 <= len(rates) <= MAX_RATES:
            raise SettingsError(f"rate_rps: {len(rates)} values are invalid: expected 1 to {MAX_RATES}")
        rates_rps = tuple(checked("rate_rps", text, 0.0, MAX_RATE_RPS) for text in rates)
        slo_ms = number(request, "slo_ms", None, 0.001, MAX_SLO_MS) if "slo_ms" in request.query else None
        what_if, status = WhatIf(request.query.get("pipeline"), slo_ms), self.board.status()
        config = self.board.config

        def answer() -> bytes:
            measured, question = measured_start(config, status, what_if)
            pipeline = selected_pipeline(measured, question)
            return encoded(PlanAnswer(pipeline.name, pipeline.slo_ms, pipeline.percentile, plan_rates(measured, rates_rps, question)))

        async with self._planning:
            return await in_thread(answer)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """One message a tick."""
        if self.hub.clients >= MAX_CLIENTS:
            return answer_error(HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_CLIENTS} clients are connected already")
        return await stream(request, self.hub, self.board.status)

    async def _read(self, query: Callable[[JournalReader], object | None]) -> bytes | None:
        """The answer of a query as JSON; None where it has none."""

        def read() -> bytes | None:
            with reading(self.journal) as journal:
                value = query(journal)
            return None if value is None else encoded(value)

        async with self._slots:
            return await in_thread(read)


async def openapi(_: web.Request) -> web.Response:
    """The description of this API."""
    return web.Response(text=openapi_text(), content_type="application/json")


def encoded(value: object) -> bytes:
    """A core value as JSON. A week of 20 pipelines takes a tenth of a second, so it is done where the value is made."""
    return json.dumps(plain(value), separators=(",", ":")).encode()


def answering(handler: Callable[[web.Request], Awaitable[bytes | None]]) -> Handler:
    """A handler whose JSON is sent, and whose error as `{"error": REASON}`."""

    @wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            headers = {"Cache-Control": "no-store"}
            return web.Response(body=await handler(request), content_type="application/json", headers=headers)
        except SettingsError as error:
            return answer_error(HTTPStatus.BAD_REQUEST, str(error))
        except EnvironmentCheckError as error:
            return answer_error(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except web.HTTPException as error:
            return answer_error(HTTPStatus(error.status), error.text or error.reason)

    return answer
