"""The live check of node types: the engine has nodes of each, and the devices of a pipeline's nodes are of one kind."""

from __future__ import annotations

from collections.abc import Iterable

from themis_triton.adapters.device_kinds_check import mixed_devices
from themis_triton.adapters.findings import Finding, fine, warning
from themis_triton.adapters.inventories import read_nodes
from themis_triton.core.config import ThemisConfig
from themis_triton.core.device_kinds import declared_kinds, kind_of
from themis_triton.core.errors import EnvironmentCheckError, ServerError
from themis_triton.core.nodes import Node

_WHAT = "launch.node_types"


def _kinds(nodes: Iterable[Node], node_types: Iterable[str]) -> dict[str, str]:
    """The kind of each node type's devices, by the labels of nodes and by Slurm's GRES."""
    of_nodes = [(node.node_types, kind_of(node.labels) or kind_of({"gres": ",".join(node.devices)})) for node in nodes if node.usable]
    named = {name: [kind for types, kind in of_nodes if name in types and kind is not None] for name in node_types}
    return {name: " and ".join(dict.fromkeys(kinds)) for name, kinds in named.items() if kinds}


async def check_node_types(config: ThemisConfig) -> list[Finding]:
    """A finding for each node type; warnings, because an autoscaler may bring nodes later, and launches may do without the list."""
    launch = config.launch
    if launch is None or not launch.node_types:
        return []
    try:
        nodes = await read_nodes(launch)
    except (ServerError, EnvironmentCheckError) as error:
        fault, _, fix = str(error).partition(". Fix: ")
        return [warning(_WHAT, f"the nodes are not known: {fault}", fix or "see that the engine answers")]
    findings = []
    for name, select in launch.node_types.items():
        count = sum(node.usable and name in node.node_types for node in nodes)
        words = ", ".join(f"{key}: {value}" for key, value in select.items())
        if count:
            findings.append(fine(f"{_WHAT}.{name}", f"{count} of {len(nodes)} nodes take servers ({words})"))
        else:
            remedy = "correct `select` (`themis inventory` shows what nodes have), or leave it where an autoscaler brings such nodes"
            findings.append(warning(f"{_WHAT}.{name}", f"none of {len(nodes)} nodes takes servers ({words})", remedy))
    declared = declared_kinds(config)
    return findings if mixed_devices(config, declared) else [*findings, *mixed_devices(config, declared | _kinds(nodes, launch.node_types))]
