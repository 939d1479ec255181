"""`themis stop`, `themis pause` and `themis resume`: the three that end or hold what the sidecar does, and nothing that serves."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from themis_triton.daemon.control import is_paused, running_pid, set_paused, stop_running
from themis_triton.settings import load_runtime_paths


def stop_command(path: Path) -> None:
    """End the sidecar of these settings. Servers, counts and routes stay and go on serving."""
    state = load_runtime_paths(path).state_directory
    pid = stop_running(state)
    if pid is None:
        _say(f"no sidecar runs with {state}")
        return
    _say(f"stopped the sidecar with pid {pid}; what serves goes on serving (`themis down -c {path}` ends what it had started)")


def pause_command(path: Path) -> None:
    """The sidecar goes on observing and saying what it would do, and changes nothing, also after a restart."""
    state = load_runtime_paths(path).state_directory
    set_paused(state, True)
    _say(f"paused: nothing is changed until `themis resume -c {path}`" + _whose(state))


def resume_command(path: Path) -> None:
    """The end of a pause."""
    state = load_runtime_paths(path).state_directory
    was = is_paused(state)
    set_paused(state, False)
    _say(("resumed: decisions are carried out again, unless the settings say mode: advisory" if was else "was not paused") + _whose(state))


def _whose(state: Path) -> str:
    pid = running_pid(state)
    return f" (sidecar with pid {pid})" if pid is not None else f" (no sidecar runs with {state} now)"


def _say(words: str) -> None:
    Console(soft_wrap=True).print(words, markup=False, highlight=False)
