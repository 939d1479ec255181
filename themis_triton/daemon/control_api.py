"""The calls of the status API that change the sidecar: pause, resume and reload. `Access` has checked them."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.daemon.access import answer_error
from themis_triton.daemon.control import is_paused, set_paused
from themis_triton.daemon.control_paths import PAUSE_PATH, RELOAD_PATH, RESUME_PATH


def control_routes(state_directory: Path, reload: asyncio.Event) -> list[web.RouteDef]:
    """The routes. `reload` is set by a call to reload; the outcome is an event of the status."""

    async def change_pause(paused: bool) -> web.Response:
        try:
            before = await asyncio.to_thread(is_paused, state_directory)
            await asyncio.to_thread(set_paused, state_directory, paused)
        except EnvironmentCheckError as error:
            return answer_error(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        return web.json_response({"paused": paused, "was_paused": before})

    async def pause(_: web.Request) -> web.Response:
        return await change_pause(True)

    async def resume(_: web.Request) -> web.Response:
        return await change_pause(False)

    async def reload_settings(_: web.Request) -> web.Response:
        reload.set()
        return web.json_response({"reloading": True}, status=HTTPStatus.ACCEPTED)

    return [web.post(PAUSE_PATH, pause), web.post(RESUME_PATH, resume), web.post(RELOAD_PATH, reload_settings)]
