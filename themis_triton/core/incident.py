"""What happened to servers, models and the proxy without an action of ours."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class IncidentKind(StrEnum):
    """The kinds, by the names of their log events."""

    SERVER_CRASHED = "server_crashed"
    SERVER_EJECTED = "server_ejected"
    SERVER_RECOVERED = "server_recovered"
    COUNTS_CHANGED = "counts_changed"
    MODEL_UNLOADED = "model_unloaded"
    MODEL_EJECTED = "model_ejected"
    MODEL_RESTORED = "model_restored"
    MODEL_BROKEN = "model_broken"
    MODEL_RECOVERED = "model_recovered"
    SEQUENCE_STRAYED = "sequence_strayed"
    PROXY_LOST = "proxy_lost"
    PROXY_RESTORED = "proxy_restored"
    REQUEST_CHECK_FAILED = "request_check_failed"


@dataclass(frozen=True, slots=True)
class BrokenRequest:
    """A request that the proxy lost with the server that had it: its model, None where it named none, and its client's address."""

    model: str | None
    client: str


@dataclass(frozen=True, slots=True)
class Incident:
    """One event on a server, on one model there, on one model everywhere, or of the proxy, in one sentence with what is done about it."""

    kind: IncidentKind
    server: str | None
    sentence: str
    model: str | None = None
