"""The lease by which one of several sidecars leads, and what its holder leaves for the next one."""

from __future__ import annotations

from dataclasses import dataclass, field

from themis_triton.core.overrides import Overrides


@dataclass(frozen=True, slots=True)
class Handover:
    """What the next leader needs of this one and cannot ask of the engine.

    `serving`: the incarnations of the servers in the routes. `paused`, `overrides`: what an operator has put in force.
    """

    serving: tuple[str, ...] = ()
    paused: bool = False
    overrides: Overrides = field(default_factory=Overrides)


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """Who leads; `holder` empty: given up. `epoch` grows with each change of the leader, and is the number that fences.

    `since_s`: when it began to lead, by its own clock; for people alone. `lease_s`: after this time without a renewal another one may lead.
    """

    holder: str
    epoch: int
    since_s: float
    lease_s: float
    handover: Handover = field(default_factory=Handover)


@dataclass(frozen=True, slots=True)
class StoredLease:
    """A record as the engine has it; `version` is another one after each write."""

    record: LeaseRecord
    version: str


@dataclass(frozen=True, slots=True)
class Leader:
    """The leader, as a sidecar knows it; `name` empty: it is not known. `here`: this very sidecar. `since_s`: by the leader's clock."""

    name: str = ""
    here: bool = False
    since_s: float | None = None
    epoch: int = 0
