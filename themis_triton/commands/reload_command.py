"""`themis reload`: the running sidecar reads its settings anew."""

from __future__ import annotations

import time
from pathlib import Path

from themis_triton.commands.status_calls import LOCAL, Remote, change
from themis_triton.commands.status_command import fetch_status
from themis_triton.commands.terminal import write_line
from themis_triton.core.errors import ServerError, SettingsError
from themis_triton.core.status import Status, StatusEvent
from themis_triton.daemon.control import signal_reload
from themis_triton.daemon.control_paths import RELOAD_PATH
from themis_triton.settings import load_settings
from themis_triton.settings.runtime import load_runtime_paths

KINDS = frozenset({"settings_reloaded", "settings_refused"})
ANSWER_WITHIN_S = 60.0
POLL_S = 0.1


def reload_command(path: Path, remote: Remote = LOCAL) -> None:
    """Check the settings, have the sidecar read them, and print what took effect.

    With the token of `remote` by a call of its status API: the sidecar, on whatever machine, reads its own file; `path` has the address.

    SettingsError when they are wrong, here or for the sidecar, which then keeps the old ones. ServerError if it does not answer.
    """
    if not remote.given:
        load_settings(path)
    before = _events(fetch_status(path, remote))
    _ask(path, remote)
    deadline_s = time.monotonic() + ANSWER_WITHIN_S
    while time.monotonic() < deadline_s:
        for event in _events(fetch_status(path, remote)):
            if event not in before:
                if event.kinds == ("settings_refused",):
                    raise SettingsError(event.sentence)
                write_line(event.sentence)
                return
        time.sleep(POLL_S)
    raise ServerError(f"the sidecar did not read its settings within {ANSWER_WITHIN_S:g} s. Fix: see its log")


def _ask(path: Path, remote: Remote) -> None:
    if remote.given:
        change(path, RELOAD_PATH, remote=remote)
        return
    state = load_runtime_paths(path).state_directory
    if signal_reload(state) is None:
        raise ServerError(f"no sidecar runs with {state}. Fix: start it with `themis run -c {path}`")


def _events(status: Status) -> list[StatusEvent]:
    return [event for event in status.events if KINDS.intersection(event.kinds)]
