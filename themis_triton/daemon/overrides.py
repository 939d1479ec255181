"""Keeps what an operator has put in force: in a file, so that it survives a restart, with an event for each change."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from themis_triton.core.action import ActionKind
from themis_triton.core.config import Mode, ThemisConfig
from themis_triton.core.decoding import decode
from themis_triton.core.encoding import parsed_json, plain
from themis_triton.core.errors import EnvironmentCheckError, SettingsError
from themis_triton.core.fleet import Phase
from themis_triton.core.observation import Snapshot
from themis_triton.core.overrides import (
    Bounds,
    Counted,
    Drain,
    ModeOverride,
    Overrides,
    bounds_words,
    drain_words,
    ended_words,
    largest_count,
    overridden,
    said,
)
from themis_triton.core.policy import PolicyName
from themis_triton.core.record import TickRecord
from themis_triton.daemon.control_paths import OVERRIDES_FILE
from themis_triton.decide.draining import refusal
from themis_triton.decide.rules import Rules

log = structlog.get_logger()
PINNED, BOUNDED, PIN_ENDED, MODE_CHANGED = "pinned", "bounded", "pin_ended", "mode_changed"
DRAIN_REQUESTED, DRAINED, DRAIN_ENDED = "drain_requested", "drained", "drain_ended"
RETIRING = frozenset({Phase.DRAINING, Phase.STOPPING})
MAX_PIN_S = 7 * 86_400.0
MAX_WORDS = 200
Event = tuple[str, str]
"""The kind of a change and its sentence, for the journal and the status."""


class OverrideKeeper:
    """The overrides in force. Changes are written at once and take effect at the next tick, which takes their events.

    Args:
        state_directory: where the file is. One that cannot be read is ignored, with a line in the log.
    """

    def __init__(self, state_directory: Path) -> None:
        self._path = state_directory / OVERRIDES_FILE
        self._events: list[Event] = []
        self._lock = threading.RLock()  # calls come from threads, ticks from the event loop
        self.overrides = self._read()

    def bound(self, bounds: Bounds, config: ThemisConfig) -> None:
        """Put bounds in force, which are a pin where they are equal. SettingsError for what the settings or a profile do not allow."""
        check_bounds(bounds, config)
        with self._lock:
            self._change(self.overrides.bounded(bounds), [(PINNED if bounds.min == bounds.max else BOUNDED, bounds_words(bounds))])

    def take_over(self, overrides: Overrides) -> None:
        """Put those of another sidecar, which led before this one, into force in place of its own."""
        with self._lock:
            self._note(overrides)

    def unbound(self, name: str, by: str, why: str) -> None:
        """End the pins and bounds of a model or pipeline. SettingsError where there are none."""
        with self._lock:
            ended = [each for each in self.overrides.bounds if each.name == name]
            if not ended:
                raise SettingsError(f"name: {name!r:.60} is neither pinned nor bounded")
            self._change(self.overrides.unbounded(name), [(PIN_ENDED, f"{ended_words(each)}{said(by, why)}") for each in ended])

    def drain(self, drain: Drain, snapshot: Snapshot, config: ThemisConfig) -> None:
        """Drain a server. SettingsError where that would leave a model without a server, or the server does not serve."""
        with self._lock:
            before = next((each for each in self.overrides.drains if each.server == drain.server), None)
            if before is not None and (before.left or before.force >= drain.force):
                raise SettingsError(f"{drain_words(before)}: that is in force already. Fix: `themis undrain {drain.server}` ends it")
            others = overridden(config, self.overrides.undrained(drain.server))
            reason = refusal(drain.server, snapshot, others, force=drain.force)
            if reason is not None:
                raise SettingsError(reason)
            launched = any(server.name == drain.server and server.launched for server in snapshot.servers)
            drain = replace(drain, launched=launched)
            self._change(self.overrides.drained(drain), [(DRAIN_REQUESTED, drain_words(drain))])

    def undrain(self, server: str, by: str, why: str, record: TickRecord | None = None) -> None:
        """Let a server have requests again. SettingsError where it is not drained, or retires by the last tick's record already."""
        with self._lock:
            if all(each.server != server for each in self.overrides.drains):
                raise SettingsError(f"server: {server!r:.60} is not drained")
            if record is not None and _retires(server, record):
                raise SettingsError(f"{server} retires already. Fix: wait: another one is launched where the demand asks for it")
            self._change(self.overrides.undrained(server), [(DRAIN_ENDED, f"{server} is no longer drained{said(by, why)}")])

    def note_fleet(self, drained: Collection[str], servers: Collection[str]) -> None:
        """Take in which servers have left the routes, and which exist: a drain ends with its server."""
        with self._lock:
            for each in self.overrides.drains:
                if each.server not in servers:
                    self._note(self.overrides.undrained(each.server), (DRAIN_ENDED, f"the drain of {each.server} has ended: it is gone"))
                elif each.server in drained and not each.left:
                    left = replace(each, left=True)
                    self._note(self.overrides.drained(left), (DRAINED, drain_words(left)))

    def set_mode(self, mode: Mode | None, by: str, why: str) -> None:
        """Put another mode in force, or (None) that of the settings again."""
        override = ModeOverride(mode, by, why) if mode is not None else None
        words = f"switched to {mode.value} mode" if mode is not None else "switched back to the mode of the settings"
        with self._lock:
            self._change(replace(self.overrides, mode=override), [(MODE_CHANGED, f"{words}{said(by, why)}")])

    def take_events(self, now_s: float) -> Sequence[Event]:
        """What changed since the last call; ends the bounds whose time has come."""
        with self._lock:
            current = self.overrides.at(now_s)
            ended = [each for each in self.overrides.bounds if each not in current.bounds]
            if ended:
                self._note(current, *((PIN_ENDED, f"{ended_words(each)}: its time has ended") for each in ended))
            events, self._events = self._events, []
            return events

    def _note(self, overrides: Overrides, *events: Event) -> None:
        """A change that holds even where it cannot be written."""
        try:
            self._change(overrides, events)
        except EnvironmentCheckError as error:
            log.warning("overrides_not_written", error=str(error))
            self.overrides = overrides
            self._events.extend(events)

    def _change(self, overrides: Overrides, events: Sequence[Event]) -> None:
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            draft.write_text(json.dumps(plain(overrides)) + "\n", encoding="utf-8")
            draft.replace(self._path)
        except OSError as error:
            raise EnvironmentCheckError(f"{self._path}: cannot be written ({error.strerror})") from error
        self.overrides = overrides
        self._events.extend(events)

    def _read(self) -> Overrides:
        try:
            return decode(Overrides, parsed_json(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Overrides()
        except (OSError, ValueError) as error:
            log.warning("overrides_not_read", file=str(self._path), error=str(error))
            return Overrides()


def _retires(server: str, record: TickRecord) -> bool:
    started = () if record.advisory else record.started
    phase = next((each.phase for each in record.snapshot.servers if each.name == server), None)
    return phase in RETIRING or any(action.kind is ActionKind.RETIRE and action.server == server for action in started)


def check_bounds(bounds: Bounds, config: ThemisConfig) -> None:
    """SettingsError for bounds that cannot be kept, with those that can."""
    counted = bounds.counted.value
    if bounds.counted is Counted.INSTANCES:
        names = sorted(config.models)
        largest = largest_count(config, bounds.name) if bounds.name in names else 0
        reach = f"as far as the profile of {bounds.name} reaches"
    else:
        names = sorted(pipeline.name for pipeline in config.pipelines)
        largest, reach = Rules(config, {}, {}).max_servers, "as many as the adopted servers and the slots can be"
    if bounds.name not in names:
        kind = "model" if bounds.counted is Counted.INSTANCES else "pipeline"
        raise SettingsError(f"{kind}: {bounds.name!r:.60} is invalid: expected {' or '.join(names)}")
    if not 1 <= bounds.min <= bounds.max <= largest:
        asked = f"{bounds.min}" if bounds.min == bounds.max else f"{bounds.min} to {bounds.max}"
        raise SettingsError(f"{counted}: {asked} is invalid: expected 1 to {largest}, {reach}")
    if bounds.counted is Counted.SERVERS:
        _check_servers_change(bounds.name, config)


def _check_servers_change(name: str, config: ThemisConfig) -> None:
    pipeline = next(each for each in config.pipelines if each.name == name)
    if config.policy.name is not PolicyName.THEMIS:
        raise SettingsError(f"servers: the policy {config.policy.name} keeps to no bounds of servers: expected the policy themis")
    if config.is_stateful(pipeline):
        raise SettingsError(f"servers: {name} stays on one server, because a stage keeps state between calls")
    if config.launch is None:
        raise SettingsError(f"servers: those of {name} are all adopted. Fix: add a section `launch`, so that servers come and go")
