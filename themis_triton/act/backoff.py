"""The actuators in back-off after a failure, with the time at which it ends."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Exponential back-off per actuator: `first_s`, twice as long after each further failure, at most `longest_s`."""

    first_s: float
    longest_s: float
    _failures: dict[str, int] = field(default_factory=dict)
    _until_s: dict[str, float] = field(default_factory=dict)

    def failed(self, actuator: str, now_s: float) -> float:
        """Count a failure; returns the time (s) at which its back-off ends."""
        count = self._failures.get(actuator, 0)
        self._failures[actuator] = count + 1
        self._until_s[actuator] = now_s + min(self.longest_s, self.first_s * 2.0 ** min(count, 30))
        return self._until_s[actuator]

    def succeeded(self, actuator: str) -> None:
        """Forget the failures of an actuator."""
        self._failures.pop(actuator, None)
        self._until_s.pop(actuator, None)

    def failures(self, actuator: str) -> int:
        """Failures of an actuator in a row."""
        return self._failures.get(actuator, 0)

    def forget(self, server: str) -> None:
        """Forget a removed server and its models."""
        for actuator in [actuator for actuator in self._failures if actuator == server or actuator.startswith(f"{server}/")]:
            self.succeeded(actuator)

    def active(self, now_s: float) -> dict[str, float]:
        """Actuators in back-off now, with the time (s) at which it ends."""
        return {actuator: until_s for actuator, until_s in self._until_s.items() if until_s > now_s}
