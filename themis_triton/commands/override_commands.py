"""`themis pin`, `themis unpin` and `themis mode`: what an operator puts in force over the settings, by the status API."""

from __future__ import annotations

import getpass
from pathlib import Path

from themis_triton.commands.moments import parse_duration
from themis_triton.commands.status_calls import LOCAL, Remote, change
from themis_triton.commands.terminal import write_line
from themis_triton.core.errors import SettingsError
from themis_triton.core.overrides import FROM_SETTINGS, MODE_NAMES, MODE_WORDS
from themis_triton.daemon.control_paths import MODE_PATH, PIN_PATH, UNPIN_PATH


def pin_command(path: Path, model: str, instances: int, period: str, why: str, remote: Remote = LOCAL) -> None:
    """Pin a model's instances on each server for a period such as `30m`. ServerError when the sidecar refuses or does not answer."""
    seconds = parse_duration(period, "--for")
    change(path, PIN_PATH, {"model": model, "instances": instances, "for_s": seconds, "by": _user(), "why": why}, remote)
    write_line(f"pinned {model} at {instances} instances a server for {period}; `themis unpin {model} -c {path}` ends it")


def unpin_command(path: Path, model: str, why: str, remote: Remote = LOCAL) -> None:
    """End a pin."""
    change(path, UNPIN_PATH, {"model": model, "by": _user(), "why": why}, remote)
    write_line(f"{model} is no longer pinned")


def mode_command(path: Path, mode: str, why: str, remote: Remote = LOCAL) -> None:
    """Put a mode in force, also after a restart; `settings`: that of the settings again. SettingsError for any other word."""
    if mode not in MODE_NAMES:
        raise SettingsError(f"mode: {mode} is invalid: expected {MODE_WORDS}. Fix: name one of them")
    change(path, MODE_PATH, {"mode": mode, "by": _user(), "why": why}, remote)
    ends = "" if mode == FROM_SETTINGS else f"; `themis mode settings -c {path}` ends it"
    write_line(f"the mode is {'that of the settings again' if mode == FROM_SETTINGS else mode}{ends}")


def _user() -> str:
    """The name of the user, for the journal; empty where the system knows none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
