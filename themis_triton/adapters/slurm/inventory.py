"""The nodes of a Slurm cluster with their devices, and the node types to which they belong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from themis_triton.adapters.slurm.nodes import Node as Listed
from themis_triton.adapters.slurm.nodes import NodeUse, list_nodes, list_use
from themis_triton.core.config import SlurmLaunchConfig
from themis_triton.core.nodes import Node, places_in

_SOCKETS = re.compile(r"\([^)]*\)")
_PLAIN = re.compile(r"[^\[\]*()]+")
_CPUS = "cpus"
_UNUSABLE = ("drain", "maint", "reserved", "planned")


async def read_nodes(launch: SlurmLaunchConfig) -> tuple[Node, ...]:
    """All nodes, each once. SlurmError where the controller does not answer."""
    return nodes_of(await list_nodes(), launch, await list_use())


def nodes_of(listed: Iterable[Listed], launch: SlurmLaunchConfig, used: Mapping[str, NodeUse] | None = None) -> tuple[Node, ...]:
    """The nodes of a list that has them once for each of their partitions. `used`: what jobs have of them, by node."""
    by_name: dict[str, list[Listed]] = {}
    for each in listed:
        by_name.setdefault(each.name, []).append(each)
    return tuple(_node(name, each, launch, (used or {}).get(name)) for name, each in by_name.items())


def _node(name: str, listed: Sequence[Listed], launch: SlurmLaunchConfig, use: NodeUse | None) -> Node:
    first = listed[0]
    partitions = {each.partition for each in listed}
    devices = devices_of(first.gres)
    features = set(first.features.split(",")) - {"(null)", ""}
    node_types = tuple(
        each for each, select in launch.node_types.items() if _belongs(_asked(select, launch), partitions, features, devices)
    )
    free = _free(devices, use) if use is not None else None
    return Node(
        name,
        first.state,
        usable=not first.is_lost and not first.state.startswith(_UNUSABLE),
        devices=devices,
        labels={"partition": ",".join(sorted(partitions)), "features": ",".join(sorted(features))},
        node_types=node_types,
        free_devices=free,
        places={each: _places(launch.node_types[each], launch, free or {}, use) for each in node_types} if use is not None else None,
    )


def _asked(select: Mapping[str, str], launch: SlurmLaunchConfig) -> dict[str, str | None]:
    """By what a job of a node type chooses its node."""
    return {"partition": launch.partition, "constraint": launch.constraint, "gres": launch.gres} | dict(select)


def _free(devices: Mapping[str, float], use: NodeUse) -> dict[str, float]:
    """The devices that no job has; GRES in use are named with or without their type."""
    used = devices_of(use.gres)
    return {
        kind: max(0.0, amount - sum(used.get(name, 0.0) for name in {kind, kind.partition(":")[0]})) for kind, amount in devices.items()
    }


def _places(select: Mapping[str, str], launch: SlurmLaunchConfig, free: Mapping[str, float], use: NodeUse) -> int:
    gres = _asked(select, launch)["gres"]
    asked = devices_of(gres) if gres is not None else {}
    there = {kind: sum(amount for name, amount in free.items() if name == kind or name.startswith(f"{kind}:")) for kind in asked}
    return places_in(there | {_CPUS: float(use.idle_cpus)}, asked | {_CPUS: float(launch.cpus or 1)})


def _belongs(asked: Mapping[str, str | None], partitions: set[str], features: set[str], devices: Mapping[str, float]) -> bool:
    """Whether a job that asks for this may run on the node. Constraints with brackets or counts are Slurm's to judge: they hold here."""
    partition, constraint, gres = asked["partition"], asked["constraint"], asked["gres"]
    if partition is not None and not partitions & set(partition.split(",")):
        return False
    if (
        constraint is not None
        and _PLAIN.fullmatch(constraint)
        and not any(set(all_of.split("&")) <= features for all_of in constraint.split("|"))
    ):
        return False
    return gres is None or all(_holds(devices, kind, count) for kind, count in devices_of(gres).items())


def _holds(devices: Mapping[str, float], kind: str, count: float) -> bool:
    """Whether there are as many; `gpu` is any kind of `gpu`."""
    return sum(amount for name, amount in devices.items() if name == kind or name.startswith(f"{kind}:")) >= count


def devices_of(gres: str) -> dict[str, float]:
    """The kinds and numbers of `gpu:a100:4(S:0-1),license:2`."""
    counts: dict[str, float] = {}
    for each in _SOCKETS.sub("", gres).split(","):
        kind, _, count = each.removeprefix("gres:").removeprefix("gres/").rpartition(":")
        kind, count = (kind, count) if kind and count.isdecimal() else (each.removeprefix("gres:").removeprefix("gres/"), "1")
        if kind:
            counts[kind] = counts.get(kind, 0.0) + float(count)
    return counts
