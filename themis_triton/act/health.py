"""Which servers answer: by their metrics, and by health checks while these cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from themis_triton.core.fleet import Server
from themis_triton.core.observation import ServerReading
from themis_triton.ports import ModelControl

UNREADABLE_AFTER_READINGS = 3
UNRESPONSIVE_AFTER_S, UNRESPONSIVE_AFTER_CHECKS = 3.0, 2
"""A server is unresponsive once its metrics could not be read for so long, several times, and so many health checks in a row failed."""
MAX_STEP_S = 1.0
"""The most that one failed reading adds to a silence. After a longer time this process or the machine stood still, not the server alone."""


@dataclass(slots=True)
class _Silence:
    """Readings of a server that failed in a row. `since_s`: when it was read last. `failed_checks`: those that failed in a row."""

    since_s: float
    at_s: float
    watched_s: float = 0.0
    readings: int = 0
    error: str = ""
    failed_checks: int = 0


@dataclass(slots=True)
class ServerHealth:
    """What readings and health checks show of each server. Checks run as tasks, one a server at a time."""

    control: ModelControl
    _read_at_s: dict[str, float] = field(default_factory=dict)
    _silences: dict[str, _Silence] = field(default_factory=dict)
    _checks: dict[str, asyncio.Task[bool]] = field(default_factory=dict)

    def note(self, servers: Iterable[Server], readings: Iterable[ServerReading]) -> None:
        """Take in a tick's readings, and check the health of servers whose metrics cannot be read."""
        known = {server.name: server for server in servers}
        for name in (self._silences.keys() | self._read_at_s.keys()) - known.keys():
            self.forget(name)
        for reading in readings:
            if reading.server not in known:
                continue
            if reading.error is None:
                self.forget(reading.server)
                self._read_at_s[reading.server] = reading.at_s
            else:
                self._note_error(known[reading.server], reading, reading.error)

    def _note_error(self, server: Server, reading: ServerReading, error: str) -> None:
        since_s = self._read_at_s.get(server.name, reading.at_s)
        silence = self._silences.setdefault(server.name, _Silence(since_s, since_s))
        if reading.at_s > silence.at_s or not silence.readings:  # a reading that is not new is shown until the next one
            silence.watched_s += min(MAX_STEP_S, reading.at_s - silence.at_s)
            silence.readings, silence.at_s, silence.error = silence.readings + 1, reading.at_s, error
        check = self._checks.get(server.name)
        if check is not None and check.done():
            silence.failed_checks = 0 if check.result() else silence.failed_checks + 1
        if check is None or check.done():
            self._checks[server.name] = asyncio.create_task(self.control.answers(server))

    def is_unreadable(self, name: str) -> bool:
        """Whether several readings in a row failed."""
        return name in self._silences and self._silences[name].readings >= UNREADABLE_AFTER_READINGS

    def is_unresponsive(self, name: str) -> bool:
        """Whether its metrics could not be read for a while of watching, and its last health checks failed."""
        silence = self._silences.get(name)
        return (
            silence is not None
            and self.is_unreadable(name)
            and silence.failed_checks >= UNRESPONSIVE_AFTER_CHECKS
            and silence.watched_s >= UNRESPONSIVE_AFTER_S
        )

    def words(self, name: str, now_s: float) -> str:
        """For how long a server has not answered, and why."""
        silence = self._silences[name]
        return f"{name} has answered neither metrics nor health checks for {now_s - silence.since_s:.1f} s ({silence.error})"

    def forget(self, name: str) -> None:
        """Forget a server that is gone, or the failures of one that answers."""
        self._read_at_s.pop(name, None)
        self._silences.pop(name, None)
        check = self._checks.pop(name, None)
        if check is not None:
            check.cancel()

    async def close(self) -> None:
        """Cancel the checks under way."""
        checks = list(self._checks.values())
        for name in list(self._checks):
            self.forget(name)
        await asyncio.gather(*checks, return_exceptions=True)
