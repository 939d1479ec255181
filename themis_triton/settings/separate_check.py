"""What `planning.placement: separate` asks of the other settings."""

from __future__ import annotations

from collections.abc import Iterator

from themis_triton.core.config import Placement, ThroughputRule
from themis_triton.settings.build_launch import launch_slots
from themis_triton.settings.graph import is_driven_inside
from themis_triton.settings.loading import Loaded, mapping
from themis_triton.settings.problem import Problem
from themis_triton.settings.source import KeyPath

_PLACEMENT: KeyPath = ("planning", "placement")
_MIB = 2**20


def check_separate(loaded: Loaded) -> Iterator[Problem]:
    """An error for what servers with one model each cannot do; none for the paper's replicas (`cores`), which never run live."""
    planning = loaded.planning
    if planning is None or planning.placement is not Placement.SEPARATE or planning.throughput is ThroughputRule.CORES:
        return
    yield from _calls_inside(loaded)
    yield from _further_devices(loaded)
    yield from _too_few(loaded, planning.max_servers)
    yield from _memory(loaded)


def _calls_inside(loaded: Loaded) -> Iterator[Problem]:
    """An ensemble or a BLS model finds the models that it calls in its own server only."""
    for name, pipeline in loaded.pipelines.items():
        for model in (pipeline.model, *(stage.model for stage in pipeline.stages or ())):
            if model is not None and is_driven_inside(loaded, model):
                fault = f"separate is impossible for pipelines.{name}: {model} calls its models inside one server"
                fix = "set `planning.placement: colocated`, or let clients call the stages"
                yield loaded.source.problem(_PLACEMENT, fault, "pipelines whose stages clients call", fix)


def _further_devices(loaded: Loaded) -> Iterator[Problem]:
    """Servers of one stage grow on their own device and by further servers."""
    fix = "remove the further devices and name them as launch.slots, or set `planning.placement: colocated`"
    if loaded.launch is not None and loaded.launch.reach:
        yield loaded.source.problem(("launch", "reach"), "placement separate uses one device a server", "no further devices", fix)
    for name, server in loaded.section("servers").items():
        devices = mapping(server).get("devices")
        if isinstance(devices, list) and len(devices) > 1:
            path: KeyPath = ("servers", name, "devices")
            yield loaded.source.problem(path, "placement separate uses one device a server", "one device", fix)


def _too_few(loaded: Loaded, max_servers: int | None) -> Iterator[Problem]:
    longest = max((len(pipeline.chain) for pipeline in loaded.pipelines.values()), default=0)
    if loaded.launch is not None and max_servers is not None and max_servers < longest:
        expected = f"at least {longest}, one server for each stage of the longest pipeline"
        yield loaded.source.problem(("planning", "max_servers"), None, expected, "raise it, or set `planning.placement: colocated`")


def _memory(loaded: Loaded) -> Iterator[Problem]:
    """The fewest instances of each model fit on a slot, and those of all on all slots. What adopted servers hold is not known here."""
    launch = loaded.launch if not loaded.section("servers") else None
    limits = [slot.memory_bytes for slot in launch_slots(launch)] if launch is not None else []
    known = [limit / _MIB for limit in limits if limit is not None]
    stages = {stage for pipeline in loaded.pipelines.values() for stage in pipeline.chain}
    needed = {name: m.instances.min * int(m.profile.instance_memory) / _MIB for name, m in loaded.models.items() if name in stages}
    if not known or len(known) < len(limits) or not needed:
        return
    largest, fix = max(needed, key=lambda name: needed[name]), "give slots more memory, or add slots"
    if needed[largest] > max(known):
        fault = f"no slot has the {needed[largest]:,.0f} MiB that the fewest instances of {largest} need"
        yield loaded.source.problem(("launch", "slots"), fault, "a slot with as much memory", fix)
    elif sum(needed.values()) > sum(known):
        fault = f"all slots have {sum(known):,.0f} MiB, and the fewest instances of all models need {sum(needed.values()):,.0f} MiB"
        yield loaded.source.problem(("launch", "slots"), fault, "as much memory", fix)
