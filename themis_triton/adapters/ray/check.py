"""The live check of a cluster: it answers, in the right version, and has nodes for the servers."""

from __future__ import annotations

import tempfile
from pathlib import Path

from themis_triton.adapters.findings import Finding, fine, missing, unanswered, warning
from themis_triton.adapters.ray.cluster import RayCluster
from themis_triton.adapters.ray.resources import cluster_words, places_for, resource_words
from themis_triton.core.config import RayLaunchConfig
from themis_triton.core.errors import EnvironmentCheckError, ServerError

_WHAT = "launch.ray"


async def check_cluster(launch: RayLaunchConfig) -> list[Finding]:
    """Whether the cluster answers, and whether its nodes have what the servers ask for."""
    with tempfile.TemporaryDirectory(prefix="themis-check-") as aside:
        cluster = RayCluster(launch, Path(aside) / "ray.log", is_logged=False)
        try:
            there = await cluster.call("nodes")
            connected = fine(f"{_WHAT}.address", f"the cluster at {launch.address} answers, Ray {cluster.version}")
        except EnvironmentCheckError as error:
            fault, _, fix = str(error).partition(". Fix: ")
            return [missing(_WHAT, fault, fix)]
        except ServerError as error:
            fault, _, fix = str(error).partition(". Fix: ")
            return [unanswered(f"{_WHAT}.address", fault, fix or "see that the cluster runs")]
        finally:
            await cluster.close()
    places, asked = places_for(there, launch.resources), resource_words(launch.resources)
    what, words = f"{_WHAT}.resources", f"{asked} a server: {cluster_words(there)}"
    if places >= len(launch.slots):
        return [connected, fine(what, f"nodes for {places} servers; {words}")]
    remedy = f"add nodes with {asked}, or correct launch.ray.resources or launch.ray.servers"
    return [connected, warning(what, f"nodes for {places} of {len(launch.slots)} servers; {words}", remedy)]
