"""Simulated runs whose ticks a journal records, as a sidecar's does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from themis_triton.adapters.store.journal import Journal
from themis_triton.core.config import ThemisConfig
from themis_triton.core.record import TickRecord
from themis_triton.decide.planner import Planner
from themis_triton.sim import run as run_module
from themis_triton.sim.result import SimResult
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions
from themis_triton.solver.surface import FloatArray
from themis_triton.tick import EngineState, World, tick

Take = Callable[[EngineState, EngineState, TickRecord, ThemisConfig], None]


def recorded_run(
    path: Path, config: ThemisConfig, arrivals: dict[str, FloatArray], duration_s: float, options: SimOptions | None = None
) -> SimResult:
    """A run with its recording in the journal of that path."""
    with closing(Journal(path)) as journal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "tick", taking(journal.record_decided))
        result = simulate(config, arrivals, duration_s, options)
        assert journal.flush()
    return result


def taking(take: Take) -> Any:
    """A tick whose states and record are taken."""

    async def taken(state: EngineState, world: World, planner: Planner) -> tuple[EngineState, TickRecord]:
        after, record = await tick(state, world, planner)
        take(state, after, record, planner.rules.config)
        return after, record

    return taken
