"""Keeps what an operator has put in force: in a file, so that it survives a restart, with an event for each change."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import structlog

from themis_triton.core.config import Mode, ThemisConfig
from themis_triton.core.decoding import decode
from themis_triton.core.encoding import plain
from themis_triton.core.errors import EnvironmentCheckError, SettingsError
from themis_triton.core.overrides import ModeOverride, Overrides, Pin, largest_pin, pin_words, said
from themis_triton.daemon.control_paths import OVERRIDES_FILE

log = structlog.get_logger()
PINNED, PIN_ENDED, MODE_CHANGED = "pinned", "pin_ended", "mode_changed"
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

    def pin(self, pin: Pin, config: ThemisConfig) -> None:
        """Pin a model. SettingsError for a model that the settings do not have or a count that its profile does not reach."""
        if pin.model not in config.models:
            raise SettingsError(f"model: {pin.model!r:.60} is invalid: expected {' or '.join(sorted(config.models))}")
        if not 1 <= pin.instances <= largest_pin(config, pin.model):
            expected = f"1 to {largest_pin(config, pin.model)}, as far as the profile of {pin.model} reaches"
            raise SettingsError(f"instances: {pin.instances} is invalid: expected {expected}")
        with self._lock:
            self._change(self.overrides.pinned(pin), [(PINNED, pin_words(pin))])

    def unpin(self, model: str, by: str, why: str) -> None:
        """End a pin. SettingsError where there is none."""
        with self._lock:
            if all(pin.model != model for pin in self.overrides.pins):
                raise SettingsError(f"model: {model!r:.60} is not pinned")
            self._change(self.overrides.unpinned(model), [(PIN_ENDED, f"{model} is no longer pinned{said(by, why)}")])

    def set_mode(self, mode: Mode | None, by: str, why: str) -> None:
        """Put another mode in force, or (None) that of the settings again."""
        override = ModeOverride(mode, by, why) if mode is not None else None
        words = f"switched to {mode.value} mode" if mode is not None else "switched back to the mode of the settings"
        with self._lock:
            self._change(Overrides(self.overrides.pins, override), [(MODE_CHANGED, f"{words}{said(by, why)}")])

    def take_events(self, now_s: float) -> Sequence[Event]:
        """What changed since the last call; ends the pins whose time has come."""
        with self._lock:
            current = self.overrides.at(now_s)
            ended = [pin for pin in self.overrides.pins if pin not in current.pins]
            if ended:
                try:
                    self._change(current, [(PIN_ENDED, f"{pin.model} is no longer pinned: its time has ended") for pin in ended])
                except EnvironmentCheckError as error:
                    log.warning("overrides_not_written", error=str(error))
                    self.overrides = current
            events, self._events = self._events, []
            return events

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
            return decode(Overrides, json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Overrides()
        except (OSError, ValueError) as error:
            log.warning("overrides_not_read", file=str(self._path), error=str(error))
            return Overrides()
