"""Plans, actions and outcomes. An action names its preconditions; an outcome is its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from themis_triton.core.construction import quick_init
from themis_triton.core.fleet import ModelState
from themis_triton.core.routes import RouteLimit


class ActionKind(StrEnum):
    """The kind of an action. Counts change in place; REBATCH reloads the model and needs memory for old and new instances at once.

    KILL ends a server that does not answer. RELOAD loads a model, or an ensemble, on a server that is to hold it.
    """

    GROW = "grow"
    SHRINK = "shrink"
    REBATCH = "rebatch"
    LAUNCH = "launch"
    RETIRE = "retire"
    KILL = "kill"
    RELOAD = "reload"


@dataclass(frozen=True, slots=True)
class Action:
    """One change on `server`. Vertical kinds name `model`, `before` (but RELOAD) and `after`; LAUNCH names `slot` and `models`.

    RELOAD of an ensemble has no `after`: it has no instances.
    `requires` lists ids of actions that must have succeeded first (make before break).
    """

    id: str
    kind: ActionKind
    decision_id: str
    server: str
    model: str | None = None
    before: ModelState | None = None
    after: ModelState | None = None
    slot: str | None = None
    models: dict[str, ModelState] = field(default_factory=dict)
    requires: tuple[str, ...] = ()


@quick_init
@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in the order in which they may start; independent ones run at the same time.

    `retire`: the servers that the target retires. A retirement of an earlier plan that still waits is dropped once its server is not
    among them. None: the plan has no target, and earlier retirements stand. `unrouted`: (server, model) pairs to take out of the
    routes, all others return; None: those of earlier plans stand. `limits`: the admission limits by model; None: those of earlier plans.
    `drained`: servers that get no new requests; None: those of earlier plans.
    """

    decision_id: str
    actions: tuple[Action, ...] = ()
    retire: frozenset[str] | None = None
    unrouted: frozenset[tuple[str, str]] | None = None
    limits: dict[str, RouteLimit] | None = None
    drained: frozenset[str] | None = None


class OutcomeKind(StrEnum):
    """How an action ended. REFUSED: the old state still serves. LOST: the state is unknown until it is read. SKIPPED: it did not start."""

    DONE = "done"
    REFUSED = "refused"
    TIMED_OUT = "timed_out"
    SKIPPED = "skipped"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result and time of one action, with the reason if it failed or was skipped."""

    action: Action
    kind: OutcomeKind
    started_at_s: float
    ended_at_s: float
    detail: str = ""

    @property
    def duration_s(self) -> float:
        """Seconds from start to end."""
        return self.ended_at_s - self.started_at_s
