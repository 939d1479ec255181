"""`themis` with a clock that is wrong by the seconds in `THEMIS_CHAOS_CLOCK_FILE`: what a sidecar meets whose machine's time was set.

With `THEMIS_CHAOS_SAMPLES_FILE` it counts there where its processor time goes, by module of Themis.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace

from themis_triton.adapters import clock
from themis_triton.cli import main

CLOCK_VARIABLE, SAMPLES_VARIABLE = "THEMIS_CHAOS_CLOCK_FILE", "THEMIS_CHAOS_SAMPLES_FILE"
SAMPLE_S, WRITE_EVERY = 0.01, 100
FRAMES = ("themis_triton.cli", "themis_triton.commands", "themis_triton.daemon.service", "themis_triton.daemon.loop", "themis_triton.tick")
"""What most of the work runs below."""


def offset_s() -> float:
    """The error of the clock, 0 without a file."""
    path = os.environ.get(CLOCK_VARIABLE)
    return float(Path(path).read_text(encoding="utf-8")) if path is not None and Path(path).exists() else 0.0


def sample_processor_time(file: Path) -> None:
    """Count, at each 10 ms of this process's processor time, what its main thread does."""
    counts: Counter[str] = Counter()

    def note(_: int, frame: FrameType | None) -> None:
        counts[_part(frame)] += 1
        if counts.total() % WRITE_EVERY == 0:
            file.write_text(json.dumps(counts), encoding="utf-8")

    signal.signal(signal.SIGPROF, note)
    signal.setitimer(signal.ITIMER_PROF, SAMPLE_S, SAMPLE_S)


def _part(frame: FrameType | None) -> str:
    """The outermost module of Themis below those that everything runs in; else the innermost package."""
    names = list(_modules(frame))
    if names and names[0] == "selectors":
        return "other threads"
    inside = [name for name in names if name.startswith("themis_triton.") and not name.startswith(FRAMES)]
    return inside[-1].removeprefix("themis_triton.") if inside else names[0].partition(".")[0] if names else "?"


def _modules(frame: FrameType | None) -> Iterator[str]:
    """Innermost first."""
    while frame is not None:
        yield str(frame.f_globals.get("__name__", "?"))
        frame = frame.f_back


if __name__ == "__main__":
    wrong_s = offset_s()
    wrong = SimpleNamespace(time=lambda: time.time() + wrong_s, monotonic=time.monotonic)
    setattr(clock, "time", wrong)  # noqa: B010 - the module's own import
    if SAMPLES_VARIABLE in os.environ:
        sample_processor_time(Path(os.environ[SAMPLES_VARIABLE]))
    main()
