"""The live check of node types: the engine has nodes of each."""

from __future__ import annotations

from themis_triton.adapters.findings import Finding, fine, warning
from themis_triton.adapters.inventories import read_nodes
from themis_triton.core.config import LaunchConfig
from themis_triton.core.errors import EnvironmentCheckError, ServerError

_WHAT = "launch.node_types"


async def check_node_types(launch: LaunchConfig | None) -> list[Finding]:
    """A finding for each node type; warnings, because an autoscaler may bring nodes later, and launches may do without the list."""
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
    return findings
