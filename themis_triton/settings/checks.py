"""What no single key can show: names that must exist, objectives that must be reachable, addresses that must not clash."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from themis_triton.core.address import Address
from themis_triton.core.config import Placement, ThroughputRule
from themis_triton.settings.kinds import parse_address
from themis_triton.settings.loading import Loaded, mapping
from themis_triton.settings.problem import Problem
from themis_triton.settings.profile import SurfaceForm
from themis_triton.settings.schema import EnvoySettings, LaunchSettings, ModelSettings, PipelineSettings, StatusSettings
from themis_triton.settings.shipped import shipped
from themis_triton.settings.source import KeyPath, dotted

_ENVOY, _STATUS = EnvoySettings(), StatusSettings()


def check(loaded: Loaded) -> Iterator[Problem]:
    """Every mistake that spans keys, as far as the keys that it spans are valid themselves."""
    yield from _something_to_scale(loaded)
    yield from _stages(loaded)
    yield from _first_stages(loaded)
    yield from _profiles(loaded)
    yield from _paper_forms(loaded)
    yield from _objectives(loaded)
    yield from _slots(loaded)
    yield from _repository(loaded)
    yield from _loopback(loaded)
    yield from _addresses(loaded)
    yield from _windows(loaded)


def chain_of(pipeline: object) -> list[tuple[KeyPath, str]]:
    """The stages of a pipeline as written, each with its key path below the pipeline."""
    stages, model = mapping(pipeline).get("stages"), mapping(pipeline).get("model")
    if isinstance(stages, list):
        return [(("stages", index), stage) for index, stage in enumerate(stages) if isinstance(stage, str)]
    return [(("model",), model)] if isinstance(model, str) else []


def max_busy(loaded: Loaded) -> int:
    """The most instances that can be busy at once on one device: all models at their most, times the servers that share it."""
    devices = [str(mapping(server).get("device")) for server in loaded.section("servers").values()]
    devices += [slot.device for slot in loaded.launch.slots] if loaded.launch else []
    shared = max((devices.count(device) for device in devices), default=1)
    return shared * sum(model.instances.max for model in loaded.models.values())


def _something_to_scale(loaded: Loaded) -> Iterator[Problem]:
    """Plans of separate stages are never carried out, so they need no server."""
    if loaded.planning is not None and loaded.planning.placement is Placement.SEPARATE:
        return
    data = mapping(loaded.source.data)
    if not data.get("servers") and data.get("launch") is None:
        remedy = "name a running server under `servers:`, or slots to start some on under `launch:`"
        yield loaded.source.problem((), "neither `servers` nor `launch`", "at least one of them", remedy)


def _stages(loaded: Loaded) -> Iterator[Problem]:
    defined = list(loaded.section("models"))
    for name, pipeline in loaded.section("pipelines").items():
        seen: set[str] = set()
        for inner, stage in chain_of(pipeline):
            path: KeyPath = ("pipelines", name, *inner)
            if stage not in defined:
                near = get_close_matches(stage, defined, n=1)
                remedy = f"did you mean {near[0]}?" if near else f"define {stage} under `models:`"
                yield loaded.source.problem(path, None, "a model defined under `models:`, of " + ", ".join(defined), remedy)
            elif stage in seen:
                yield loaded.source.problem(path, f"{stage} a second time", "each model once in a chain", "remove one of the two")
            seen.add(stage)


def _first_stages(loaded: Loaded) -> Iterator[Problem]:
    """A pipeline's demand is what arrives at its first stage, so two pipelines cannot share it."""
    owner: dict[str, str] = {}
    for name, pipeline in loaded.section("pipelines").items():
        for inner, stage in chain_of(pipeline)[:1]:
            if stage in owner:
                remedy = "their demand could not be told apart: serve the model under a second name for one of them"
                found = f"{stage}, the first stage of {owner[stage]} too"
                yield loaded.source.problem(("pipelines", name, *inner), found, "a first stage of its own for each pipeline", remedy)
            owner.setdefault(stage, name)


def _profiles(loaded: Loaded) -> Iterator[Problem]:
    busy = max_busy(loaded)
    for name, model in loaded.models.items():
        if found := model.profile.first_not_positive(model.max_batch, busy):
            allowed = f"a surface above 0 ms for batches of 1 to {model.max_batch} and 1 to {busy} instances busy"
            yield loaded.source.problem(("models", name, "profile", "surface"), found, allowed, "measure again, or give a table")
        yield from _table_reach(loaded, name, model)


def _paper_forms(loaded: Loaded) -> Iterator[Problem]:
    if loaded.planning is None or loaded.planning.throughput is ThroughputRule.CORES:
        return
    for name, model in loaded.models.items():
        if model.profile.surface is not None and model.profile.surface.form is SurfaceForm.PAPER:
            allowed, remedy = "contention or cores, unless planning.throughput is cores", "set `planning.throughput: cores`"
            yield loaded.source.problem(("models", name, "profile", "surface", "form"), "paper", allowed, remedy)


def _table_reach(loaded: Loaded, name: str, model: ModelSettings) -> Iterator[Problem]:
    table = model.profile.table
    if table is None:
        return
    bounds = {"max_batch": (model.max_batch, table.batches[-1]), "instances": (model.instances.max, table.instances[-1])}
    for key, (wanted, measured) in bounds.items():
        if wanted > measured:
            what = "a batch" if key == "max_batch" else "instances"
            remedy = f"measure further, or lower `{key}`"
            yield loaded.source.problem(
                ("models", name, key), f"{wanted}", f"{what} of at most {measured}, the largest in the table", remedy
            )


def _objectives(loaded: Loaded) -> Iterator[Problem]:
    for name, pipeline in loaded.pipelines.items():
        if all(stage in loaded.models for stage in pipeline.chain):
            yield from _objective(loaded, name, pipeline)


def _objective(loaded: Loaded, name: str, pipeline: PipelineSettings) -> Iterator[Problem]:
    times = [loaded.models[stage].profile.fastest_ms(loaded.models[stage].instances.max) for stage in pipeline.chain]
    margin = loaded.policy.slo_margin_fraction if loaded.policy is not None else 0.0
    least_ms = sum(times) / (1.0 - margin)
    if pipeline.slo_ms >= least_ms - 1e-9:
        return
    terms = " + ".join(f"{stage} {time:g}" for stage, time in zip(pipeline.chain, times, strict=True))
    total = f" = {sum(times):g}" if len(times) > 1 else ""
    kept = f", over {1.0 - margin:g} for policy.slo_margin_fraction = {least_ms:g} ms" if margin else ""
    allowed = f"at least the fastest service time, one request on one instance: {terms}{total} ms{kept}"
    yield loaded.source.problem(("pipelines", name, "slo_ms"), None, allowed, "raise slo_ms, or serve faster models")


def _slots(loaded: Loaded) -> Iterator[Problem]:
    taken = {str(name): "an adopted server" for name in loaded.section("servers")}
    for index, slot in enumerate(loaded.launch.slots if loaded.launch else []):
        if slot.name is None:
            continue
        if slot.name in taken:
            found = f"{slot.name}, the name of {taken[slot.name]} too"
            yield loaded.source.problem(("launch", "slots", index, "name"), found, "each name once", "rename one of the two")
        taken.setdefault(slot.name, "another slot")


def _repository(loaded: Loaded) -> Iterator[Problem]:
    """Launched servers need each scaled model's folder."""
    if loaded.launch is None:
        return
    folder, key = repository_of(loaded, loaded.launch), ("launch", "model_repository")
    if not folder.is_dir():
        remedy = f"mend the path: it starts at {loaded.path.parent.resolve()}"
        yield loaded.source.problem(key, f"{folder}, where no folder is", "a Triton model repository", remedy)
        return
    for name in loaded.section("models"):
        if not (folder / name).is_dir():
            found = f"no folder {name} in {folder}"
            remedy = f"put {name} there, or take it out of `models:`"
            yield loaded.source.problem(("models", name), found, "a model that launched servers can load", remedy, at_key=True)
            continue
        largest, wanted = _max_batch_size(folder / name / "config.pbtxt"), mapping(loaded.section("models")[name]).get("max_batch")
        if largest and isinstance(wanted, int) and wanted > largest:
            remedy = "lower it, or raise max_batch_size there if the model takes such batches"
            allowed = f"at most {largest}, the max_batch_size of {folder / name / 'config.pbtxt'}"
            yield loaded.source.problem(("models", name, "max_batch"), None, allowed, remedy)


def _max_batch_size(config: Path) -> int | None:
    """What a model's own configuration says; None where it says nothing, or is not there."""
    try:
        found = re.search(r"^\s*max_batch_size\s*:\s*(\d+)", config.read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return None
    return int(found[1]) if found is not None else None


def repository_of(loaded: Loaded, launch: LaunchSettings) -> Path:
    """The model repository of launched servers."""
    return loaded.resolve(launch.model_repository) if launch.model_repository is not None else shipped("model_repository")


def _loopback(loaded: Loaded) -> Iterator[Problem]:
    for section, key, default, danger in (
        ("envoy", "admin", _ENVOY.admin, "whoever reaches it can stop Envoy"),
        ("status", "address", _STATUS.address, "it shows what is served and how"),
    ):
        written = loaded.section(section)
        address = parse_address(str(written.get(key, default)))
        if address is not None and not address.is_loopback and written.get("allow_non_loopback") is not True:
            remedy = f"write 127.0.0.1:{address.port}, or set `{section}.allow_non_loopback: true` ({danger})"
            yield loaded.source.problem((section, key), None, "a loopback address", remedy)


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
            found = f"{text}, which clashes with {dotted(other)}{line}"
            yield loaded.source.problem(path, found, "each address once", "choose another port")
        taken.append((path, address))


def _written_addresses(loaded: Loaded) -> Iterator[tuple[KeyPath, str]]:
    """All addresses, defaults included; what a user wrote after what he did not, so that the clash is shown where it can be mended."""
    for name, server in loaded.section("servers").items():
        for key in ("grpc", "http", "metrics"):
            yield ("servers", name, key), str(mapping(server).get(key))
    own = [("envoy", key, str(getattr(_ENVOY, key))) for key in ("grpc_listen", "http_listen", "admin")]
    own.append(("status", "address", _STATUS.address))
    for section, key, default in sorted(own, key=lambda entry: entry[1] in loaded.section(entry[0])):
        yield (section, key), str(loaded.section(section).get(key, default))


def _windows(loaded: Loaded) -> Iterator[Problem]:
    """Pairs of durations of which the first must not exceed the second."""
    if loaded.policy is None:
        return
    for low, high in (
        ("rate_window_s", "burst_window_s"),
        ("rate_window_s", "stable_window_s"),
        ("tick_s", "max_stale_s"),
        ("retry_backoff_s", "retry_backoff_max_s"),
    ):
        least, most = getattr(loaded.policy, low), getattr(loaded.policy, high)
        if least > most:
            key = low if low in loaded.section("policy") else high
            remedy = f"lower {low} or raise {high}"
            yield loaded.source.problem(("policy", key), f"{low} {least:g} > {high} {most:g}", f"{low} ≤ {high}", remedy)
