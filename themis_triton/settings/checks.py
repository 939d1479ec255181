"""Checks across keys, collected: the names of models must exist, files must be there, and each subject has its module."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from themis_triton.core.config import Placement, StandbyKind
from themis_triton.settings.addresses_check import check_addresses
from themis_triton.settings.calls_check import check_calls
from themis_triton.settings.devices_check import check_devices
from themis_triton.settings.graph import expand, is_driven_inside, parse_fault
from themis_triton.settings.loading import Loaded, mapping
from themis_triton.settings.model_files import is_folder_name, launch_repositories, max_batch_size, model_file, unusable_inputs
from themis_triton.settings.node_types_check import check_node_types
from themis_triton.settings.overload_check import check_overload
from themis_triton.settings.pods_check import check_pods
from themis_triton.settings.problem import Problem
from themis_triton.settings.profiles_check import check_profiles
from themis_triton.settings.secret_files import check_secret_files
from themis_triton.settings.separate_check import check_separate
from themis_triton.settings.source import KeyPath


def check(loaded: Loaded) -> Iterator[Problem]:
    """Every error across keys, as far as the keys themselves are valid."""
    yield from _something_to_scale(loaded)
    yield from _stages(loaded)
    yield from check_calls(loaded)
    yield from check_profiles(loaded)
    yield from _input_files(loaded)
    yield from check_secret_files(loaded)
    yield from check_overload(loaded)
    yield from check_separate(loaded)
    yield from check_devices(loaded)
    yield from _repository(loaded)
    yield from check_pods(loaded)
    yield from check_node_types(loaded)
    yield from _standby(loaded)
    yield from check_addresses(loaded)
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
