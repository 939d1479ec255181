"""Checks of profiles: they reach as far as their models may, and SLOs are reachable by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from themis_triton.core.config import StageCalls, ThroughputRule
from themis_triton.core.graph import longest_path
from themis_triton.settings.graph import expand, graph_of
from themis_triton.settings.loading import Loaded, mapping
from themis_triton.settings.models import ModelSettings
from themis_triton.settings.pipelines import PipelineSettings
from themis_triton.settings.problem import Problem
from themis_triton.settings.profile import SurfaceForm


def check_profiles(loaded: Loaded) -> Iterator[Problem]:
    """Profiles that do not reach far enough or are not of the form that plans take, and SLOs that no request can meet."""
    yield from _profiles(loaded)
    yield from _paper_forms(loaded)
    yield from _objectives(loaded)


def max_busy(loaded: Loaded) -> int:
    """The maximum number of busy instances on one device: the sum of the models' maxima times the servers that share the device."""
    devices = [str(_first_device(mapping(server))) for server in loaded.section("servers").values()]
    devices += [slot.device for slot in loaded.launch.slots or []] if loaded.launch else []
    shared = max((devices.count(device) for device in devices), default=1)
    return shared * sum(model.instances.max for model in loaded.models.values())


def _first_device(server: Mapping[str, object]) -> object:
    devices = server.get("devices")
    return devices[0] if isinstance(devices, list) and devices else server.get("device")


def _profiles(loaded: Loaded) -> Iterator[Problem]:
    busy = max_busy(loaded)
    for name, model in loaded.models.items():
        if fault := model.profile.first_not_positive(model.max_batch, busy):
            expected = f"more than 0 ms for batches of 1 to {model.max_batch} and 1 to {busy} busy instances"
            yield loaded.source.problem(("models", name, "profile", "surface"), fault, expected, "measure again, or give a table")
        yield from _table_reach(loaded, name, model)


def _table_reach(loaded: Loaded, name: str, model: ModelSettings) -> Iterator[Problem]:
    table = model.profile.table
    if table is None:
        return
    bounds = {"max_batch": (model.max_batch, table.batches[-1]), "instances": (model.instances.max, table.instances[-1])}
    for key, (configured, measured) in bounds.items():
        if configured > measured:
            fix = f"measure further, or lower `{key}`"
            expected = f"at most {measured}, the largest number in the table"
            yield loaded.source.problem(("models", name, key), f"{configured} is not in the profile", expected, fix)


def _paper_forms(loaded: Loaded) -> Iterator[Problem]:
    if loaded.planning is None or loaded.planning.throughput is ThroughputRule.CORES:
        return
    for name, model in loaded.models.items():
        if model.profile.surface is not None and model.profile.surface.form is SurfaceForm.PAPER:
            fault = "paper needs planning.throughput: cores"
            fix = "set `planning.throughput: cores`"
            yield loaded.source.problem(("models", name, "profile", "surface", "form"), fault, "contention or cores", fix)


def _objectives(loaded: Loaded) -> Iterator[Problem]:
    for name, pipeline in loaded.pipelines.items():
        stages = expand(loaded, pipeline.model) if pipeline.model is not None else _stage_calls(pipeline)
        if all(stage in loaded.models for stage, _ in stages):
            yield from _objective(loaded, name, pipeline, dict(stages))


def _stage_calls(pipeline: PipelineSettings) -> tuple[tuple[str, StageCalls], ...]:
    return tuple((stage.model, stage.calls) for stage in pipeline.stages or ())


def _objective(loaded: Loaded, name: str, pipeline: PipelineSettings, stages: Mapping[str, StageCalls]) -> Iterator[Problem]:
    fastest = {stage: loaded.models[stage].profile.fastest_ms(loaded.models[stage].instances.max) for stage in stages}
    turns = {stage: max(1.0, calls.per_request) if calls.sequential else 1.0 for stage, calls in stages.items()}
    times = {stage: turns[stage] * ms for stage, ms in fastest.items()}
    if pipeline.model is not None:
        times = {stage: times[stage] for stage in longest_path(graph_of(loaded, pipeline.model).graph, times)}
    total_ms = sum(times.values())
    margin = loaded.policy.slo_margin_fraction if loaded.policy is not None else 0.0
    min_ms = total_ms / (1.0 - margin)
    if pipeline.slo_ms >= min_ms - 1e-9:
        return
    terms = " + ".join(f"{stage} {time:g}" for stage, time in times.items())
    total = f" = {total_ms:g}" if len(times) > 1 else ""
    scaled = f", divided by {1.0 - margin:g} for policy.slo_margin_fraction = {min_ms:g} ms" if margin else ""
    expected = f"at least the service time of one request: {terms}{total} ms{scaled}"
    yield loaded.source.problem(("pipelines", name, "slo_ms"), None, expected, "raise slo_ms, or serve faster models")
