"""The daemon while kernels compile: it decides by the interpreter, the log shows it, and SIGTERM ends it promptly."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

from tests.unit.test_compilation import SMALL
from themis_triton import compilation
from themis_triton.compilation import CompileResult, KernelLoader
from themis_triton.core.errors import SolverError
from themis_triton.daemon import kernels as kernels_module
from themis_triton.daemon.kernels import in_thread, preparing_kernels
from themis_triton.daemon.tasks import stopped_before
from themis_triton.demo.stage import compile_progress
from themis_triton.jit import interpret_kernels
from themis_triton.solver import kernels as solver_kernels
from themis_triton.solver import slot_kernels
from themis_triton.solver.problem import ChainProblem, StageProblem
from themis_triton.solver.solve import largest_demand, solve_joint, solve_vertical
from themis_triton.solver.surface import contention_surface


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
    assert compile_progress(log + '{"total": 4, "event": "kernels_compiled"}\n') == ""
    assert compile_progress("") == ""


def answers() -> list[object]:
    """Plans of a small chain, made anew."""
    stages = tuple(StageProblem(name, contention_surface(4, 8, 4, 20, 4, 6), 1, 3, 4) for name in ("one", "two"))
    problem = ChainProblem(stages, 300.0, 30.0, headroom_sigmas=1.0)
    return [
        answer
        for rate_rps in (0.0, 30.0, 100_000.0)
        for asked in (replace(problem, demand_rps=rate_rps),)
        for answer in (solve_joint(asked), solve_vertical(asked, 2), largest_demand(asked, None))
    ]


def test_the_interpreter_plans_as_compiled_kernels_do() -> None:
    compiled = answers()
    restore = interpret_kernels()
    try:
        assert not isinstance(solver_kernels.search_colocated, Dispatcher)
        interpreted = asyncio.run(in_thread(answers))
    finally:
        restore()
    assert isinstance(solver_kernels.search_colocated, Dispatcher)
    assert repr(interpreted) == repr(compiled)


def test_kernels_are_interpreted_until_they_are_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With one kernel that compiles fast."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compilation, "ENTRIES", SMALL)
    for name in ("NUMBA_CACHE_DIR", "CACHE_DIRECTORY"):
        monkeypatch.setenv(name, str(tmp_path / name))

    async def scenario() -> None:
        async with preparing_kernels(tmp_path) as kernels:
            await kernels.start()
            assert kernels.interpreted
            assert not isinstance(slot_kernels.split_slots, Dispatcher)
            assert await kernels.compute(lambda: 7) == 7
            await asyncio.wait({kernels.compiling})
            assert await kernels.switch()
            assert not kernels.interpreted
            assert isinstance(slot_kernels.split_slots, Dispatcher)
            assert await kernels.compute(lambda: 7) == 7
            assert not await kernels.switch()
        async with preparing_kernels(tmp_path) as kernels:
            await kernels.start()
            assert not kernels.interpreted

    asyncio.run(scenario())


def fails() -> int:
    raise SolverError("an error of the work")


def test_kernels_that_do_not_compile_or_load_are_interpreted_until_another_attempt_succeeds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compilation, "ENTRIES", SMALL)
    monkeypatch.setattr(kernels_module, "FIRST_RETRY_S", 0.01)
    loads, python = KernelLoader.load, sys.executable
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))

    async def does_not_load(_: KernelLoader) -> CompileResult:
        raise OSError("no space left")

    async def scenario() -> None:
        async with preparing_kernels(tmp_path) as kernels:
            await kernels.start()
            await asyncio.wait({kernels.compiling})
            assert not await kernels.switch()
            assert kernels.interpreted
            with pytest.raises(SolverError):
                await kernels.compute(fails)
            monkeypatch.setattr(sys, "executable", python)
            monkeypatch.setattr(KernelLoader, "load", does_not_load)
            await asyncio.wait({kernels.compiling})
            assert not await kernels.switch()
            assert kernels.interpreted
            monkeypatch.setattr(KernelLoader, "load", loads)
            await asyncio.wait({kernels.compiling})
            assert await kernels.switch()
            assert not kernels.interpreted
        assert isinstance(slot_kernels.split_slots, Dispatcher)

    asyncio.run(scenario())
