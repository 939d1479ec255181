"""`themis` with a clock that is wrong by the seconds in `THEMIS_CHAOS_CLOCK_FILE`: what a sidecar meets whose machine's time was set."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

from themis_triton.adapters import clock
from themis_triton.cli import main

CLOCK_VARIABLE = "THEMIS_CHAOS_CLOCK_FILE"


def offset_s() -> float:
    """The error of the clock, 0 without a file."""
    path = os.environ.get(CLOCK_VARIABLE)
    return float(Path(path).read_text(encoding="utf-8")) if path is not None and Path(path).exists() else 0.0


if __name__ == "__main__":
    wrong_s = offset_s()
    wrong = SimpleNamespace(time=lambda: time.time() + wrong_s, monotonic=time.monotonic)
    setattr(clock, "time", wrong)  # noqa: B010 - the module's own import
    main()
