"""The inventories of the engines, and what `themis inventory` makes of them."""

from __future__ import annotations

import asyncio
import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from structlog.testing import capture_logs
from typer.testing import CliRunner

from tests.unit.fakes import FakeClock, FakeLauncher
from tests.unit.kubernetes_double import Cluster
from tests.unit.samples import config, server
from tests.unit.test_kubernetes_launcher import REPOSITORY, TEMPLATE, launch_config
from themis_triton.adapters.findings import Severity
from themis_triton.adapters.inventories import read_nodes
from themis_triton.adapters.node_types_check import check_node_types
from themis_triton.adapters.slurm.inventory import devices_of, nodes_of
from themis_triton.adapters.slurm.nodes import parse_nodes, parse_use
from themis_triton.cli import app
from themis_triton.commands import inventory_command
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig, SlurmLaunchConfig
from themis_triton.core.errors import ServerError
from themis_triton.core.nodes import Node, NodeTypeReading, read_types
from themis_triton.daemon.nodes_watch import NodesWatch

LABELS = {"market": "spot", "topology.kubernetes.io/zone": "west-1"}
TYPES = {"spot": {"market": "spot"}, "reserved": {"market": "reserved"}}


def test_nodes_of_kubernetes_have_their_devices_zone_and_types_and_a_refusal_has_a_remedy(tmp_path: Path) -> None:
    cluster = Cluster(REPOSITORY)
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"cpu": "8", "memory": "16Gi", "nvidia.com/gpu": "2"}}
    cluster.nodes = [
        {"metadata": {"name": "a", "labels": LABELS}, "status": ready},
        {"metadata": {"name": "b"}, "spec": {"unschedulable": True}, "status": ready},
        {"metadata": {"name": "c"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}},
    ]

    async def read() -> None:
        async with cluster.serve():
            launch, template = replace(launch_config(tmp_path, cluster), node_types=TYPES), deepcopy(TEMPLATE)
            assert await read_nodes(launch) == (
                Node("a", "ready", True, {"nvidia.com/gpu": 2.0}, 2**34, "west-1", LABELS, ("spot",)),
                Node("b", "cordoned", False, {"nvidia.com/gpu": 2.0}, 2**34),
                Node("c", "not ready", False),
            )
            cluster.may_list_all_pods = True
            gpus = {"resources": {"limits": {"nvidia.com/gpu": 1}, "requests": {"cpu": "500m", "memory": "1Gi"}}}
            first = {"resources": {"requests": {"cpu": 5}}}
            cluster.others_pods = [
                {"spec": {"nodeName": "a", "containers": [gpus], "initContainers": [first]}},
                {"spec": {"containers": [gpus]}},
            ]
            template["spec"]["containers"][0]["resources"] = {"limits": {"cpu": 2, "memory": "3Gi"}}
            launch.pod_template.write_text(yaml.safe_dump(template))
            free = (await read_nodes(launch))[0]
            assert (free.free_devices, free.places) == ({"nvidia.com/gpu": 1.0}, {"spot": 1})
            findings = await check_node_types(replace(config(), launch=launch))
            assert [(each.what, each.severity) for each in findings] == [
                ("launch.node_types.spot", Severity.OK),
                ("launch.node_types.reserved", Severity.WARNING),
            ]
            assert findings[1].found == "none of 3 nodes takes servers (market: reserved)"
            cluster.failures.append(403)
            with pytest.raises(ServerError, match=r"nodes may not be listed\. Fix: .*manifests/nodes\.yaml"):
                await read_nodes(launch)

    asyncio.run(read())


def test_nodes_of_kubernetes_that_refuse_the_pods_of_the_template_have_no_places(tmp_path: Path) -> None:
    cluster, launch_file = Cluster(REPOSITORY), tmp_path / "pod.yaml"
    cluster.may_list_all_pods = True
    status = {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"cpu": "8", "nvidia.com/gpu": "2"}}
    taints: dict[str, list[dict[str, str]]] = {
        "free": [],
        "preferred": [{"key": "busy", "effect": "PreferNoSchedule"}],
        "tolerated": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}, {"key": "spot", "effect": "NoExecute"}],
        "other-value": [{"key": "team", "value": "training", "effect": "NoSchedule"}],
        "other-effect": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoExecute"}],
        "drained": [{"key": "maintenance", "effect": "NoExecute"}],
    }
    cluster.nodes = [
        {"metadata": {"name": name, "labels": LABELS}, "spec": {"taints": each}, "status": status} for name, each in taints.items()
    ]
    cluster.nodes.append({"metadata": {"name": "cordoned", "labels": LABELS}, "spec": {"unschedulable": True}, "status": status})
    template = deepcopy(TEMPLATE)
    template["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": 1}}
    template["spec"]["tolerations"] = [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "team", "value": "serving"},
        {"key": "spot", "effect": "NoExecute", "tolerationSeconds": 60},
    ]

    async def read() -> None:
        async with cluster.serve():
            launch = replace(launch_config(tmp_path, cluster), node_types=TYPES, pod_template=launch_file)
            launch_file.write_text(yaml.safe_dump(template))
            nodes = await read_nodes(launch)
            assert [(node.name, node.state, node.usable, node.places) for node in nodes] == [
                ("free", "ready", True, {"spot": 2}),
                ("preferred", "ready", True, {"spot": 2}),
                ("tolerated", "ready", True, {"spot": 2}),
                ("other-value", "tainted team=training:NoSchedule", False, {"spot": 0}),
                ("other-effect", "tainted nvidia.com/gpu=present:NoExecute", False, {"spot": 0}),
                ("drained", "tainted maintenance:NoExecute", False, {"spot": 0}),
                ("cordoned", "cordoned", False, {"spot": 0}),
            ]
            assert read_types(nodes, launch)["spot"] == NodeTypeReading(3, {"nvidia.com/gpu": 6.0}, {"nvidia.com/gpu": 6.0}, 6)
            template["spec"]["tolerations"] = [{"operator": "Exists"}]
            launch_file.write_text(yaml.safe_dump(template))
            tolerant = await read_nodes(launch)
            assert [node.name for node in tolerant if not node.usable] == ["cordoned"]
            findings = await check_node_types(replace(config(), launch=launch))
            assert findings[0].found.startswith("6 of 7 nodes take servers")

    asyncio.run(read())


SINFO = """\
node1|10.0.0.1|idle|gpu|gpu:a100:4(S:0-1),license:2|big,fast
node1|10.0.0.1|idle|all|gpu:a100:4(S:0-1),license:2|big,fast
node2|10.0.0.2|mixed|all|gpu:t4:1|(null)
node3|10.0.0.3|down*|gpu|(null)|big
node4|10.0.0.4|drained|gpu|gpu:2|big
"""


@pytest.mark.parametrize(
    ("select", "belong"),
    [
        ({"partition": "gpu"}, ["node1", "node4"]),
        ({"partition": "gpu,all"}, ["node1", "node2", "node4"]),
        ({"constraint": "big&fast"}, ["node1"]),
        ({"constraint": "slow|big"}, ["node1", "node4"]),
        ({"constraint": "[rack1|rack2]"}, ["node1", "node2", "node4"]),
        ({"gres": "gpu:a100:1"}, ["node1"]),
        ({"gres": "gpu:2"}, ["node1", "node4"]),
        ({"gres": "gpu:8"}, []),
    ],
)
def test_nodes_of_slurm_belong_to_the_types_whose_jobs_may_run_there(tmp_path: Path, select: dict[str, str], belong: list[str]) -> None:
    launch = SlurmLaunchConfig((), tmp_path, gres="gpu:1", node_types={"it": select})
    nodes = nodes_of(parse_nodes(SINFO), launch)
    assert [node.name for node in nodes if node.node_types] == belong
    assert [(node.name, node.usable) for node in nodes] == [("node1", True), ("node2", True), ("node3", False), ("node4", False)]
    assert nodes[0].labels == {"partition": "all,gpu", "features": "big,fast"}


USED = f"""\
{"node1":<128}{"gpu:a100:3(IDX:0-2),license:0":<1024}{"6/2/0/8":<64}
{"node2":<128}{"gpu:t4:0(IDX:N/A)":<1024}{"0/8/0/8":<64}
{"node4":<128}{"x" * 1024}{"0/8/0/8":<64}
"""


def test_places_of_slurm_are_as_many_as_devices_and_processors_that_no_job_has(tmp_path: Path) -> None:
    launch = SlurmLaunchConfig((), tmp_path, gres="gpu:1", cpus=2, node_types={"any": {}, "a100": {"gres": "gpu:a100:2"}})
    node1, node2, *_, node4 = nodes_of(parse_nodes(SINFO), launch, parse_use(USED))
    assert (node1.free_devices, node1.places) == ({"gpu:a100": 1.0, "license": 2.0}, {"any": 1, "a100": 0})
    assert (node2.free_devices, node2.places) == ({"gpu:t4": 1.0}, {"any": 1})
    assert (node4.free_devices, node4.places) == (None, None)


def test_a_sidecar_reads_nodes_counts_launches_since_and_forgets_what_is_old() -> None:
    async def watch() -> None:
        clock, launcher, launched = FakeClock(), FakeLauncher([]), {"one": "spot"}
        launch = SlurmLaunchConfig((), Path(), node_types=TYPES)
        nodes = NodesWatch(launch, launcher, lambda: launched, clock)
        there = Node("a", "idle", True, {"gpu": 4.0}, node_types=("spot",), free_devices={"gpu": 2.0}, places={"spot": 2})
        launcher.nodes = (there, replace(there, name="b"), replace(there, name="c", usable=False))
        await nodes.read()
        assert nodes.free_places() == {"spot": 4, "reserved": 0}
        launched["two"] = "spot"
        assert nodes.free_places() == {"spot": 3, "reserved": 0}
        assert nodes.reading.node_types["spot"] == NodeTypeReading(2, {"gpu": 8.0}, {"gpu": 4.0}, 4)
        launcher.nodes = (there, replace(there, name="b", free_devices=None, places=None))
        await nodes.read()
        assert nodes.free_places() == {"reserved": 0}
        launcher.failing.add("nodes")
        await nodes.read()
        assert (nodes.reading.error, nodes.free_places()) == ("nodes: nodes failed, see nodes.log", {"reserved": 0})
        clock.at_s += 91.0
        assert nodes.free_places() == {}
        await NodesWatch(launch, launcher, dict, clock).read()

    with capture_logs() as logs:
        asyncio.run(watch())
    cheapest = "launches take the cheapest node type, whether it has a free device or not"
    assert [log["message"] for log in logs] == [f"the last reading counts until it is 90 s old; then {cheapest}", cheapest]


def test_devices_of_slurm_have_a_kind_and_a_number() -> None:
    assert devices_of("gpu:a100:4(S:0-1),license:2") == {"gpu:a100": 4.0, "license": 2.0}
    assert devices_of("gres/gpu") == {"gpu": 1.0}
    assert devices_of("(null)") == {}


def test_slots_are_listed_by_type_with_price_and_use_beside_the_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "detector").mkdir(parents=True)
    path = tmp_path / "themis.yaml"
    path.write_text(
        "launch: {slots: [{device: cpu:0, node_type: big, price_per_hour: 2}, {device: cpu:1, node_type: small, price_per_hour: 0.5}], "
        "model_repository: models}\n"
        "models: {detector: {profile: {surface: {form: contention, alpha_ms: 1, beta_ms: 2, gamma_ms: 1, zeta_ms: 6}}}}\n"
        "pipelines: {video: {stages: [detector], slo_ms: 300}}\n",
        encoding="utf-8",
    )
    without = CliRunner().invoke(app, ["inventory", "-c", str(path)])
    assert without.exit_code == 0, without.output
    assert "which slots are used is not known" in without.stdout
    monkeypatch.setattr(inventory_command, "_servers", lambda _: (server("one", slot="cpu-1"),))
    listed = json.loads(CliRunner().invoke(app, ["inventory", "-c", str(path), "--json"]).stdout)
    (node,) = listed["nodes"]
    assert (node["devices"], node["node_types"], node["servers"]) == ({"cpu:1": 1.0, "cpu:0": 1.0}, ["small", "big"], ["one"])
    small, big = listed["node_types"]
    assert small == {"node_type": "small", "price_per_hour": 0.5, "nodes": 1, "slots": ["cpu-1"], "used": ["cpu-1"]}
    assert (big["node_type"], big["used"]) == ("big", [])


def test_a_device_that_is_not_here_is_named() -> None:
    (node,) = asyncio.run(read_nodes(LocalLaunchConfig((DeviceSlot("a", "cpu:0"), DeviceSlot("b", "gpu:77")), Path())))
    assert (node.state, node.usable, dict(node.devices)) == ("without gpu:77", True, {"cpu:0": 1.0})
