"""An hour of the shipped video pipeline recorded in virtual time and decided again: every decision must be the recorded one, byte for byte.

`python benchmarks/replay.py` writes results/replay.json and takes about two minutes. The load is the sum of a wave, bursts and a fault:
service times that double for ten minutes.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import versions, write_result

from themis_triton.adapters.store.journal import Journal
from themis_triton.adapters.store.reader import reading
from themis_triton.adapters.store.recording import read_segments
from themis_triton.commands.replay_command import replay
from themis_triton.core.config import ThemisConfig
from themis_triton.core.record import TickRecord
from themis_triton.decide.planner import Planner
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped
from themis_triton.sim import run as simulation
from themis_triton.sim.setup import SimOptions
from themis_triton.solver.surface import FloatArray
from themis_triton.tick import EngineState, World, tick

HOUR_S = 3600.0
BURSTS = ((600.0, 60.0), (1500.0, 20.0), (3000.0, 120.0))
"""Starts and durations (s), at three times the rate."""
SLOWDOWNS = ((1800.0, 2.0), (2400.0, 1.0))


def arrivals() -> FloatArray:
    """Poisson arrivals by second: a wave of half an hour between 8 and 32 requests/s, with bursts."""
    random, seconds = np.random.default_rng(18), np.arange(int(HOUR_S))
    rates = 20.0 + 12.0 * np.sin(2.0 * np.pi * seconds / 1800.0)
    for start_s, duration_s in BURSTS:
        rates[(seconds >= start_s) & (seconds < start_s + duration_s)] *= 3.0
    return np.sort(np.concatenate([second + random.uniform(0.0, 1.0, random.poisson(rate)) for second, rate in enumerate(rates)]))


def record(journal: Journal, config: ThemisConfig) -> int:
    """Simulate the hour with a sidecar's recording; returns the number of ticks."""
    count = 0

    async def recorded(state: EngineState, world: World, planner: Planner) -> tuple[EngineState, TickRecord]:
        nonlocal count
        after, made = await tick(state, world, planner)
        journal.record_decided(state, after, made, planner.rules.config)
        count += 1
        if count % 400 == 0:  # no tick of the virtual hour waits for the disk
            journal.flush()
        return after, made

    setattr(simulation, "tick", recorded)  # noqa: B010 - the name is not exported
    options = SimOptions(keep_ticks=False, slowdowns=SLOWDOWNS)
    simulation.simulate(config, {config.pipelines[0].name: arrivals()}, HOUR_S, options)
    journal.flush()
    return count


def main() -> None:
    """Record, decide again, write the result."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.sqlite"
        config = load_settings(shipped("config") / "themis.yaml")
        config = replace(config, state_directory=Path(folder))
        started_s = time.process_time()
        with closing(Journal(path)) as journal:
            ticks = record(journal, config)
        recorded_s = time.process_time()
        with reading(path) as journal_reader:
            segments, _ = read_segments(journal_reader, 0.0, float("inf"))
            replayed = replay(segments)
            ((stored,),) = journal_reader.rows("select sum(length(coalesce(head, '')) + length(body)) from recordings")
        replayed_s = time.process_time()
    figures: dict[str, Any] = {
        "hours": HOUR_S / 3600.0,
        "ticks": ticks,
        "replayed": replayed.ticks,
        "segments": len(segments),
        "differing": replayed.differing,
        "first_difference": replayed.first.sentence if replayed.first is not None else None,
        "recording_bytes": stored,
        "processor_s": {"simulate_and_record": round(recorded_s - started_s, 1), "replay": round(replayed_s - recorded_s, 1)},
        "versions": versions("numba", "numpy"),
    }
    print(write_result("replay", figures))
    print(figures)


if __name__ == "__main__":
    main()
