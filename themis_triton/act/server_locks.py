"""One launch, retirement or kill at a time on each server, whatever actuators they occupy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from themis_triton.core.action import Action, ActionKind

LIFE_CYCLE = frozenset({ActionKind.LAUNCH, ActionKind.RETIRE, ActionKind.KILL})


@dataclass(slots=True)
class ServerLocks:
    """The servers that an action starts or ends now, each with the id of that action."""

    _holders: dict[str, str] = field(default_factory=dict)

    def obstacle(self, action: Action) -> str | None:
        """Why an action on its server cannot begin now; None if it can. Changes of a server that starts or ends do not begin either."""
        holder = self._holders.get(action.server)
        return f"{action.server} is busy with {holder}" if holder is not None else None

    @contextmanager
    def held(self, action: Action) -> Iterator[None]:
        """Hold the lock of the server while the action runs, if it starts or ends the server; there must be no obstacle."""
        if action.kind not in LIFE_CYCLE:
            yield
            return
        self._holders[action.server] = action.id
        try:
            yield
        finally:
            del self._holders[action.server]

    def __contains__(self, server: str) -> bool:
        """Whether an action starts or ends the server now."""
        return server in self._holders
