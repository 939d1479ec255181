"""`themis stop`, `themis pause` and `themis resume`. They control the sidecar and do not touch servers or Envoy."""

from __future__ import annotations

from pathlib import Path

from themis_triton.commands.status_calls import LOCAL, Remote, change
from themis_triton.commands.terminal import write_line
from themis_triton.daemon.control import is_paused, running_pid, set_paused, stop_running
from themis_triton.daemon.control_paths import PAUSE_PATH, RESUME_PATH
from themis_triton.settings.runtime import load_runtime_paths

RESUMED = "resumed: decisions are carried out again, unless the settings say mode: advisory"
NOT_PAUSED = "was not paused"


def stop_command(path: Path, *, everything: bool = False) -> None:
    """Stop the sidecar of these settings. Servers and Envoy continue to serve, unless the caller ends `everything` next."""
    state = load_runtime_paths(path).state_directory
    pid = stop_running(state)
    if pid is None:
        _print(f"no sidecar runs with {state}")
        return
    rest = "" if everything else f"; servers and Envoy continue to serve (`themis stop --all -c {path}` stops them)"
    _print(f"stopped the sidecar with pid {pid}{rest}")


def pause_command(path: Path, remote: Remote = LOCAL) -> None:
    """Pause: the sidecar observes and records decisions, and changes nothing, also after a restart.

    With the token of `remote` by a call of its status API, which may run on another machine.
    """
    if remote.given:
        change(path, PAUSE_PATH, remote=remote)
        _print(f"paused: nothing is changed until `themis resume -c {path} --token-file {remote.token_file}`")
        return
    state = load_runtime_paths(path).state_directory
    set_paused(state, True)
    _print(f"paused: nothing is changed until `themis resume -c {path}`" + _sidecar(state))


def resume_command(path: Path, remote: Remote = LOCAL) -> None:
    """End a pause. `remote`: see `pause_command`."""
    if remote.given:
        answer = change(path, RESUME_PATH, remote=remote)
        _print(RESUMED if answer.get("was_paused") else NOT_PAUSED)
        return
    state = load_runtime_paths(path).state_directory
    was_paused = is_paused(state)
    set_paused(state, False)
    _print((RESUMED if was_paused else NOT_PAUSED) + _sidecar(state))


def _sidecar(state: Path) -> str:
    pid = running_pid(state)
    return f" (sidecar with pid {pid})" if pid is not None else f" (no sidecar runs with {state} now)"


def _print(sentence: str) -> None:
    write_line(f"{sentence}")
