"""Node types with prices: what the settings say, which slots are taken and given back, what that costs, and what engines are asked."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.samples import config, server, snapshot
from tests.unit.test_allocation import HEAVY, LIGHT, decisions, holder, launched_models, two_pipelines
from themis_triton.adapters.device_kinds_check import mixed_devices
from themis_triton.adapters.kubernetes.pods import Order as PodOrder
from themis_triton.adapters.kubernetes.pods import server_pod
from themis_triton.adapters.server_files import ServerFiles
from themis_triton.adapters.slurm.order import Order, submission
from themis_triton.core.config import DeviceSlot, KubernetesLaunchConfig, SlurmLaunchConfig, ThemisConfig
from themis_triton.core.device_kinds import are_one_kind
from themis_triton.core.errors import SettingsError
from themis_triton.core.fleet import Phase, Place
from themis_triton.core.model_config import ProfileOrigin
from themis_triton.core.policy import PolicyConfig, ScaleDownConfig
from themis_triton.core.price import hourly_price, hourly_prices
from themis_triton.decide.devices import FreeDevices
from themis_triton.plan.steps import by_retirement
from themis_triton.planning import WhatIf, plan_rates
from themis_triton.profile.identity import SERVED
from themis_triton.profile.stale import stale_profiles
from themis_triton.settings import load_settings
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions

SETTINGS = """\
launch:
  kind: ray
  model_repository: models
  ray: {address: "10.0.0.1:6379", memory: 20GiB}
  node_types:
    reserved: {servers: 1, price_per_hour: 2.5, select: {market: reserved}}
    spot: {servers: 2, price_per_hour: 0.5, select: {market: spot}, memory: 10GiB}
models:
  detector: {node_types: [spot], profile: {surface: {form: contention, alpha_ms: 1, beta_ms: 2, gamma_ms: 1, zeta_ms: 6}}}
pipelines:
  video: {stages: [detector], slo_ms: 300}
"""
RAY = '  ray: {address: "10.0.0.1:6379", memory: 20GiB}\n'
TYPES = SETTINGS[SETTINGS.index("  node_types:\n") : SETTINGS.index("models:\n  detector")]
SLURM = ("kind: ray", "kind: slurm"), ("ray: {address: ", "slurm: {directory: "), ("market:", "partition:")


def loaded(folder: Path, *changes: tuple[str, str]) -> ThemisConfig:
    (folder / "models" / "detector").mkdir(parents=True)
    text = SETTINGS
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "themis.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path)


def test_slots_of_node_types_have_their_price_and_memory_the_cheapest_first(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    assert config.launch is not None
    assert [(s.name, s.device, (s.memory_bytes or 0) >> 30, s.node_type, s.price_per_hour) for s in config.launch.slots] == [
        ("spot-1", "ray:2", 10, "spot", 0.5),
        ("spot-2", "ray:3", 10, "spot", 0.5),
        ("reserved-1", "ray:1", 20, "reserved", 2.5),
    ]
    assert config.models["detector"].node_types == ("spot",)
    assert config.launch.selection_of("reserved-1") == {"market": "reserved"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [("node_types: [spot]", "node_types: [spott]")],
            r"node_types\[0\]: spott does not exist: expected reserved or spot\. Fix: write spot",
        ),
        ([("price_per_hour: 0.5, ", "")], r"node_types\.spot has no price_per_hour, and others have: .* Fix: add price_per_hour"),
        ([("ray: {", "ray: {servers: 2, ")], "both `ray.servers` and `node_types` are set: expected one of them"),
        ([(TYPES, "")], "neither `ray.servers` nor `node_types` is set"),
        ([("servers: 2", "servers: 0")], r"node_types\.spot\.servers: 0 is invalid"),
        ([*SLURM, ("partition: spot", "nodelist: a")], r"spot\.select: nodelist is invalid: expected partition, constraint, gres"),
        ([*SLURM, ("partition: spot", "partition: a b")], r"spot\.select: 'a b' is invalid"),
        (
            [
                ("pipelines:", "  other: {node_types: [reserved]}\npipelines:"),
                ("[detector]", "[detector, other]"),
            ],
            r"pipelines\.video: a server holds all of its models, which are bound apart: detector to spot, other to reserved",
        ),
        (
            [("  kind: ray\n", ""), (RAY, "  slots: [cpu:0]\n")],
            "`node_types` is set with kind: local.*`slots`",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place_and_its_remedy(tmp_path: Path, changes: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        loaded(tmp_path, *changes)
    assert "themis.yaml:" in str(refused.value)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a100", "gpu: NVIDIA A100-SXM4-40GB, 40960 MiB", True),
        ("Tesla-T4", "gpu: Tesla T4, 15360 MiB", True),
        ("nvidia-l4", "gpu: NVIDIA H100 80GB HBM3, 81559 MiB", False),
        ("a100", "cpu: Intel(R) Xeon(R) 8480, 4 cores", True),
        ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-SXM4-80GB", True),
    ],
)
def test_kinds_of_devices_are_compared_by_the_names_of_their_models(one: str, other: str, *, same: bool) -> None:
    assert are_one_kind(one, other) is same


def test_node_types_with_other_devices_than_the_profiles_or_than_each_other_are_named(tmp_path: Path) -> None:
    gpus = ("{market: reserved}", "{nvidia.com/gpu.product: NVIDIA-H100}"), ("{market: spot}", "{nvidia.com/gpu.product: Tesla-T4}")
    free = ("node_types: [spot], ", "")
    assert mixed_devices(loaded(tmp_path / "a", *gpus)) == []
    (finding,) = mixed_devices(mixed := loaded(tmp_path / "b", *gpus, free))
    assert (finding.what, finding.exit_code) == ("pipelines.video", 0)
    assert finding.found.startswith("its node types differ: spot has Tesla-T4, reserved has NVIDIA-H100; plans take all slots")
    origin = ProfileOrigin(SERVED, "", "gpu: Tesla T4, 15360 MiB", 99.0)
    profile = replace(mixed.models["detector"].profile, origin=origin)
    (stale,) = stale_profiles(replace(mixed, models={"detector": replace(mixed.models["detector"], profile=profile)}))
    assert "launch.node_types.reserved has NVIDIA-H100; bind the model to node types with its device" in stale


def test_slots_here_have_prices_too_or_none(tmp_path: Path) -> None:
    local = ("  kind: ray\n", ""), (RAY, "  slots: [{device: cpu:0, node_type: spot}, cpu:1]\n"), (TYPES, "")
    config = loaded(tmp_path / "a", *local)
    assert config.launch is not None
    assert not config.launch.is_priced
    with pytest.raises(SettingsError, match="cpu:1 has no price_per_hour, and others have"):
        loaded(tmp_path / "b", *local, ("node_type: spot", "node_type: spot, price_per_hour: 1"))


def test_the_cheapest_node_type_with_a_free_node_is_launched_on_first() -> None:
    cfg = priced(two_pipelines(4), PRICES)
    assert cfg.launch is not None
    cfg = replace(cfg, launch=replace(cfg.launch, node_types={"cheap": {}, "dear": {}}))
    cheap, dear = ("cpu:1", "cpu:3"), ("cpu:2", "cpu:0")
    for places, backing_off, slots in (
        ({}, {}, (*cheap, *dear)),
        ({"cheap": 1, "dear": 2}, {}, ("cpu:1", *dear, "cpu:3")),
        ({"cheap": 0}, {}, (*dear, *cheap)),
        ({"cheap": 0, "dear": 0}, {}, (*cheap, *dear)),
        ({"cheap": 9}, {"cpu:1": 1e12}, (*dear, "cpu:3")),
    ):
        free = FreeDevices(replace(snapshot(), free_places=places, backing_off=backing_off), cfg)
        assert free.slots == slots, (places, backing_off)
        free.take_slot(slots[0])
        assert free.slots[0] == slots[1]


LEAVING = (Phase.DRAINING, Phase.STOPPING)
PRICES = {"cpu:0": 2.0, "cpu:1": 0.5, "cpu:2": 1.0, "cpu:3": 0.5}


def priced(config: ThemisConfig, prices: dict[str, float]) -> ThemisConfig:
    """With these slots, the cheapest first, as the settings build them; a slot's node type is `cheap` below a price of 1, else `dear`."""
    slots = [DeviceSlot(name, name, None, "cheap" if price < 1.0 else "dear", price) for name, price in prices.items()]
    assert config.launch is not None
    return replace(config, launch=replace(config.launch, slots=tuple(sorted(slots, key=lambda slot: slot.price_per_hour or 0.0))))


def bound(config: ThemisConfig, **types: str) -> ThemisConfig:
    return replace(config, models=config.models | {name: replace(config.models[name], node_types=(each,)) for name, each in types.items()})


def test_cheap_slots_are_used_up_before_dear_ones_which_are_given_back_first() -> None:
    cfg = priced(two_pipelines(4), PRICES)
    one, both = [holder("l", LIGHT, "cpu:1")], [holder("l", LIGHT, "cpu:1"), holder("h", HEAVY, "cpu:3")]
    assert _slots(decisions(cfg, one, 20.0, 20.0)[-1].target) == ["cpu:3"]
    assert _slots(decisions(cfg, both, 20.0, 400.0)[-1].target)[0] == "cpu:2"
    assert set(_slots(decisions(cfg, both, 2000.0, 2000.0)[-1].target)) == {"cpu:0", "cpu:2"}
    fleet = [holder("dear", HEAVY, "cpu:0"), holder("cheap", HEAVY, "cpu:1"), holder("middle", HEAVY, "cpu:2"), holder("l", LIGHT, "cpu:3")]
    retired = next(each.target.retire for each in decisions(cfg, fleet, 5.0, 5.0, seconds=120) if each.target and each.target.retire)
    assert retired == ("dear",)


def _slots(target: object) -> list[str]:
    return list(getattr(target, "launch", {}))


def test_a_model_that_is_bound_to_a_node_type_is_launched_there_alone_and_chooses_before_others() -> None:
    cfg = bound(priced(two_pipelines(2), {"cpu:1": 0.5, "cpu:0": 2.0}), heavy="cheap")
    target = decisions(cfg, [], 20.0, 20.0)[-1].target
    assert target is not None
    assert {slot: tuple(models) for slot, models in target.launch.items()} == {"cpu:1": (HEAVY,), "cpu:0": (LIGHT,)}
    full = decisions(cfg, [holder("h", HEAVY, "cpu:1"), holder("l", LIGHT, "cpu:0")], 20.0, 900.0)[-1]
    assert launched_models(full) == []
    (free,) = decisions(bound(priced(two_pipelines(2), PRICES), heavy="dear"), [holder("h", HEAVY, "cpu:0")], 0.0, 2000.0)
    assert set(_slots(free.target)) <= {"cpu:2", "cpu:1"}
    assert any("heavy is bound to node type dear" in clamp.sentence for clamp in free.clamps)


def test_the_hourly_price_is_that_of_slots_with_a_server_and_a_plan_is_priced_on_the_cheapest() -> None:
    cfg = priced(two_pipelines(4), PRICES)
    servers = [holder("l", LIGHT, "cpu:0"), holder("h", HEAVY, "cpu:1"), server("a", launched=False)]
    assert hourly_price(servers, cfg) == 2.5
    assert hourly_prices(servers, cfg) == {"cheap": 0.5, "dear": 2.0}
    assert hourly_price(servers, two_pipelines(4)) is None
    (few, many) = plan_rates(cfg, (5.0, 2000.0), WhatIf(pipeline="b-heavy"))
    assert (few.stages[0].servers, few.price_per_hour) == (1, 0.5)
    assert (many.stages[0].servers, many.price_per_hour) == (4, 4.0)
    (narrow,) = plan_rates(bound(cfg, heavy="dear"), (2000.0,), WhatIf(pipeline="b-heavy"))
    assert (narrow.stages[0].servers, narrow.price_per_hour) == (2, 3.0)


@settings(deadline=None)
@given(
    prices=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    taken=st.sets(st.integers(0, 5)),
    count=st.integers(1, 6),
    only_cheap=st.booleans(),
)
def test_no_other_free_slots_that_a_model_may_use_are_cheaper_and_none_that_are_kept_are_dearer(
    prices: list[int], taken: set[int], count: int, *, only_cheap: bool
) -> None:
    names = {f"cpu:{number}": price / 2.0 for number, price in enumerate(prices)}
    cfg = priced(two_pipelines(1), names)
    cfg = bound(cfg, heavy="cheap") if only_cheap else cfg
    fleet = [holder(f"s{n}", LIGHT, f"cpu:{n}") for n in taken if n < len(prices)]
    devices, chosen = FreeDevices(snapshot(fleet), cfg), list[str]()
    while len(chosen) < count and (slots := devices.slots_for([HEAVY])):
        chosen.append(slots[0])
        devices.take_slot(slots[0])
    free = [name for name, price in names.items() if int(name[4:]) not in taken and (price < 1.0 or not only_cheap)]
    assert len(chosen) == min(count, len(free))
    assert sum(map(names.__getitem__, chosen)) == min(sum(map(names.__getitem__, some)) for some in combinations(free, len(chosen)))
    kept = by_retirement([Place(each, "", each.models) for each in fleet], cfg.launch)[:count]
    costs = [names[each.slot or ""] for each in fleet]
    assert sum(names[place.server.slot or ""] for place in kept) == sum(sorted(costs)[: len(kept)])


def test_pods_and_jobs_ask_for_the_nodes_of_their_slots_type(tmp_path: Path) -> None:
    slots, select = (DeviceSlot("spot-1", "pod:1", node_type="spot"),), {"spot": {"partition": "cheap", "gres": "gpu:t4:1"}}
    jobs = SlurmLaunchConfig(slots, tmp_path, directory=tmp_path, partition="gpu", node_types=select)
    command = submission(Order(ServerFiles(tmp_path, "one"), slots[0], {}, "key", "1f"), jobs)[1]
    assert {"--partition=cheap", "--gres=gpu:t4:1"} <= set(command)
    assert "--partition=gpu" not in command
    pods = KubernetesLaunchConfig(slots, tmp_path, node_types={"spot": {"market": "spot"}})
    template = {"spec": {"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "triton", "image": "t"}]}}
    pod = server_pod(template, PodOrder("one", "spot-1", "pod:1", {}, "1f"), pods, None)
    assert pod["spec"]["nodeSelector"] == {"disk": "ssd", "market": "spot"}
    assert template["spec"]["nodeSelector"] == {"disk": "ssd"}


def test_a_simulated_surge_fills_the_slots_from_the_cheapest_and_empties_them_from_the_dearest() -> None:
    """At each tick the servers that are to serve are on the cheapest slots, however many they are."""
    quick = PolicyConfig(scale_down=ScaleDownConfig(scale_in_stabilization_s=5.0, scale_in_launch_multiple=1.0))
    cfg = priced(config(quick, slots=4), PRICES)
    rates = [(20.0, 5), (400.0, 20), (20.0, 75)]
    start_s, arrivals = 0.0, []
    for rps, seconds in rates:
        arrivals.append(start_s + np.arange(int(rps * seconds)) / rps)
        start_s += seconds
    result = simulate(cfg, {"video": np.concatenate(arrivals)}, start_s, SimOptions(keep_ticks=True))
    held = [[PRICES[s.slot or ""] for s in each.snapshot.servers if s.phase not in LEAVING] for each in result.ticks]
    counts = [len(prices) for prices in held]
    assert (counts[0], max(counts), counts[-1]) == (1, 4, 1)
    assert all(sorted(prices) == sorted(PRICES.values())[: len(prices)] for prices in held)
