"""Reading traces from files: rates or time stamps in CSV, rate arrays in `.npy` and `.npz`."""

from __future__ import annotations

import csv
import itertools
import zipfile
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from themis_triton.core.errors import SettingsError

FloatArray = NDArray[np.float64]

TIME_COLUMNS = ("timestamp", "time", "datetime", "date", "ts", "arrival", "arrived_at", "arrival_s")
RATE_COLUMNS = ("rps", "rate", "rate_rps", "requests", "count", "qps")
MAX_TRACE_S = 31 * 86_400
LATEST_S = 1e11
"""Larger than any current timestamp in seconds, smaller than one in milliseconds."""
_RISING_LINES = 20
_SUFFIXES = (".csv", ".npz", ".npy")


def read_trace_file(path: Path) -> tuple[FloatArray, FloatArray | None]:
    """Rates in requests/s, one per second, and the arrival times in seconds from the first one if the file has them.

    CSV with a header: a column named like `rps` holds rates, one like `timestamp` holds arrivals (ISO 8601 or seconds).
    CSV without a header: one column; ISO 8601 values are arrivals, numbers are rates. Strictly rising numbers are ambiguous and need a
    header. Raises SettingsError for any other file.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise SettingsError(f"{path}: the file type '{path.suffix}' is invalid: expected {', '.join(_SUFFIXES)}. Fix: convert the trace")
    try:
        if path.suffix.lower() == ".csv":
            return _read_csv(path)
        return checked_rates(_read_array(path), str(path)), None
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot read the trace file ({error.strerror or error}). Fix: check the path and its permissions"
        ) from error


def checked_rates(values: NDArray[np.generic], source: str) -> FloatArray:
    """`values` as rates: one-dimensional, finite, at least 0, not empty. `source` starts the error's message."""
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.number):
        raise SettingsError(
            f"{source}: an array of shape {values.shape} and type {values.dtype} is invalid: expected one dimension of numbers. "
            "Fix: store one rate per second, in requests/s"
        )
    rates = values.astype(np.float64)
    if rates.size == 0:
        raise SettingsError(f"{source}: the trace is empty: expected at least one rate. Fix: store one rate per second, in requests/s")
    invalid = np.flatnonzero(~np.isfinite(rates) | (rates < 0.0))
    if invalid.size:
        second = invalid[0]
        raise SettingsError(
            f"{source}: the rate {rates[second]} of second {second} is invalid: expected a finite number ≥ 0. Fix: correct it"
        )
    return rates


def _read_array(path: Path) -> NDArray[np.generic]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return _pick_array(loaded, path) if isinstance(loaded, np.lib.npyio.NpzFile) else np.asarray(loaded)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SettingsError(f"{path}: not a NumPy file ({error}). Fix: write it with numpy.savez(FILE, rps=RATES)") from error


def _pick_array(archive: np.lib.npyio.NpzFile, path: Path) -> NDArray[np.generic]:
    names = archive.files
    if "rps" in names:
        return np.asarray(archive["rps"])
    if len(names) == 1:
        return np.asarray(archive[names[0]])
    raise SettingsError(f"{path}: the arrays {', '.join(names) or '(none)'} are invalid: expected an array rps. Fix: name the rates rps")


def _read_csv(path: Path) -> tuple[FloatArray, FloatArray | None]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"{path}: not a CSV file in UTF-8 ({error}). Fix: convert it") from error
    if not rows:
        raise SettingsError(f"{path}: the trace file is empty: expected one rate or one time stamp per line. Fix: give a trace")
    header = [cell.strip().lower() for cell in rows[0]]
    first = rows[0][0].strip()
    if _is_number(first) or _is_iso(first):
        return _without_header(rows, path)
    return _with_header(header, rows[1:], path)


def _with_header(header: Sequence[str], rows: list[list[str]], path: Path) -> tuple[FloatArray, FloatArray | None]:
    if not rows:
        raise SettingsError(f"{path}: the trace file has a header and no rows. Fix: add one rate or one time stamp per line")
    rate = next((header.index(name) for name in RATE_COLUMNS if name in header), None)
    time = next((header.index(name) for name in TIME_COLUMNS if name in header), None)
    if rate is not None:
        _check_steps(rows, time, path)
        return checked_rates(_numbers(rows, rate, path, first_line=2), str(path)), None
    if time is not None:
        return _from_times(_times(rows, time, path, first_line=2), path)
    if len(header) == 1:
        return checked_rates(_numbers(rows, 0, path, first_line=2), str(path)), None
    expected = f"{', '.join(RATE_COLUMNS)} (rates) or {', '.join(TIME_COLUMNS)} (arrivals)"
    raise SettingsError(f"{path}: the columns {', '.join(header)} are invalid: expected one of {expected}. Fix: name the column")


def _without_header(rows: list[list[str]], path: Path) -> tuple[FloatArray, FloatArray | None]:
    if len(rows[0]) > 1:
        raise SettingsError(f"{path}: line 1 has {len(rows[0])} columns and no header. Fix: name the columns, for example 'time,rps'")
    if not _is_number(rows[0][0]):
        return _from_times(_times(rows, 0, path, first_line=1), path)
    rates = checked_rates(_numbers(rows, 0, path, first_line=1), str(path))
    if rates.size >= _RISING_LINES and np.all(np.diff(rates) > 0.0):
        raise SettingsError(
            f"{path}: {rates.size} strictly rising numbers without a header are ambiguous: rates, or arrivals in seconds. "
            "Fix: write 'rps' or 'timestamp' as the first line"
        )
    return rates, None


def _check_steps(rows: list[list[str]], time: int | None, path: Path) -> None:
    if time is None:
        return
    times = _times(rows, time, path, first_line=2)
    gaps = np.flatnonzero(np.abs(np.diff(times) - 1.0) > 1e-3)
    if gaps.size:
        raise SettingsError(
            f"{path}: lines {gaps[0] + 2} and {gaps[0] + 3} are not one second apart. Fix: give one line of rates per second"
        )


def _from_times(times: FloatArray, path: Path) -> tuple[FloatArray, FloatArray]:
    arrivals = np.sort(times) - times.min()
    if arrivals[-1] >= MAX_TRACE_S or times.max() >= LATEST_S:
        raise SettingsError(
            f"{path}: the time stamps {times.min():.15g} to {times.max():.15g} are invalid: expected seconds over less "
            f"than {MAX_TRACE_S:,} s. Fix: divide milliseconds by 1000, or use a part of the file"
        )
    return np.bincount(arrivals.astype(np.int64)).astype(np.float64), arrivals


def _numbers(rows: list[list[str]], column: int, path: Path, first_line: int) -> FloatArray:
    return np.array([_number(row, column, path, line) for line, row in enumerate(rows, first_line)], dtype=np.float64)


def _number(row: list[str], column: int, path: Path, line: int) -> float:
    cell = row[column].strip() if column < len(row) else ""
    try:
        return float(cell)
    except ValueError as error:
        raise SettingsError(f"{path}: line {line}: '{cell}' is invalid: expected a rate in requests/s. Fix: correct it") from error


def _times(rows: list[list[str]], column: int, path: Path, first_line: int) -> FloatArray:
    return np.fromiter(
        (_time(row, column, path, line) for row, line in zip(rows, itertools.count(first_line), strict=False)), np.float64, len(rows)
    )


def _time(row: list[str], column: int, path: Path, line: int) -> float:
    cell = row[column].strip() if column < len(row) else ""
    try:
        seconds = float(cell) if _is_number(cell) else _iso_seconds(cell)
    except ValueError as error:
        raise SettingsError(f"{path}: line {line}: '{cell}' is invalid: expected ISO 8601 or seconds. Fix: correct it") from error
    if not np.isfinite(seconds):
        raise SettingsError(f"{path}: line {line}: '{cell}' is invalid: expected a finite time stamp. Fix: correct it")
    return seconds


def _iso_seconds(cell: str) -> float:
    moment = datetime.fromisoformat(cell)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_iso(cell: str) -> bool:
    try:
        datetime.fromisoformat(cell)
    except ValueError:
        return False
    return True
