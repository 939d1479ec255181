"""The data of a picture of a run: one value per second, and events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Row = Sequence[float] | Sequence[float | None] | NDArray[np.float64] | NDArray[np.int64]


class EventKind(StrEnum):
    """The kind of a marker."""

    GROW = "grow"
    SHRINK = "shrink"
    REBATCH = "rebatch"
    LAUNCH = "launch"
    RETIRE = "retire"
    FAULT = "fault"
    DRIFT = "drift"


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One marker, `at_s` seconds from the run's start."""

    at_s: float
    kind: EventKind
    label: str = ""


@dataclass(frozen=True, slots=True)
class RunSeries:
    """A run by second: entry s of every row covers [s, s+1). All rows have the same length; None or NaN: unknown.

    `label` names the run in a comparison (its policy). `servers` and `instances` are totals over all models; `counted` names the unit
    of `instances`; `devices`, where it is known, is the total of the devices on which servers have instances. `failed` counts
    requests without a response; `violations` also counts responses later than the SLO.
    """

    label: str
    rate_rps: Row
    capacity_rps: Row
    p99_ms: Row
    servers: Row
    instances: Row
    failed: Row
    violations: Row
    events: tuple[RunEvent, ...] = ()
    counted: str = "Model instances"
    devices: Row = ()

    def __post_init__(self) -> None:
        """ValueError for rows of different lengths, which would be drawn misaligned."""
        lengths = {name: len(getattr(self, name)) for name in ROWS} | ({"devices": len(self.devices)} if len(self.devices) else {})
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the rows of run '{self.label}' have different lengths: {lengths}")

    @property
    def duration_s(self) -> int:
        """The duration of the rows in seconds."""
        return len(self.rate_rps)


ROWS = ("rate_rps", "capacity_rps", "p99_ms", "servers", "instances", "failed", "violations")
