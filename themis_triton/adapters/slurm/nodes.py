"""The cluster's nodes as `sinfo` has them."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from themis_triton.adapters.slurm.programs import SlurmError, run_program

_FORMAT = "%N|%o|%T|%R|%G|%f"
_FIELDS = 6
_USE = (("NodeList", 128), ("GresUsed", 1024), ("CPUsState", 64))
"""Fields of `sinfo --Format` with their widths."""
_LOST = ("down", "fail", "unknown", "no_respond", "powered_down", "powering_down")
_NOT_RESPONDING = "*"


@dataclass(frozen=True, slots=True)
class Node:
    """A node, once for each of its partitions. `address`: its NodeAddr. `gres` and `features` as the cluster's settings have them."""

    name: str
    address: str
    state: str
    partition: str
    gres: str
    features: str

    @property
    def is_lost(self) -> bool:
        """Whether it answers the controller no more, so that jobs there can neither run nor confirm their end."""
        return self.state.endswith(_NOT_RESPONDING) or self.state.startswith(_LOST)


def parse_nodes(text: str) -> tuple[Node, ...]:
    """The nodes in the output of `sinfo`."""
    lines = (line.split("|", _FIELDS - 1) for line in text.splitlines())
    return tuple(Node(*(field.strip() for field in fields)) for fields in lines if len(fields) == _FIELDS)


async def list_nodes() -> tuple[Node, ...]:
    """All nodes, in all partitions. SlurmError where the controller does not answer."""
    return parse_nodes(await run_program("sinfo", "--noheader", "--Node", "--all", f"--format={_FORMAT}"))


@dataclass(frozen=True, slots=True)
class NodeUse:
    """What jobs have of a node: its GRES, and the processors that none has."""

    gres: str
    idle_cpus: int


def parse_use(text: str) -> dict[str, NodeUse]:
    """By node; those of which a field does not fit its width are left out."""
    used: dict[str, NodeUse] = {}
    for line in text.splitlines():
        fields, at = [], 0
        for _, width in _USE:
            fields.append(line[at : at + width].strip())
            at += width
        name, gres, cpus = fields
        counts = cpus.split("/")  # allocated, idle, other, total
        if name and len(gres) < _USE[1][1] and len(counts) == len(("A", "I", "O", "T")) and counts[1].isdecimal():
            used[name] = NodeUse(gres, int(counts[1]))
    return used


async def list_use() -> dict[str, NodeUse]:
    """What jobs have of each node. SlurmError where the controller does not answer."""
    wanted = ",".join(f"{name}:{width}" for name, width in _USE)
    return parse_use(await run_program("sinfo", "--noheader", "--Node", "--all", f"--Format={wanted}"))


async def address_of(node: str) -> str:
    """The address at which a node is reached from here: its NodeAddr, or its name where the cluster has none.

    Raises:
        SlurmError: the controller does not answer, or this machine cannot resolve the address.
    """
    nodes = await list_nodes()
    address = next((each.address for each in nodes if each.name == node and each.address), node)
    try:
        await asyncio.get_running_loop().getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError as error:
        fix = f"make {address} known here (DNS or /etc/hosts), or set NodeAddr in slurm.conf to an address that this machine reaches"
        raise SlurmError(f"node {node}: its address {address} cannot be resolved here ({error.strerror or error}). Fix: {fix}") from error
    return address


async def is_lost(node: str) -> bool:
    """Whether the controller has lost the node, or knows none of this name."""
    nodes = [each for each in await list_nodes() if each.name == node]
    return all(each.is_lost for each in nodes)
