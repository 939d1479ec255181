"""The daemon while kernels compile: the log shows it, and SIGTERM ends it promptly."""

from __future__ import annotations

import asyncio

import pytest

from themis_triton.daemon.service import stopped_before
from themis_triton.demo.stage import compile_progress


def test_a_stop_does_not_wait_for_the_compilation() -> None:
    async def stopped() -> bool:
        stop, compiling = asyncio.Event(), asyncio.create_task(asyncio.sleep(3600))
        asyncio.get_running_loop().call_soon(stop.set)
        try:
            return await stopped_before(compiling, stop)
        finally:
            compiling.cancel()

    assert asyncio.run(stopped())


def test_the_daemon_goes_on_once_everything_is_compiled_and_ends_with_its_error() -> None:
    async def compiled() -> bool:
        return await stopped_before(asyncio.create_task(asyncio.sleep(0)), asyncio.Event())

    async def failed() -> None:
        raise RuntimeError("no compiler")

    async def failing() -> bool:
        return await stopped_before(asyncio.create_task(failed()), asyncio.Event())

    assert not asyncio.run(compiled())
    with pytest.raises(RuntimeError, match="no compiler"):
        asyncio.run(failing())


def test_the_demo_shows_how_far_the_compilation_is() -> None:
    log = '{"done": 0, "total": 4, "event": "kernels_compiling"}\n{"done": 1, "total": 4, "event": "kernels_compiling"}\n{"event": "x"}\n'
    assert compile_progress(log) == "Compiling the solvers (once): 1 of 4"
    assert compile_progress("") == ""
