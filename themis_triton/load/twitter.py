"""The Twitter stream of the paper's evaluation: its window, and any other window, scaled to a pipeline as in the evaluation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from themis_triton.core.errors import SettingsError
from themis_triton.load.shapes import FloatArray
from themis_triton.load.trace_files import read_trace_file

PAPER_TRACE = "twitter-paper"
PAPER_TRACE_FILE = "twitter-2021-08-days01-16.npz"
TRACES_VARIABLE = "THEMIS_TRACES"
WINDOW = "twitter@"
WINDOW_S = 660

PAPER_SLICE_S = 15 * 86400 + 84 * 60 + 450
"""First second of the evaluation's window."""
DIVISORS = {"video": 1.5, "sentiment": 1.7 * 1.5, "nlp": 2.3 * 1.5}
"""The divisor of the stream's rates for each pipeline of the evaluation."""


def is_twitter(source: str) -> bool:
    """Whether the name is `twitter-paper` or `twitter@SECOND`, optionally with `-video`, `-sentiment` or `-nlp`."""
    return source == PAPER_TRACE or source.startswith((f"{PAPER_TRACE}-", WINDOW))


def twitter_for(source: str, pipeline: str) -> str:
    """The name with the pipeline's suffix, if it is a Twitter trace without one; any other name unchanged."""
    named = any(source.endswith(f"-{known}") for known in DIVISORS)
    return f"{source}-{pipeline}" if is_twitter(source) and not named and pipeline in DIVISORS else source


def twitter_rates(name: str) -> tuple[str, FloatArray]:
    """The full name, and 660 rates: arrivals per second divided by the pipeline's divisor (default: video), rounded, at least 1."""
    start_s, pipeline = _parsed(name)
    if pipeline not in DIVISORS:
        allowed = ", ".join(f"{PAPER_TRACE}-{known}" for known in DIVISORS)
        raise SettingsError(f"--trace: {name} is invalid: expected {allowed}")
    folder = os.environ.get(TRACES_VARIABLE)
    if not folder:
        raise SettingsError(
            f"--trace: {name} needs the recorded stream, which does not ship. "
            f"Fix: set the environment variable {TRACES_VARIABLE} to the folder that holds "
            f"{PAPER_TRACE_FILE} (an array `rps`, requests/s of each second of 16 days), or take a shipped trace"
        )
    rates = read_trace_file(Path(folder) / PAPER_TRACE_FILE)[0]
    if rates.size < start_s + WINDOW_S:
        end = f"the {WINDOW_S} s of {name} end at second {start_s + WINDOW_S}"
        raise SettingsError(f"{Path(folder) / PAPER_TRACE_FILE}: the stream has {rates.size} s, but {end}. Fix: choose an earlier second")
    full_name = twitter_for(name, pipeline)
    return full_name, np.maximum(1.0, np.round(rates[start_s : start_s + WINDOW_S] / DIVISORS[pipeline]))


def _parsed(name: str) -> tuple[int, str]:
    """The first second and the pipeline of a name."""
    if not name.startswith(WINDOW):
        return PAPER_SLICE_S, name.removeprefix(PAPER_TRACE).removeprefix("-") or "video"
    second, _, pipeline = name.removeprefix(WINDOW).partition("-")
    if not second.isdigit():
        raise SettingsError(f"--trace: {name} is invalid: expected whole seconds from the file's start, such as {WINDOW}86400")
    return int(second), pipeline or "video"
