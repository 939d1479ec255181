"""A surge whose servers are on nodes of a cluster, in which a node is lost and the sidecar is killed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.e2e.daemon_setup import Sidecar, Status, launched, traffic

SURGE_RPS = 60.0
REPLACED_WITHIN_S = 60.0
POLICY = {"scale_up": {"burst_headroom_factor": 4.0}}


def nodes(status: Status) -> dict[str, str]:
    """The launched servers that serve, and the node of each."""
    return {str(server["incarnation"]): str(server["node"]) for server in launched(status, "serving")}


async def surge_with_a_lost_node(sidecar: Sidecar, lose: Callable[[str], Awaitable[None]]) -> tuple[dict[str, str], dict[str, str]]:
    """The nodes of the servers before and after; `lose` ends a node and gives a place in its stead. No request fails."""
    await sidecar.start()
    async with traffic(sidecar, SURGE_RPS) as load:
        full = nodes(await sidecar.until("two servers on nodes", lambda s: len(nodes(s)) == 2))
        assert len(set(full.values())) == 2
        lost, kept = full
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
