"""What `planning.placement: separate` asks of the other settings."""

from __future__ import annotations

from collections.abc import Iterator

from themis_triton.core.config import Placement, ThroughputRule
from themis_triton.settings.graph import is_driven_inside
from themis_triton.settings.loading import Loaded, mapping
from themis_triton.settings.problem import Problem
from themis_triton.settings.source import KeyPath

_PLACEMENT: KeyPath = ("planning", "placement")


def check_separate(loaded: Loaded) -> Iterator[Problem]:
    """An error for what servers with one model each cannot do; none for the paper's replicas (`cores`), which never run live."""
    planning = loaded.planning
    if planning is None or planning.placement is not Placement.SEPARATE or planning.throughput is ThroughputRule.CORES:
        return
    yield from _calls_inside(loaded)
    yield from _further_devices(loaded)
    yield from _too_few(loaded, planning.max_servers)


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
    """Each stage needs a server of its own; what adopted servers hold is not known here."""
    stages = {stage for pipeline in loaded.pipelines.values() for stage in pipeline.chain}
    if loaded.launch is not None and not loaded.section("servers") and len(loaded.launch.slots) < len(stages):
        fault = f"{len(loaded.launch.slots)} for {len(stages)} models with placement separate"
        expected = "at least one slot for each model, because each server holds one model"
        yield loaded.source.problem(("launch", "slots"), fault, expected, "add slots, or set `planning.placement: colocated`")
    longest = max((len(pipeline.chain) for pipeline in loaded.pipelines.values()), default=0)
    if loaded.launch is not None and max_servers is not None and max_servers < longest:
        expected = f"at least {longest}, one server for each stage of the longest pipeline"
        yield loaded.source.problem(("planning", "max_servers"), None, expected, "raise it, or set `planning.placement: colocated`")
