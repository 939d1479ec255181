"""Which levers are held after a failure, and until when."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Exponential back-off per lever: `first_s`, twice as long after each further failure, at most `longest_s`."""

    first_s: float
    longest_s: float
    _failures: dict[str, int] = field(default_factory=dict)
    _until_s: dict[str, float] = field(default_factory=dict)

    def failed(self, lever: str, now_s: float) -> float:
        """Count a failure; returns the time (s) until which the lever is held."""
        count = self._failures.get(lever, 0)
        self._failures[lever] = count + 1
        self._until_s[lever] = now_s + min(self.longest_s, self.first_s * 2.0 ** min(count, 30))
        return self._until_s[lever]

    def succeeded(self, lever: str) -> None:
        """Forget the failures of a lever."""
        self._failures.pop(lever, None)
        self._until_s.pop(lever, None)

    def forget(self, server: str) -> None:
        """The server and its models are no levers any more."""
        for lever in [lever for lever in self._failures if lever == server or lever.startswith(f"{server}/")]:
            self.succeeded(lever)

    def held(self, now_s: float) -> dict[str, float]:
        """Levers that are held now, with the time (s) until which."""
        return {lever: until_s for lever, until_s in self._until_s.items() if until_s > now_s}
