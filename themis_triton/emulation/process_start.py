"""The process start of an emulated server: no instance initialises before the server's process has run for some seconds.

A server on a GPU spends them on its CUDA context and its engines. They count from the start of the process: models that load at the
same time wait together, and an instance that is added later does not wait.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping

from themis_triton.emulation.device import process_start_ticks

PROCESS_START_VARIABLE = "THEMIS_EMULATED_PROCESS_START_S"


def process_start_s(environment: Mapping[str, str]) -> float:
    """The duration of the process start from the variable `THEMIS_EMULATED_PROCESS_START_S`, by default 0.

    ValueError for anything but a finite number from 0.
    """
    text = environment.get(PROCESS_START_VARIABLE) or "0"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 <= seconds < math.inf:
        raise ValueError(f"{PROCESS_START_VARIABLE}: {text!r} is invalid: expected a number of seconds from 0. Fix: correct it")
    return seconds


def process_age_s(pid: int) -> float:
    """Seconds since the process started. ProcessLookupError without such a process."""
    ticks = process_start_ticks(pid)
    if not ticks:
        raise ProcessLookupError(f"process {pid} does not run")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def process_start_left_s(pid: int, environment: Mapping[str, str]) -> float:
    """The part of the process start that the server of that pid has still before it. Raises the errors of the functions above."""
    return max(0.0, process_start_s(environment) - process_age_s(pid))
