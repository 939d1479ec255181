"""The demo's folder: locked by one demo at a time, and emptied only if it has the marker of an earlier demo."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from themis_triton.adapters.launchers import stop_all
from themis_triton.core.errors import SettingsError
from themis_triton.daemon.control import LOCK_FILE
from themis_triton.daemon.lock import locked

MARKER = "themis-demo"
# The adopted server first: afterwards the daemon starts nothing any more.
STATES = ("adopted", "state")
STOP_TIMEOUT_S = 3.0


@contextmanager
def own_folder(directory: Path) -> Iterator[None]:
    """Lock the folder, stop an earlier demo's processes, and empty it.

    Raises:
        SettingsError: the folder has files but no demo's marker; it is not changed.
        EnvironmentCheckError: another demo uses the folder, or the folder is not writable.
    """
    check_folder(directory)
    with locked(directory, "--out"):
        (directory / MARKER).write_text("themis demo empties this folder whenever it runs here.\n")
        for name in STATES:
            asyncio.run(stop_all(directory / name, STOP_TIMEOUT_S))
            shutil.rmtree(directory / name, ignore_errors=True)
        yield


def check_folder(directory: Path) -> None:
    """SettingsError if `own_folder` would refuse the folder."""
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
