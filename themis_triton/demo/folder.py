"""The demo's own folder: held by one demo at a time, and emptied only where an earlier demo has left its marker."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from themis_triton.adapters.launchers import stop_all
from themis_triton.core.errors import SettingsError
from themis_triton.daemon.lock import LOCK_FILE, locked

MARKER = "themis-demo"
# What was there before Themis comes first: it starts nothing any more once it is gone.
STATES = ("adopted", "state")
STOP_TIMEOUT_S = 3.0


@contextmanager
def own_folder(directory: Path) -> Iterator[None]:
    """Hold the folder, with nothing left in it of an earlier demo's processes and state.

    Raises:
        SettingsError: the folder holds something and no demo's marker; it is left as it is.
        EnvironmentCheckError: another demo runs there, or the folder cannot be written.
    """
    check_folder(directory)
    with locked(directory, "--out"):
        (directory / MARKER).write_text("themis demo empties this folder each time it runs here.\n")
        for name in STATES:
            asyncio.run(stop_all(directory / name, STOP_TIMEOUT_S))
            shutil.rmtree(directory / name, ignore_errors=True)
        yield


def check_folder(directory: Path) -> None:
    """SettingsError where `own_folder` would leave the folder as it is."""
    if not directory.exists() or (directory / MARKER).is_file():
        return
    if not directory.is_dir():
        raise SettingsError(f"--out: {directory} is a file: expected a folder")
    foreign = sorted(path.name for path in directory.iterdir() if path.name != LOCK_FILE)
    if foreign:
        raise SettingsError(
            f"--out: {directory} holds {foreign[0]} and no {MARKER}, so no demo created it: "
            "expected a new or empty folder, or that of an earlier demo"
        )
