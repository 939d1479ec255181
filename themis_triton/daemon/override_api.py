"""The calls of the status API that put something in force for a time: pins, bounds, drains and the mode. `Access` has checked them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web

from themis_triton.core.config import Mode
from themis_triton.core.encoding import parsed_json, plain
from themis_triton.core.errors import EnvironmentCheckError, SettingsError
from themis_triton.core.overrides import FROM_SETTINGS, MODE_NAMES, MODE_WORDS, Bounds, Counted, Drain
from themis_triton.daemon.access import answer_error
from themis_triton.daemon.control_paths import BOUNDS_PATH, DRAIN_PATH, MODE_PATH, PIN_PATH, UNDRAIN_PATH, UNPIN_PATH
from themis_triton.daemon.overrides import MAX_PIN_S, MAX_WORDS, OverrideKeeper
from themis_triton.daemon.status import StatusBoard
from themis_triton.ports import Clock

Body = Mapping[str, Any]


class Changes:
    """The changes that an operator may ask for, each from the body of its call; they take effect at the next tick.

    Args:
        keeper: keeps them.
        board: the settings in force and the last tick.
    """

    def __init__(self, keeper: OverrideKeeper, board: StatusBoard, clock: Clock) -> None:
        self._keeper, self._board, self._clock = keeper, board, clock

    def pin(self, body: Body) -> None:
        """Pin a model's instances, or a pipeline's servers."""
        field = Counted.INSTANCES.value if "model" in body else Counted.SERVERS.value
        count = _whole(body, field)
        self._bound(body, count, count)

    def bounds(self, body: Body) -> None:
        """Bound a model's instances, or a pipeline's servers."""
        self._bound(body, _whole(body, "min"), _whole(body, "max"))

    def _bound(self, body: Body, fewest: int, most: int) -> None:
        if ("model" in body) is ("pipeline" in body):
            raise SettingsError("expected either model, for its instances, or pipeline, for its servers")
        counted = Counted.INSTANCES if "model" in body else Counted.SERVERS
        name = _text(body, "model" if "model" in body else "pipeline")
        until_s = self._clock.now_s() + _number(body, "for_s", 1.0, MAX_PIN_S)
        self._keeper.bound(Bounds(counted, name, fewest, most, until_s, *_by_and_why(body)), self._board.config)

    def unpin(self, body: Body) -> None:
        """End pins and bounds."""
        self._keeper.unbound(_text(body, "name"), *_by_and_why(body))

    def drain(self, body: Body) -> None:
        """Drain a server."""
        record, force, by_and_why = self._board.record, body.get("force", False), _by_and_why(body)
        if not isinstance(force, bool):
            raise SettingsError("force: expected true or false")
        if record is None:
            raise SettingsError("no tick has ended yet. Fix: try again in a second")
        if self._board.paused or self._board.config.mode is Mode.ADVISORY:
            state, end = ("paused", "resume") if self._board.paused else ("in advisory mode", "mode active")
            raise SettingsError(f"the sidecar is {state}, in which it changes no routes. Fix: `themis {end}` first")
        server, by, why = _text(body, "server"), *by_and_why
        drain = Drain(server, self._clock.now_s(), launched=False, force=force, by=by, why=why)
        self._keeper.drain(drain, record.snapshot, self._board.config)

    def undrain(self, body: Body) -> None:
        """Let a server have requests again."""
        self._keeper.undrain(_text(body, "server"), *_by_and_why(body), self._board.record)

    def mode(self, body: Body) -> None:
        """Put another mode in force."""
        name = _text(body, "mode")
        if name not in MODE_NAMES:
            raise SettingsError(f"mode: {name!r:.40} is invalid: expected {MODE_WORDS}")
        self._keeper.set_mode(None if name == FROM_SETTINGS else Mode(name), *_by_and_why(body))


def override_routes(keeper: OverrideKeeper, board: StatusBoard, clock: Clock) -> list[web.RouteDef]:
    """The routes. Each answers with all overrides in force."""
    changes = Changes(keeper, board, clock)
    calls = {
        PIN_PATH: changes.pin,
        BOUNDS_PATH: changes.bounds,
        UNPIN_PATH: changes.unpin,
        DRAIN_PATH: changes.drain,
        UNDRAIN_PATH: changes.undrain,
        MODE_PATH: changes.mode,
    }
    return [web.post(path, _changing(change, keeper)) for path, change in calls.items()]


def _changing(change: Callable[[Body], None], keeper: OverrideKeeper) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler that makes a change off the event loop, because it writes a file."""

    async def answer(request: web.Request) -> web.Response:
        try:
            await asyncio.to_thread(change, _object(await request.read()))
        except SettingsError as error:
            return answer_error(HTTPStatus.BAD_REQUEST, str(error))
        except EnvironmentCheckError as error:
            return answer_error(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        return web.json_response(plain(keeper.overrides))

    return answer


def _object(text: bytes) -> Body:
    try:
        body = parsed_json(text)
    except ValueError as error:
        raise SettingsError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise SettingsError("the body is invalid: expected a JSON object")
    return body


def _by_and_why(body: Body) -> tuple[str, str]:
    return _text(body, "by", ""), _text(body, "why", "")


def _text(body: Body, name: str, default: str | None = None) -> str:
    value = body.get(name, default)
    if not isinstance(value, str) or len(value) > MAX_WORDS:
        raise SettingsError(f"{name}: expected a text of at most {MAX_WORDS} characters")
    return value


def _number(body: Body, name: str, smallest: float, largest: float) -> float:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not smallest <= value <= largest:
        raise SettingsError(f"{name}: {value!r:.40} is invalid: expected a number of {smallest:g} to {largest:g}")
    return value


def _whole(body: Body, name: str) -> int:
    value = _number(body, name, 1, 10_000)
    if value != int(value):
        raise SettingsError(f"{name}: {value} is invalid: expected a whole number")
    return int(value)
