"""What a server that costs is there for, so that a cost can be explained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from themis_triton.core.fleet import Phase, Server


class ServerKind(StrEnum):
    """ADOPTED: not started by Themis. The others were: LAUNCHED serve; STARTING are not in the routes yet, DRAINING not any more."""

    ADOPTED = "adopted"
    LAUNCHED = "launched"
    STARTING = "starting"
    DRAINING = "draining"


_BY_PHASE = {
    Phase.LAUNCHING: ServerKind.STARTING,
    Phase.WARMING: ServerKind.STARTING,
    Phase.DRAINING: ServerKind.DRAINING,
    Phase.STOPPING: ServerKind.DRAINING,
}


def kind_of(server: Server) -> ServerKind:
    """The kind of a server. One that does not answer counts as what it was."""
    return _BY_PHASE.get(server.phase, ServerKind.LAUNCHED) if server.launched else ServerKind.ADOPTED


def kind_seconds(spans: Iterable[tuple[Iterable[ServerKind], float]]) -> dict[str, float]:
    """Server-seconds by kind, of spans with the kinds of their servers and their lengths (s); every kind is there."""
    seconds = {kind.value: 0.0 for kind in ServerKind}
    for kinds, length_s in spans:
        for kind in kinds:
            seconds[kind.value] += length_s
    return seconds


def mean_seconds(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean by kind over several runs; empty where a run has no kinds."""
    return {kind: sum(run[kind] for run in runs) / len(runs) for kind in runs[0]} if runs and all(runs) else {}


def kind_words(seconds: Mapping[str, float]) -> str:
    """Such as `120 adopted + 31 launched + 4 starting`; kinds of which there were none are left out."""
    return " + ".join(f"{value:,.0f} {kind}" for kind, value in seconds.items() if round(value)) or "0"
