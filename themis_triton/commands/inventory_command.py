"""`themis inventory`: the nodes of the engine, and the slots and prices of each node type."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from themis_triton.adapters.inventories import read_nodes
from themis_triton.commands.status_command import fetch_status
from themis_triton.commands.terminal import TerminalConsole
from themis_triton.core.config import LaunchConfig
from themis_triton.core.encoding import plain
from themis_triton.core.errors import ServerError, SettingsError
from themis_triton.core.fleet import Server
from themis_triton.core.nodes import Node
from themis_triton.settings import load_settings


@dataclass(frozen=True, slots=True)
class TypeRow:
    """The slots of a node type, "" for those without one. `nodes`: usable ones of the type; `used` None: no sidecar runs that knows."""

    node_type: str
    price_per_hour: float | None
    nodes: int
    slots: tuple[str, ...]
    used: tuple[str, ...] | None


def inventory_command(path: Path, *, as_json: bool) -> None:
    """Print the nodes that the engine lists now, and each node type's slots. With `as_json`: an object `nodes`, `node_types`.

    Raises:
        SettingsError: the settings launch nothing.
        ServerError: the engine does not answer. EnvironmentCheckError: what it needs is not installed.
    """
    launch = load_settings(path).launch
    if launch is None:
        raise SettingsError(f"{path}: launch: missing: expected a section `launch`, whose engine has nodes. Fix: add it")
    nodes, servers = asyncio.run(read_nodes(launch)), _servers(path)
    rows = list(type_rows(launch, nodes, servers))
    if as_json:
        listed = [plain(node) | {"servers": servers_on(node, servers, launch)} for node in nodes]
        sys.stdout.write(json.dumps({"nodes": listed, "node_types": [asdict(row) for row in rows]}) + "\n")
        return
    console = TerminalConsole()
    console.print(_nodes_table(nodes, servers, launch))
    console.print(_types_table(rows))
    if servers is None:
        console.print("No sidecar runs with these settings: which slots are used is not known.", style="yellow", soft_wrap=True)


def _servers(path: Path) -> tuple[Server, ...] | None:
    try:
        return tuple(server for server in fetch_status(path).servers if server.launched)
    except ServerError:
        return None


def servers_on(node: Node, servers: Sequence[Server] | None, launch: LaunchConfig) -> list[str]:
    """The names of the launched servers on a node."""
    return [server.name for server in servers or () if launch.runs_here or server.node == node.name]


def type_rows(launch: LaunchConfig, nodes: Sequence[Node], servers: Sequence[Server] | None) -> Iterator[TypeRow]:
    """The node types in the order in which launches take them."""
    taken = {server.slot for server in servers or ()}
    for name in dict.fromkeys(slot.node_type or "" for slot in launch.slots):
        slots = [slot for slot in launch.slots if (slot.node_type or "") == name]
        used = tuple(slot.name for slot in slots if slot.name in taken) if servers is not None else None
        count = sum(node.usable and (name in node.node_types or not name) for node in nodes)
        yield TypeRow(name, slots[0].price_per_hour, count, tuple(slot.name for slot in slots), used)


def _nodes_table(nodes: Sequence[Node], servers: Sequence[Server] | None, launch: LaunchConfig) -> Table:
    table = _table(f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}")
    for column in ("node", "state", "zone", "devices", "memory", "node types", "servers"):
        table.add_column(column, overflow="fold")
    for node in nodes:
        devices = ", ".join(kind if amount == 1 else f"{amount:g} × {kind}" for kind, amount in sorted(node.devices.items()))
        memory = f"{node.memory_bytes / 2**30:,.0f} GiB" if node.memory_bytes is not None else "–"
        on = ", ".join(servers_on(node, servers, launch)) or "–"
        cells = (node.name, node.state, node.zone or "–", devices or "–", memory, ", ".join(node.node_types) or "–", on)
        table.add_row(*map(escape, cells), style=None if node.usable else "red")
    return table


def _types_table(rows: Sequence[TypeRow]) -> Table:
    table = _table("Slots, in the order in which launches take them")
    for column in ("node type", "per hour", "usable nodes", "slots", "used"):
        table.add_column(column, overflow="fold", justify="left" if column == "node type" else "right")
    for row in rows:
        price = f"{row.price_per_hour:g}" if row.price_per_hour is not None else "–"
        used = str(len(row.used)) if row.used is not None else "?"
        table.add_row(escape(row.node_type or "–"), price, str(row.nodes), str(len(row.slots)), used, style=None if row.nodes else "yellow")
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
