"""How a sidecar is told what to do: modes, drains and the file of its token. Client commands load no more of the settings."""

from __future__ import annotations

from enum import StrEnum

TOKEN_FILE = "token"  # noqa: S105 - a file's name in the state directory


class Mode(StrEnum):
    """Whether decisions are carried out or only shown."""

    ACTIVE = "active"
    ADVISORY = "advisory"


class DrainState(StrEnum):
    """WAITING: the server serves until others carry its load. FORCED: it leaves the routes at once. LEFT: it has left them."""

    WAITING = "waiting"
    FORCED = "forced"
    LEFT = "left"
