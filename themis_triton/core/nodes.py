"""The nodes that an engine has, as an inventory lists them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from themis_triton.core.config import LaunchConfig

_SLACK = 1e-6
"""Of amounts that are sums of fractions."""


@dataclass(frozen=True, slots=True)
class Node:
    """One machine. `usable`: it takes servers now, by its `state` in the engine's own word.

    `devices`: how many of each kind it has, by the engine's names; `free_devices`: those that nothing there has asked for. `labels`: what
    the engine knows its nodes by. `node_types`: those of the settings to which it belongs. `places`: how many more servers of each of
    these it has what they ask for. What is None the engine does not tell.
    """

    name: str
    state: str
    usable: bool
    devices: Mapping[str, float] = field(default_factory=dict)
    memory_bytes: int | None = None
    zone: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    node_types: tuple[str, ...] = ()
    free_devices: Mapping[str, float] | None = None
    places: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class NodeTypeReading:
    """The usable nodes of a node type: how many there are, and the sums of what `Node` has of each."""

    nodes: int = 0
    devices: Mapping[str, float] = field(default_factory=dict)
    free_devices: Mapping[str, float] | None = None
    places: int | None = None


@dataclass(frozen=True, slots=True)
class NodesReading:
    """The newest reading of the engine's nodes, by node type; `launched`: the servers that were launched or being launched then.

    `error`: why they could not be read since.
    """

    at_s: float | None = None
    node_types: Mapping[str, NodeTypeReading] = field(default_factory=dict)
    launched: frozenset[str] = frozenset()
    error: str | None = None


def read_types(nodes: Collection[Node], launch: LaunchConfig) -> dict[str, NodeTypeReading]:
    """What the nodes have, by the node types of the settings."""
    return {name: _of_type([node for node in nodes if node.usable and name in node.node_types], name) for name in launch.node_types}


def _of_type(nodes: Collection[Node], node_type: str) -> NodeTypeReading:
    free = [node.free_devices for node in nodes if node.free_devices is not None]
    places = [node.places.get(node_type, 0) for node in nodes if node.places is not None]
    return NodeTypeReading(
        len(nodes),
        _sums(node.devices for node in nodes),
        _sums(free) if len(free) == len(nodes) else None,
        sum(places) if len(places) == len(nodes) else None,
    )


def _sums(amounts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for each in amounts:
        for kind, amount in each.items():
            sums[kind] = sums.get(kind, 0.0) + amount
    return sums


def places_in(free: Mapping[str, float], asked: Mapping[str, float]) -> int:
    """How many times what is asked for is free; 0 where nothing is asked for."""
    counts = [math.floor(free.get(kind, 0.0) / amount + _SLACK) for kind, amount in asked.items() if amount > 0.0]
    return max(0, min(counts, default=0))


def types_by_labels(labels: Mapping[str, str], node_types: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """The node types whose labels a node has."""
    return tuple(name for name, wanted in node_types.items() if wanted.items() <= labels.items())
