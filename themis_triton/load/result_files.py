"""A file with the rows of a load run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from themis_triton.core.errors import SettingsError
from themis_triton.load.results import LoadResult


def check_writable(path: Path | None) -> None:
    """Raise SettingsError before a run if its rows cannot be written. `path` None: nothing is written."""
    if path is not None and not (path.parent.is_dir() and os.access(path.parent, os.W_OK) and not path.is_dir()):
        raise SettingsError(f"--out: {path} cannot be written: expected a file in an existing, writable folder")


def save_results(path: Path, results: Sequence[LoadResult]) -> None:
    """Write `.npz` with arrays `<pipeline>/intended_s`, `/latency_ms`, `/error`, `/lateness_ms`, `/message` and the scalar `/slo_ms`.

    `/messages` has the messages that `/message` counts into.
    """
    arrays = {
        f"{result.pipeline}/{name}": value
        for result in results
        for name, value in (
            ("intended_s", result.intended_s),
            ("latency_ms", result.latency_ms),
            ("error", result.error),
            ("lateness_ms", result.lateness_ms),
            ("message", result.message),
            ("messages", np.array(result.messages)),
            ("slo_ms", np.float64(result.slo_ms)),
        )
    }
    try:
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise SettingsError(
            f"--out: {path} cannot be written ({error.strerror or error}): expected a file in an existing folder"
        ) from error
