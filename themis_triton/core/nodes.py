"""The nodes that an engine has, as an inventory lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Node:
    """One machine. `usable`: it takes servers now, by its `state` in the engine's own word.

    `devices`: how many of each kind it has, by the engine's names. `labels`: what the engine knows its nodes by. `node_types`: those of
    the settings to which it belongs.
    """

    name: str
    state: str
    usable: bool
    devices: Mapping[str, float] = field(default_factory=dict)
    memory_bytes: int | None = None
    zone: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    node_types: tuple[str, ...] = ()


def types_by_labels(labels: Mapping[str, str], node_types: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """The node types whose labels a node has."""
    return tuple(name for name, wanted in node_types.items() if wanted.items() <= labels.items())
