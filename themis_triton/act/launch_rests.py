"""Models whose launches on a slot rest because they failed again and again with the same cause: another try would fail likewise."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import structlog

from themis_triton.core.errors import ModelFailedError
from themis_triton.core.observation import launch_of

SAME_FAILURES = 3
"""Failures in a row with one cause after which launches with the model rest on a slot."""

log = structlog.get_logger()

Files = Mapping[str, str]
"""What identifies the files of models, by model."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure of a model on a slot, and how many in a row had its cause. `files`: of all models that were launched together."""

    error: ModelFailedError
    kind: str
    files: Files
    count: int = 1

    @property
    def rests(self) -> bool:
        """Whether launches with the model rest on the slot."""
        return self.count >= SAME_FAILURES

    @property
    def words(self) -> str:
        """Why they rest, until when, and the remedy."""
        error = self.error
        fix = f" Fix: {error.remedy}" if error.remedy else ""
        return (
            f"{error.step} of model {error.model} failed {self.count} times with the same cause ({error.cause}); launches with it rest "
            f"until its settings, its files or those of the models launched with it change, `launch` and `calls` with a restart.{fix}"
        )


@dataclass(slots=True)
class LaunchRests:
    """The failures by slot and model. A new sidecar begins anew, so settings that need a restart end a rest too."""

    _failures: dict[tuple[str, str], Failure] = field(default_factory=dict)

    def failed(self, slot: str, error: ModelFailedError, files: Files, server: str) -> None:
        """Count a failure of a server. `files`: of the launched models; the count begins anew when they or the cause change."""
        last, kind = self._failures.get((slot, error.model)), _kind(error.cause, server)
        same = last is not None and last.kind == kind and not _differ(last.files, files)
        failure = self._failures[slot, error.model] = Failure(error, kind, files, last.count + 1 if last is not None and same else 1)
        if failure.rests:
            log.warning("launches_rested", slot=slot, model=error.model, failures=failure.count, message=failure.words)

    def succeeded(self, slot: str, models: Collection[str]) -> None:
        """Forget the failures of these models on a slot."""
        for model in models:
            self._failures.pop((slot, model), None)

    def end_changed(self, files: Files) -> None:
        """End the rests where the files of a model that was launched are others now."""
        self._end([key for key, each in self._failures.items() if each.rests and _differ(each.files, files)], "a model's files changed")

    def end_of(self, models: Collection[str]) -> None:
        """End the rests of models whose settings are others now."""
        self._end([key for key in self._failures if key[1] in models], "the model's settings changed")

    def _end(self, keys: Collection[tuple[str, str]], why: str) -> None:
        for slot, model in keys:
            if self._failures.pop((slot, model)).rests:
                log.info("launches_resumed", slot=slot, model=model, message=why)

    @property
    def reasons(self) -> dict[str, str]:
        """Why launches rest, by slot and model as `launch_of` names them."""
        return {launch_of(*key): failure.words for key, failure in sorted(self._failures.items()) if failure.rests}

    @property
    def models(self) -> frozenset[str]:
        """The models whose files decide whether a rest ends."""
        return frozenset(model for failure in self._failures.values() if failure.rests for model in failure.files)


def _differ(one: Files, other: Files) -> bool:
    return any(one[model] != other[model] for model in one.keys() & other.keys())


def _kind(cause: str, server: str) -> str:
    """A cause without what differs between attempts: numbers, identifiers, and the server's name in paths."""
    return "".join(letter for letter in cause.replace(server, "") if not letter.isdigit())
