"""Traces (one rate per second) and arrivals (the intended send times of requests)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from themis_triton.core.errors import SettingsError
from themis_triton.load.shapes import SHAPES, FloatArray, shape_rates
from themis_triton.load.trace_files import MAX_TRACE_S, read_trace_file
from themis_triton.load.twitter import PAPER_TRACE, TRACES_VARIABLE, is_twitter, twitter_rates

MAX_ARRIVALS = 10_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """`rates_rps[s]` requests/s in second s. `times_s`: the exact arrivals, if known (ascending, from 0)."""

    name: str
    rates_rps: FloatArray
    times_s: FloatArray | None = None

    @property
    def duration_s(self) -> int:
        """The length of the trace in seconds."""
        return int(self.rates_rps.size)


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """A trace, and the part of it to use.

    `source` is a shape's name, `twitter-paper` (`-video`, `-sentiment`, `-nlp`), `twitter@SECOND` for another window of the
    same stream, or a file. `from_s` and `to_s` cut, `scale` multiplies. `duration_s` stretches a shipped shape and cuts any other trace.
    `rate_rps` instead of a source is a constant rate.
    """

    source: str = "surge"
    rate_rps: float | None = None
    from_s: int = 0
    to_s: int | None = None
    scale: float = 1.0
    duration_s: int | None = None

    @property
    def name(self) -> str:
        """What is sent, in words."""
        return self.source if self.rate_rps is None else f"{self.rate_rps:g} requests/s"


def load_trace(options: TraceOptions, seed: int = 0) -> Trace:
    """The trace of the options. Raises SettingsError if it cannot be read or has no request."""
    _check_options(options)
    trace = _source(options, seed)
    end_s = trace.duration_s if options.to_s is None else min(options.to_s, trace.duration_s)
    if options.duration_s is not None:
        end_s = min(end_s, options.from_s + options.duration_s)
    if options.from_s >= end_s:
        raise SettingsError(
            f"--from {options.from_s} --to {options.to_s} is invalid: expected a part of the {trace.duration_s} s of trace '{trace.name}'"
        )
    cut = _cut(trace, options.from_s, end_s)
    if not cut.rates_rps.any():
        raise SettingsError(f"trace '{trace.name}' has no request from second {options.from_s} to {end_s}. Fix: choose another part")
    return _scaled(cut, seed, options.scale)


def arrivals(trace: Trace, seed: int | tuple[int, ...], scale: float = 1.0) -> FloatArray:
    """Intended send times in seconds from the start, ascending: Poisson within each second, the same for the same seed.

    If the trace has arrival times, these are used, and `scale` thins or multiplies them at random.
    """
    _check_size(trace, scale)
    if trace.times_s is not None:
        return _scaled_times(trace.times_s, trace.duration_s, seed, scale)
    rng = np.random.default_rng(seed)
    counts = rng.poisson(trace.rates_rps * scale)
    seconds = np.repeat(np.arange(trace.duration_s, dtype=np.float64), counts)
    return np.sort(seconds + rng.random(seconds.size))


def _check_size(trace: Trace, scale: float) -> None:
    if trace.rates_rps.sum() * scale > MAX_ARRIVALS:
        raise SettingsError(
            f"trace '{trace.name}' has too many requests: expected at most {MAX_ARRIVALS:,}. Fix: use --from and --to, or a smaller --scale"
        )


def _check_options(options: TraceOptions) -> None:
    if not (options.scale > 0.0 and np.isfinite(options.scale)):
        raise SettingsError(f"--scale: {options.scale} is invalid: expected a number above 0")
    if not 0 <= options.from_s < MAX_TRACE_S:
        raise SettingsError(f"--from: {options.from_s} is invalid: expected 0 to {MAX_TRACE_S - 1} s")
    for flag, value in (("--duration", options.duration_s), ("--to", options.to_s)):
        if value is not None and not 1 <= value <= MAX_TRACE_S:
            raise SettingsError(f"{flag}: {value} is invalid: expected 1 to {MAX_TRACE_S} s")
    if options.rate_rps is not None and not (options.rate_rps > 0.0 and np.isfinite(options.rate_rps)):
        raise SettingsError(f"--rate: {options.rate_rps} is invalid: expected requests/s above 0")


def _source(options: TraceOptions, seed: int) -> Trace:
    if options.rate_rps is not None:
        seconds = options.duration_s or options.to_s or SHAPES["steady"].default_duration_s
        return Trace(options.name, np.full(options.from_s + seconds, options.rate_rps))
    if options.source in SHAPES:
        return Trace(options.source, shape_rates(options.source, seed, options.duration_s))
    if is_twitter(options.source):
        return Trace(*twitter_rates(options.source))
    path = Path(options.source)
    if not path.exists():
        known = ", ".join([*SHAPES, f"{PAPER_TRACE} (needs {TRACES_VARIABLE})"])
        raise SettingsError(f"--trace: {options.source} is neither a file nor a known trace: expected a file or one of {known}")
    rates, times = read_trace_file(path)
    return Trace(path.name, rates, times)


def _cut(trace: Trace, start_s: int, end_s: int) -> Trace:
    times = trace.times_s
    if times is not None:
        times = times[(times >= start_s) & (times < end_s)] - start_s
    return Trace(trace.name, trace.rates_rps[start_s:end_s], times)


def _scaled(trace: Trace, seed: int, scale: float) -> Trace:
    _check_size(trace, scale)
    times = trace.times_s
    if times is not None:
        times = _scaled_times(times, trace.duration_s, seed, scale)
    return Trace(trace.name, trace.rates_rps * scale, times)


def _scaled_times(times: FloatArray, duration_s: int, seed: int | tuple[int, ...], scale: float) -> FloatArray:
    """The arrivals, each `scale` times on average; copies are within half a second of it and inside the trace."""
    if scale == 1.0:
        return times
    rng = np.random.default_rng(seed)
    whole = int(scale)
    copies = whole + (rng.random(times.size) < scale - whole)
    source = np.repeat(np.arange(times.size), copies)
    is_copy = np.diff(source, prepend=-1) == 0
    jitter = np.where(is_copy, rng.random(source.size) - 0.5, 0.0)
    return np.sort(np.clip(times[source] + jitter, 0.0, np.nextafter(float(duration_s), 0.0)))
