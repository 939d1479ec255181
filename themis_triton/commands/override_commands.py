"""`themis pin`, `unpin`, `bounds`, `drain`, `undrain` and `mode`: what an operator puts in force over the settings, by the status API."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from themis_triton.commands.moments import parse_duration
from themis_triton.commands.status_calls import LOCAL, Remote, change
from themis_triton.commands.terminal import write_line
from themis_triton.core.errors import SettingsError
from themis_triton.core.overrides import FROM_SETTINGS, MODE_NAMES, MODE_WORDS, Counted
from themis_triton.daemon.control_paths import BOUNDS_PATH, DRAIN_PATH, MODE_PATH, PIN_PATH, UNDRAIN_PATH, UNPIN_PATH

MAX_COUNT = 1000
_KIND = {Counted.INSTANCES: "model", Counted.SERVERS: "pipeline"}


@dataclass(frozen=True, slots=True)
class Counts:
    """The flags `--instances` and `--servers` as typed; None where they were not."""

    instances: str | None
    servers: str | None

    def given(self, expected: str) -> Sequence[tuple[Counted, str]]:
        """Those that were typed. SettingsError for none."""
        flags = ((Counted.INSTANCES, self.instances), (Counted.SERVERS, self.servers))
        typed = [(counted, text) for counted, text in flags if text is not None]
        if not typed:
            raise SettingsError(f"a count is missing: expected {expected}")
        return typed


def pin_command(path: Path, name: str, counts: Counts, period: str, why: str, remote: Remote = LOCAL) -> None:
    """Pin a model's instances on each server, or a pipeline's servers, for a period such as `30m`.

    ServerError when the sidecar refuses or does not answer.
    """
    seconds = parse_duration(period, "--for")
    for counted, count in counts.given("--instances or --servers, or both where a pipeline is named as its model"):
        body = {_KIND[counted]: name, counted.value: _count(count, f"--{counted}"), "for_s": seconds, "by": _user(), "why": why}
        change(path, PIN_PATH, body, remote)
        where = " a server" if counted is Counted.INSTANCES else ""
        write_line(f"pinned {name} at {count} {counted.value}{where} for {period}; `themis unpin {name} -c {path}` ends it")


def bounds_command(path: Path, name: str, counts: Counts, period: str, why: str, remote: Remote = LOCAL) -> None:
    """Bound a model's instances on each server, or a pipeline's servers, such as `1:4`, for a period."""
    seconds = parse_duration(period, "--for")
    for counted, text in counts.given("--instances or --servers, such as --servers 1:4"):
        fewest, separator, most = text.partition(":")
        if not separator:
            raise SettingsError(f"--{counted}: {text} is invalid: expected FEWEST:MOST. Fix: for example --{counted} 1:4")
        low, high = _count(fewest, f"--{counted}"), _count(most, f"--{counted}")
        body = {_KIND[counted]: name, "min": low, "max": high, "for_s": seconds, "by": _user(), "why": why}
        change(path, BOUNDS_PATH, body, remote)
        write_line(f"bounded {name} to {low} to {high} {counted.value} for {period}; `themis unpin {name} -c {path}` ends it")


def unpin_command(path: Path, name: str, why: str, remote: Remote = LOCAL) -> None:
    """End the pins and bounds of a model or pipeline."""
    change(path, UNPIN_PATH, {"name": name, "by": _user(), "why": why}, remote)
    write_line(f"{name} is no longer pinned or bounded")


def drain_command(path: Path, server: str, why: str, remote: Remote = LOCAL, *, force: bool = False) -> None:
    """Route no new requests to a server once others carry its load, or at once. ServerError when the sidecar refuses."""
    change(path, DRAIN_PATH, {"server": server, "force": force, "by": _user(), "why": why}, remote)
    when = "from the next plan on" if force else "as soon as the others carry its load"
    write_line(f"{server} gets no new requests {when}, see `themis status -c {path}`; `themis undrain {server} -c {path}` ends it")


def undrain_command(path: Path, server: str, why: str, remote: Remote = LOCAL) -> None:
    """Route requests to a drained server again."""
    change(path, UNDRAIN_PATH, {"server": server, "by": _user(), "why": why}, remote)
    write_line(f"{server} is no longer drained")


def mode_command(path: Path, mode: str, why: str, remote: Remote = LOCAL) -> None:
    """Put a mode in force, also after a restart; `settings`: that of the settings again. SettingsError for any other word."""
    if mode not in MODE_NAMES:
        raise SettingsError(f"mode: {mode} is invalid: expected {MODE_WORDS}. Fix: name one of them")
    change(path, MODE_PATH, {"mode": mode, "by": _user(), "why": why}, remote)
    ends = "" if mode == FROM_SETTINGS else f"; `themis mode settings -c {path}` ends it"
    write_line(f"the mode is {'that of the settings again' if mode == FROM_SETTINGS else mode}{ends}")


def _count(text: str, flag: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_COUNT:
        raise SettingsError(f"{flag}: {text!r:.40} is invalid: expected a whole number of 1 to {MAX_COUNT}")
    return int(text)


def _user() -> str:
    """The name of the user, for the journal; empty where the system knows none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
