"""A small Ray cluster of this machine: a head, and nodes with a slot each."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Json = dict[str, Any]
_QUICK_HEALTH = {
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 10000,
    "health_check_failure_threshold": 3,
}
_SMALL = {"num_cpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}


class SmallCluster:
    """A head and nodes. Each has one of the resource `slot`, the first one besides one of `single`; labels say which it is."""

    def __init__(self, nodes: int, *, quick_health: bool = True) -> None:
        from ray.cluster_utils import Cluster  # noqa: PLC0415 - where it is installed

        head: dict[str, Any] = {**_SMALL, "_system_config": _QUICK_HEALTH} if quick_health else _SMALL
        self._cluster = Cluster(initialize_head=True, head_node_args=head, connect=False)
        self._kinds: dict[Any, Json] = {}
        for number in range(nodes):
            resources = {"slot": 1, "single": 1} if number == 0 else {"slot": 1}
            self.add_node({"resources": resources, "labels": {"market": "spot" if number else "reserved"}})

    @property
    def address(self) -> str:
        """Of the head."""
        return str(self._cluster.address)

    def add_node(self, kind: Json) -> None:
        """A further node; blocks for a second or more, because Ray needs the main thread for it."""
        self._kinds[self._cluster.add_node(**_SMALL, **kind, wait=False)] = kind

    def kill_node(self, node: str) -> Json:
        """SIGKILL to the raylet of a node, as servers name it; the resources and labels that it had."""
        lost = next(each for each in self._kinds if each.node_id.startswith(node.rpartition("/")[2]))
        _kill(lost, "raylet")
        return self._kinds.pop(lost)

    def kill_head(self) -> None:
        """SIGKILL to the control store."""
        _kill(self._cluster.head_node, "gcs_server")

    def end(self) -> None:
        """End all of it."""
        self._cluster.shutdown()


def _kill(node: Any, part: str) -> None:
    for process in node.all_processes[part]:
        os.kill(process.process.pid, signal.SIGKILL)


@contextmanager
def small_cluster(nodes: int, *, quick_health: bool = True) -> Iterator[SmallCluster]:
    """A cluster for the time of the block. `quick_health`: a lost node is known after seconds, in place of some fifteen."""
    cluster = SmallCluster(nodes, quick_health=quick_health)
    try:
        yield cluster
    finally:
        cluster.end()
