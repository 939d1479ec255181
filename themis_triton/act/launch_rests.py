"""Slots whose launches rest because warm-up failed again and again with the same cause: another try would fail likewise."""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog

from themis_triton.core.errors import WarmupFailedError

SAME_FAILURES = 3
"""Failures in a row with one cause after which a slot's launches rest."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure of warm-up on a slot, and how many in a row had its cause with the same files."""

    model: str
    cause: str
    remedy: str
    files: str
    count: int = 1

    @property
    def rests(self) -> bool:
        """Whether the slot's launches rest."""
        return self.count >= SAME_FAILURES

    @property
    def words(self) -> str:
        """Why they rest, until when, and the remedy."""
        fix = f" Fix: {self.remedy}" if self.remedy else ""
        return (
            f"warm-up of model {self.model} failed {self.count} times with the same cause ({self.cause}); "
            f"launches rest until the settings or the model's files change.{fix}"
        )


@dataclass(slots=True)
class LaunchRests:
    """The failures by slot. A new sidecar begins anew, so changed settings end a rest."""

    _failures: dict[str, Failure] = field(default_factory=dict)

    def failed(self, slot: str, error: WarmupFailedError, files: str) -> None:
        """Count a failure. `files` identifies the files of the launched models; the count begins anew when they or the cause change."""
        last = self._failures.get(slot)
        same = last is not None and (last.model, _kind(last.cause), last.files) == (error.model, _kind(error.cause), files)
        count = last.count + 1 if last is not None and same else 1
        failure = self._failures[slot] = Failure(error.model, error.cause, error.remedy, files, count)
        if failure.rests:
            log.warning("launches_rested", slot=slot, model=error.model, failures=count, message=failure.words)

    def succeeded(self, slot: str) -> None:
        """Forget the failures of a slot."""
        self._failures.pop(slot, None)

    def end(self, slot: str, files: str) -> None:
        """End a slot's rest if the files of its models are others now."""
        failure = self._failures.get(slot)
        if failure is not None and failure.rests and failure.files != files:
            del self._failures[slot]
            log.info("launches_resumed", slot=slot, model=failure.model, message="the model's files changed")

    @property
    def reasons(self) -> dict[str, str]:
        """Why the launches of each resting slot rest."""
        return {slot: failure.words for slot, failure in sorted(self._failures.items()) if failure.rests}

    @property
    def models(self) -> dict[str, str]:
        """The model that failed, by resting slot."""
        return {slot: failure.model for slot, failure in self._failures.items() if failure.rests}


def _kind(cause: str) -> str:
    """A cause without numbers and identifiers that differ between attempts."""
    return "".join(letter for letter in cause if not letter.isdigit())
