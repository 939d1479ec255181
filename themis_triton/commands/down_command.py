"""`themis stop --all` and `themis down`: stop the servers and the Envoy that Themis started."""

from __future__ import annotations

import asyncio
from pathlib import Path

from themis_triton.adapters.launchers import stop_all
from themis_triton.adapters.store.paths import journal_path
from themis_triton.adapters.store.stopped import forget_servers
from themis_triton.commands.terminal import write_line
from themis_triton.daemon.lock import locked
from themis_triton.settings.runtime import load_runtime_paths


def down_command(path: Path) -> None:
    """Stop all processes that Themis started for these settings. EnvironmentCheckError while the sidecar runs."""
    state = load_runtime_paths(path).state_directory
    with locked(state):
        stopped = asyncio.run(stop_all(state))
        forget_servers(journal_path(state))
    processes = f"ended {len(stopped)} process{'es' if len(stopped) > 1 else ''}: {', '.join(stopped)}"
    write_line(f"{processes if stopped else f'nothing was running with {state}'}")
