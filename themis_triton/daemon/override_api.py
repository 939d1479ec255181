"""The calls of the status API that put something in force for a time: pins and the mode. `Access` has checked them."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web

from themis_triton.core.config import Mode
from themis_triton.core.encoding import plain
from themis_triton.core.errors import EnvironmentCheckError, SettingsError
from themis_triton.core.overrides import FROM_SETTINGS, MODE_NAMES, MODE_WORDS, Pin
from themis_triton.daemon.access import answer_error
from themis_triton.daemon.control_paths import MODE_PATH, PIN_PATH, UNPIN_PATH
from themis_triton.daemon.overrides import MAX_PIN_S, MAX_WORDS, OverrideKeeper
from themis_triton.daemon.status import StatusBoard
from themis_triton.ports import Clock

Body = Mapping[str, Any]


def override_routes(keeper: OverrideKeeper, board: StatusBoard, clock: Clock) -> list[web.RouteDef]:
    """The routes. Each answers with all overrides in force; they take effect at the next tick."""

    def pin(body: Body) -> None:
        seconds, instances = _number(body, "for_s", 1.0, MAX_PIN_S), _number(body, "instances", 1, 10_000)
        if instances != int(instances):
            raise SettingsError(f"instances: {instances} is invalid: expected a whole number")
        keeper.pin(Pin(_text(body, "model"), int(instances), clock.now_s() + seconds, *_by_and_why(body)), board.config)

    def unpin(body: Body) -> None:
        keeper.unpin(_text(body, "model"), *_by_and_why(body))

    def mode(body: Body) -> None:
        name = _text(body, "mode")
        if name not in MODE_NAMES:
            raise SettingsError(f"mode: {name!r:.40} is invalid: expected {MODE_WORDS}")
        keeper.set_mode(None if name == FROM_SETTINGS else Mode(name), *_by_and_why(body))

    return [web.post(path, _changing(change, keeper)) for path, change in ((PIN_PATH, pin), (UNPIN_PATH, unpin), (MODE_PATH, mode))]


def _changing(change: Callable[[Body], None], keeper: OverrideKeeper) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler that makes a change off the event loop, because it writes a file."""

    async def answer(request: web.Request) -> web.Response:
        try:
            await asyncio.to_thread(change, _object(await request.text()))
        except SettingsError as error:
            return answer_error(HTTPStatus.BAD_REQUEST, str(error))
        except EnvironmentCheckError as error:
            return answer_error(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        return web.json_response(plain(keeper.overrides))

    return answer


def _object(text: str) -> Body:
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
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
