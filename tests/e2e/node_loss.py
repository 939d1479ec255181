"""A surge whose servers are on nodes of a cluster, in which a node is lost and the sidecar is killed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

from tests.e2e.daemon_setup import Sidecar, Status, launched, traffic

SURGE_RPS = 60.0
PRICE_PER_HOUR = 2.5
REPLACED_WITHIN_S = 60.0
POLICY = {"scale_up": {"burst_headroom_factor": 4.0}}


def nodes(status: Status) -> dict[str, str]:
    """The launched servers that serve, and the node of each."""
    return {str(server["incarnation"]): str(server["node"]) for server in launched(status, "serving")}


def check_inventory(sidecar: Sidecar) -> None:
    """Each server runs on the node of its slot's type; the cheap type is listed first, and the price is that of both."""
    result = sidecar.command("inventory", "--json")
    assert result.returncode == 0, result.stderr
    listed = json.loads(result.stdout)
    kinds = {server.partition("-1-")[0]: node["node_types"] for node in listed["nodes"] for server in node["servers"]}
    assert kinds == {"spot": ["spot"], "reserved": ["reserved"]}
    rows = [(row["node_type"], row["nodes"], row["used"]) for row in listed["node_types"]]
    assert rows == [("spot", 1, ["spot-1"]), ("reserved", 1, ["reserved-1"])]
    priced = json.loads(sidecar.command("status", "--json").stdout)
    assert priced["price_per_hour"] == PRICE_PER_HOUR


def free_places(status: Status) -> dict[str, int | None]:
    """How many more servers find a node, by node type, as the sidecar last read it."""
    return {each["node_type"]: each["free_places"] for each in status["nodes"]["node_types"]}


def node_types(key: str) -> dict[str, dict[str, object]]:
    """Two types with one server each, which the engine knows by this key."""
    prices = {"reserved": 2.0, "spot": 0.5}
    return {name: {"servers": 1, "price_per_hour": price, "select": {key: name}} for name, price in prices.items()}


async def surge_with_a_lost_node(sidecar: Sidecar, lose: Callable[[str], Awaitable[None]]) -> tuple[dict[str, str], dict[str, str]]:
    """The nodes of the servers before and after; `lose` ends a node and gives a place in its stead. No request fails."""
    await sidecar.start()
    async with traffic(sidecar, SURGE_RPS) as load:
        full = nodes(await sidecar.until("two servers on nodes", lambda s: len(nodes(s)) == 2))
        assert len(set(full.values())) == 2
        lost, kept = full
        await asyncio.to_thread(check_inventory, sidecar)
        await sidecar.until("no free place", lambda s: free_places(s) == {"spot": 0, "reserved": 0})
        await lose(full[lost])
        status = await sidecar.until("a replacement", lambda s: len(nodes(s)) == 2 and lost not in nodes(s), REPLACED_WITHIN_S)
        now = nodes(status)
        assert kept in now
        await sidecar.kill()
        await load.more(60)
        again = await sidecar.start()
        assert {server["name"] for server in launched(again)} == {server["name"] for server in launched(status)}
        assert nodes(await sidecar.until("adopted servers", lambda s: len(nodes(s)) == 2)) == now
        await load.more(60)
        summary = await load.end()
    assert (summary.failed, summary.errors) == (0, {})
    assert await sidecar.terminate() == 0
    return full, now
