"""Checks across keys: names must exist, SLOs must be reachable, addresses must not conflict."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

from themis_triton.core.address import Address
from themis_triton.core.config import Placement, StageCalls, StandbyKind, ThroughputRule
from themis_triton.core.graph import longest_path
from themis_triton.settings.calls_check import check_calls
from themis_triton.settings.graph import expand, graph_of, is_driven_inside, parse_fault
from themis_triton.settings.kinds import parse_address
from themis_triton.settings.loading import Loaded, mapping
from themis_triton.settings.model_files import is_folder_name, launch_repositories, max_batch_size, model_file, unusable_inputs
from themis_triton.settings.models import ModelSettings
from themis_triton.settings.node_types_check import check_node_types
from themis_triton.settings.overload_check import check_overload
from themis_triton.settings.pipelines import PipelineSettings
from themis_triton.settings.pods_check import check_pods
from themis_triton.settings.problem import Problem
from themis_triton.settings.profile import SurfaceForm
from themis_triton.settings.schema import EnvoySettings, StatusSettings
from themis_triton.settings.secret_files import check_secret_files
from themis_triton.settings.separate_check import check_separate
from themis_triton.settings.source import KeyPath, dotted

_ENVOY, _STATUS = EnvoySettings(), StatusSettings()


def check(loaded: Loaded) -> Iterator[Problem]:
    """Every error across keys, as far as the keys themselves are valid."""
    yield from _something_to_scale(loaded)
    yield from _stages(loaded)
    yield from check_calls(loaded)
    yield from _profiles(loaded)
    yield from _paper_forms(loaded)
    yield from _input_files(loaded)
    yield from check_secret_files(loaded)
    yield from _objectives(loaded)
    yield from check_overload(loaded)
    yield from check_separate(loaded)
    yield from _slots(loaded)
    yield from _devices(loaded)
    yield from _repository(loaded)
    yield from check_pods(loaded)
    yield from check_node_types(loaded)
    yield from _standby(loaded)
    yield from _loopback(loaded)
    yield from _addresses(loaded)
    yield from _windows(loaded)


def _standby(loaded: Loaded) -> Iterator[Problem]:
    """A lease is of the engine that runs the servers."""
    kind = loaded.section("standby").get("kind", StandbyKind.FILE)
    if kind in (StandbyKind.RAY, StandbyKind.KUBERNETES) and (loaded.launch is None or loaded.launch.kind.value != kind):
        found = f"the lease is {kind}'s, and `launch.kind` is {loaded.launch.kind.value if loaded.launch is not None else 'not set'}"
        fix = f"set `launch.kind: {kind}`, or remove `standby`"
        yield loaded.source.problem(("standby", "kind"), found, f"`launch.kind: {kind}`", fix)


def chain_of(pipeline: object) -> list[tuple[KeyPath, str]]:
    """The stages of a pipeline as written, each with its key path relative to the pipeline."""
    stages, model = mapping(pipeline).get("stages"), mapping(pipeline).get("model")
    if isinstance(stages, list):
        return [stage for index, each in enumerate(stages) if (stage := _stage_of(index, each)) is not None]
    return [(("model",), model)] if isinstance(model, str) else []


def _stage_of(index: int, stage: object) -> tuple[KeyPath, str] | None:
    if isinstance(stage, str):
        return ("stages", index), stage
    model = mapping(stage).get("model")
    return (("stages", index, "model"), model) if isinstance(model, str) else None


def max_busy(loaded: Loaded) -> int:
    """The maximum number of busy instances on one device: the sum of the models' maxima times the servers that share the device."""
    devices = [str(_first_device(mapping(server))) for server in loaded.section("servers").values()]
    devices += [slot.device for slot in loaded.launch.slots or []] if loaded.launch else []
    shared = max((devices.count(device) for device in devices), default=1)
    return shared * sum(model.instances.max for model in loaded.models.values())


def _first_device(server: Mapping[str, object]) -> object:
    devices = server.get("devices")
    return devices[0] if isinstance(devices, list) and devices else server.get("device")


def _something_to_scale(loaded: Loaded) -> Iterator[Problem]:
    """Settings need servers or slots, except with placement separate: such ones can be planned and simulated without."""
    if loaded.planning is not None and loaded.planning.placement is Placement.SEPARATE:
        return
    data = mapping(loaded.source.data)
    if not data.get("servers") and data.get("launch") is None:
        fix = "add a running server under `servers:`, or slots for new servers under `launch:`"
        yield loaded.source.problem((), "neither `servers` nor `launch` is set", "at least one of them", fix)


def _stages(loaded: Loaded) -> Iterator[Problem]:
    defined = list(loaded.section("models"))
    for name, pipeline in loaded.section("pipelines").items():
        seen: set[str] = set()
        for inner, stage in chain_of(pipeline):
            path: KeyPath = ("pipelines", name, *inner)
            if inner == ("model",) and is_driven_inside(loaded, stage):
                yield from _inner_models(loaded, stage, path, defined)
            elif stage not in defined and not is_driven_inside(loaded, stage):
                yield _unknown(loaded, stage, path, defined)
            elif stage in seen:
                yield loaded.source.problem(path, f"{stage} is a stage already", "each model once in a pipeline", "remove one of the two")
            seen.add(stage)


def _unknown(loaded: Loaded, stage: str, path: KeyPath, defined: Sequence[str]) -> Problem:
    """A name that no model has, or an ensemble whose steps are not known."""
    if (fault := parse_fault(loaded, stage)) is not None:
        return loaded.source.problem(
            path, f"{fault}: the steps of {stage} cannot be read", "a Triton model configuration", "correct the file"
        )
    near = get_close_matches(stage, defined, n=1)
    members = f"if it is an ensemble, name its members: `calls: {{{stage}: [MEMBER, …]}}`, or the model_repository with its config.pbtxt"
    fix = f"did you mean {near[0]}?" if near else f"define {stage} under `models:`"
    fix += f"; {members}" if not near and path[-1] == "model" and model_file(loaded, stage) is None else ""
    return loaded.source.problem(path, f"unknown model {stage}", f"a model defined under `models:`, one of {', '.join(defined)}", fix)


def _inner_models(loaded: Loaded, model: str, path: KeyPath, defined: Sequence[str]) -> Iterator[Problem]:
    """Every model that a request reaches inside the server is to be scaled."""
    for inner, _ in expand(loaded, model):
        if inner not in defined and is_driven_inside(loaded, inner):
            expected = "ensembles that do not contain themselves"
            yield loaded.source.problem(
                path, f"{inner} contains itself, directly or through its members", expected, "correct its steps or `calls`"
            )
        elif inner not in defined:
            fault = f"{model} calls {inner}, which is not defined under `models:`"
            yield loaded.source.problem(path, fault, "each called model defined there", f"define {inner} under `models:`")


def _profiles(loaded: Loaded) -> Iterator[Problem]:
    busy = max_busy(loaded)
    for name, model in loaded.models.items():
        if fault := model.profile.first_not_positive(model.max_batch, busy):
            expected = f"more than 0 ms for batches of 1 to {model.max_batch} and 1 to {busy} busy instances"
            yield loaded.source.problem(("models", name, "profile", "surface"), fault, expected, "measure again, or give a table")
        yield from _table_reach(loaded, name, model)


def _input_files(loaded: Loaded) -> Iterator[Problem]:
    for name, model in loaded.models.items():
        for keys, file in ((("inputs", "file"), model.inputs.file), (("warmup",), model.warmup)):
            if file is not None and not loaded.resolve(file).is_file():
                fix = f"correct the path, which starts at {loaded.path.parent.resolve()}, or write the file with numpy.savez"
                yield loaded.source.problem(("models", name, *keys), f"{file} does not exist", "the path of an .npz file", fix)
            elif file is not None and (error := unusable_inputs(loaded, name, loaded.resolve(file))) is not None:
                fault, _, rest = error.partition(": expected ")
                expected, _, fix = rest.partition(". Fix: ")
                yield loaded.source.problem(("models", name, *keys), fault, expected, fix)


def _paper_forms(loaded: Loaded) -> Iterator[Problem]:
    if loaded.planning is None or loaded.planning.throughput is ThroughputRule.CORES:
        return
    for name, model in loaded.models.items():
        if model.profile.surface is not None and model.profile.surface.form is SurfaceForm.PAPER:
            fault = "paper needs planning.throughput: cores"
            fix = "set `planning.throughput: cores`"
            yield loaded.source.problem(("models", name, "profile", "surface", "form"), fault, "contention or cores", fix)


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


def _slots(loaded: Loaded) -> Iterator[Problem]:
    taken = {str(name): "an adopted server" for name in loaded.section("servers")}
    for index, slot in enumerate((loaded.launch.slots or []) if loaded.launch else []):
        if slot.name is None:
            continue
        if slot.name in taken:
            fault = f"{slot.name} is the name of {taken[slot.name]} too"
            yield loaded.source.problem(("launch", "slots", index, "name"), fault, "each name once", "rename one of the two")
        taken.setdefault(slot.name, "another slot")


def _devices(loaded: Loaded) -> Iterator[Problem]:
    """The devices of one server are of one kind and named in one way, and none of several is MIG: a process can use just one MIG device."""
    for (_, home), *others in _devices_of_servers(loaded):
        for path, device in others:
            if device != home and "MIG" in (_device_kind(home), _device_kind(device)):
                fault = f"{device} beside {home}: a server can use just one device if that is MIG"
                yield loaded.source.problem(path, fault, "whole GPUs", "name whole GPUs, or start one server for each MIG device")
            elif _device_kind(device) != _device_kind(home):
                fault = f"{device} and {home} cannot belong to one server"
                fix = f"name it as {home} is named, or give it to another server"
                yield loaded.source.problem(path, fault, f"a device of the kind of {home}", fix)


def _devices_of_servers(loaded: Loaded) -> Iterator[list[tuple[KeyPath, str]]]:
    """The devices of each server that names several, and those of launched servers with a reach."""
    for name, server in loaded.section("servers").items():
        devices = mapping(server).get("devices")
        if isinstance(devices, list) and devices:
            yield [(("servers", name, "devices", index), str(device)) for index, device in enumerate(devices)]
    if loaded.launch is not None and loaded.launch.reach:
        slots: list[tuple[KeyPath, str]] = [
            (("launch", "slots", index), slot.device) for index, slot in enumerate(loaded.launch.slots or [])
        ]
        yield [*slots, *((("launch", "reach", index), device) for index, device in enumerate(loaded.launch.reach))]


def _device_kind(device: str) -> str:
    """`cpu`, `gpu` (by number), `GPU` or `MIG` (by UUID)."""
    kind, _, end = device.partition(":")
    return kind if end.isdecimal() else end.partition("-")[0]


def _repository(loaded: Loaded) -> Iterator[Problem]:
    """The model repositories of launched servers must hold each model of the settings."""
    if loaded.launch is None:
        return
    own_repositories = launch_repositories(loaded, loaded.launch)
    folders = [repository.folder for repository in own_repositories]
    for folder in folders:
        if not folder.is_dir():
            remote = re.search(r"\b(s3|gs|as|https?):/", str(folder)) is not None
            fix = (
                "name a copy or a mount on this machine" if remote else f"correct the path, which starts at {loaded.path.parent.resolve()}"
            )
            fault = f"{folder} is not a folder"
            yield loaded.source.problem(("launch", "model_repository"), fault, "a Triton model repository", fix)
            return
    for name in filter(is_folder_name, loaded.section("models")):
        own = next((each for each in own_repositories if (each.folder / name).is_dir()), None)
        if own is None:
            fault = f"{' and '.join(map(str, folders))} {'have' if len(folders) > 1 else 'has'} no folder {name}"
            fix = f"add {name} there, or remove it from `models:`"
            yield loaded.source.problem(("models", name), fault, "a model that launched servers can load", fix, at_key=True)
            continue
        config = own.config(name)
        limit, configured = max_batch_size(config), mapping(loaded.section("models")[name]).get("max_batch")
        if limit and isinstance(configured, int) and configured > limit:
            fix = "lower it, or raise max_batch_size there if the model supports such batches"
            expected = f"at most {limit}, the max_batch_size of {config}"
            yield loaded.source.problem(("models", name, "max_batch"), None, expected, fix)


def _loopback(loaded: Loaded) -> Iterator[Problem]:
    for section, key, default, risk in (
        ("envoy", "admin", _ENVOY.admin, "any client of this address can stop Envoy"),
        ("status", "address", _STATUS.address, "any client of this address can read what is served"),
    ):
        written = loaded.section(section)
        address_text = str(written.get(key, default) or "")
        address = parse_address(address_text)
        if address is not None and not address.is_loopback and written.get("allow_non_loopback") is not True:
            fix = f"write 127.0.0.1:{address.port}, or set `{section}.allow_non_loopback: true` ({risk})"
            yield loaded.source.problem((section, key), f"{address_text} is reachable from other machines", "a loopback address", fix)


def _addresses(loaded: Loaded) -> Iterator[Problem]:
    taken: list[tuple[KeyPath, Address]] = []
    for path, text in _written_addresses(loaded):
        address = parse_address(text)
        if address is None:
            continue
        other = next((where for where, there in taken if address.clashes(there)), None)
        if other is not None:
            place = loaded.source.place(other)
            line = f" (line {place.line})" if other in loaded.source.places else ""
            fault = f"{text} conflicts with {dotted(other)}{line}"
            yield loaded.source.problem(path, fault, "each address once", "choose another port")
        taken.append((path, address))


def _written_addresses(loaded: Loaded) -> Iterator[tuple[KeyPath, str]]:
    """All addresses, defaults first, so that a conflict is reported at a line of the file."""
    for name, server in loaded.section("servers").items():
        for key in ("grpc", "http", "metrics"):
            yield ("servers", name, key), str(mapping(server).get(key))
    yield ("envoy", "xds", "listen"), str(mapping(loaded.section("envoy").get("xds")).get("listen"))
    own = [("envoy", key, getattr(_ENVOY, key)) for key in ("grpc_listen", "http_listen", "admin")]
    own.append(("status", "address", _STATUS.address))
    for section, key, default in sorted(own, key=lambda entry: entry[1] in loaded.section(entry[0])):
        yield (section, key), str(loaded.section(section).get(key, default) or "")


def _windows(loaded: Loaded) -> Iterator[Problem]:
    """Pairs of durations, of which the first must not exceed the second."""
    if loaded.policy is None:
        return
    for path, low, high in (
        (("policy", "demand"), "rate_window_s", "burst_window_s"),
        (("policy", "demand"), "rate_window_s", "stable_window_s"),
        (("policy",), "tick_s", "max_stale_s"),
        (("policy",), "retry_backoff_s", "retry_backoff_max_s"),
    ):
        section = loaded.policy.demand if path[-1] == "demand" else loaded.policy
        lower, upper = getattr(section, low), getattr(section, high)
        if lower > upper:
            key = low if (*path, low) in loaded.source.places else high
            fix = f"lower {low} or raise {high}"
            yield loaded.source.problem((*path, key), f"{low} {lower:g} > {high} {upper:g}", f"{low} ≤ {high}", fix)
