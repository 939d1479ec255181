"""The loop of `themis top`: a thread reads the status, the main thread takes keys and draws."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

from rich.console import Group
from rich.live import Live
from rich.text import Text

from themis_triton.adapters.clock import SystemClock
from themis_triton.commands.status_calls import LOCAL, Remote, change, read
from themis_triton.commands.status_command import fetch_status
from themis_triton.commands.stop_command import RESUMED
from themis_triton.commands.terminal import TerminalConsole
from themis_triton.commands.top.explanation import explanation
from themis_triton.commands.top.overview import RATES_SHOWN, overview
from themis_triton.commands.top.screen import Effect, Screen, pressed
from themis_triton.commands.top.terminal_keys import single_keys, wait_for_keys
from themis_triton.core.decoding import decode
from themis_triton.core.encoding import parsed_json
from themis_triton.core.errors import EnvironmentCheckError, ThemisError
from themis_triton.core.history import DECISION_PATH, HISTORY_PATH, DecisionDetail, History
from themis_triton.core.status import Status
from themis_triton.daemon.control_paths import PAUSE_PATH, RESUME_PATH
from themis_triton.settings.runtime import load_runtime_paths

READ_EVERY_S = 1.0
DRAW_EVERY_S = 0.5
RATES_EVERY_S = 15.0
RATES_RANGE_S = 300
MIN_COLUMNS, MIN_LINES = 20, 6


def top_command(path: Path, remote: Remote = LOCAL) -> None:
    """Show the sidecar of these settings until `q`. EnvironmentCheckError where there is no terminal; SettingsError for the settings."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise EnvironmentCheckError(f"themis top needs a terminal. Fix: `themis status -c {path}` prints the same once")
    load_runtime_paths(path)
    clock, console = SystemClock(), TerminalConsole()
    screen = Screen()
    with readings(path, remote) as feed, single_keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            screen = feed.newest(screen)
            live.update(picture(screen, console.width, console.height, clock.now_s()), refresh=True)
            for key in wait_for_keys(feed.woken, DRAW_EVERY_S):
                screen, effect = pressed(screen, key)
                if effect is Effect.QUIT:
                    return
                if effect is not None:
                    screen = carried_out(screen, effect, path, remote)
                    feed.ask()


def picture(screen: Screen, width: int, height: int, now_s: float) -> Group:
    """What the terminal shows."""
    width, height = max(MIN_COLUMNS, width), max(MIN_LINES, height)
    view = explanation if screen.opened is not None else overview
    lines = view(screen, width, height, now_s)
    return Group(*(text if text.plain else Text(" ") for text in lines))


def carried_out(screen: Screen, effect: Effect, path: Path, remote: Remote) -> Screen:
    """The screen after a call of the sidecar; it says what came of it."""
    try:
        if effect is Effect.OPEN and screen.selected is not None:
            opened = replace(screen, opened=screen.selected.decision_id, detail=None, scroll=0)
            try:
                return replace(opened, detail=fetch_decision(path, screen.selected.decision_id, remote))
            except ThemisError as error:
                return replace(opened, notice=str(error))
        if effect is Effect.PAUSE:
            change(path, PAUSE_PATH, remote=remote)
            return replace(screen, notice="paused: nothing is changed until it is resumed")
        change(path, RESUME_PATH, remote=remote)
        return replace(screen, notice=RESUMED)
    except ThemisError as error:
        return replace(screen, notice=str(error))


def fetch_decision(path: Path, decision_id: str, remote: Remote = LOCAL) -> DecisionDetail:
    """One decision whole. EnvironmentCheckError where the sidecar does not have it; ServerError where none answers."""
    response = read(load_runtime_paths(path), DECISION_PATH.format(id=quote(decision_id, safe="")), remote)
    try:
        data = parsed_json(response.body)
        if response.code != HTTPStatus.OK:
            raise EnvironmentCheckError(str(data["error"]))
        return decode(DecisionDetail, data)
    except (ValueError, KeyError, TypeError) as error:
        raise EnvironmentCheckError(f"the answer about {decision_id} is no decision: {error}") from error


def fetch_rates(path: Path, remote: Remote = LOCAL) -> dict[str, tuple[float, ...]]:
    """The rates of each pipeline over the last minutes; none where the sidecar does not have them."""
    query = f"{HISTORY_PATH}?range_s={RATES_RANGE_S}&points={RATES_SHOWN}"
    try:
        history = decode(History, parsed_json(read(load_runtime_paths(path), query, remote).body))
    except (ThemisError, ValueError):
        return {}
    return {pipeline.name: pipeline.rate_rps for pipeline in history.pipelines}


@dataclass(slots=True)
class Feed:
    """The newest reading of a thread, and a pipe that is readable when there is another one."""

    woken: int
    wake: int
    ended: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    reading: Status | ThemisError | None = None
    taken: Status | ThemisError | None = None
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def newest(self, screen: Screen) -> Screen:
        """The screen with the newest reading, if there is one that it does not have."""
        reading = self.reading
        if reading is None or reading is self.taken:
            return screen
        self.taken = reading
        return screen.with_status(reading, self.rates) if isinstance(reading, Status) else replace(screen, error=str(reading))

    def ask(self) -> None:
        """Read again now."""
        self.asked.set()

    def follow(self, path: Path, remote: Remote) -> None:
        """Read once a second until the end."""
        clock, rates_at_s = SystemClock(), 0.0
        while not self.ended.is_set():
            self.asked.clear()
            if clock.now_s() - rates_at_s >= RATES_EVERY_S:
                self.rates, rates_at_s = fetch_rates(path, remote), clock.now_s()
            try:
                self.reading = fetch_status(path, remote)
            except ThemisError as error:
                self.reading = error
            os.write(self.wake, b".")
            self.asked.wait(READ_EVERY_S)


@contextmanager
def readings(path: Path, remote: Remote) -> Iterator[Feed]:
    """A feed whose thread ends with the block; a reading under way is not waited for."""
    woken, wake = os.pipe()
    feed = Feed(woken, wake)
    threading.Thread(target=feed.follow, args=(path, remote), daemon=True).start()
    try:
        yield feed
    finally:
        feed.ended.set()
        feed.ask()
