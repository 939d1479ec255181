"""What a change of a model's instances costs on an adopted server, by the configuration that the server reports. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from themis_triton.adapters.findings import Finding, missing, warning
from themis_triton.adapters.triton.config_files import config_file, model_folder
from themis_triton.adapters.triton.groups import ON_GPU, Devices, Group, active_groups, devices_of, is_joint, numbered_devices
from themis_triton.adapters.triton.model_base import differing_fields
from themis_triton.adapters.triton.model_config import Config, parse_config, read_config_text
from themis_triton.core.config import AdoptedServer, ModelConfig, ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.core.fleet import Phase, Server

_DEVICE_BLOCKING = frozenset({"tensorrt", "tensorrt_plan"})
"""Backends and platforms whose instances on one device share a thread; there every change of counts makes all instances anew."""


def check_changes(adopted: AdoptedServer, model: ModelConfig, served: Config) -> list[Finding]:
    """Findings about a model's instance groups on a server, and about changes that are known to be dear and were not probed."""
    groups, what = active_groups(served), f"servers.{adopted.name}: model {model.name}"
    if served.HasField("ensemble_scheduling"):
        members = ", ".join(dict.fromkeys(step.model_name for step in served.ensemble_scheduling.step))
        remedy = f"remove it from `models:`, define its members there, and write `calls: {{{model.name}: [{members}]}}`"
        return [missing(what, "it is an ensemble, which has no instances of its own", remedy)]
    if served.HasField("sequence_batching") and (finding := _unreadable(what, adopted, model)) is not None:
        return [finding]
    devices = numbered_devices(_server_of(adopted))
    checks = (_joint, _elsewhere, _unbound) if devices else (_several,)
    found = [finding for check in checks for finding in check(what, adopted, model, groups, devices)]
    return [*found, *_unproven(what, model, served), *_by_hand(what, adopted, model, served)]


def check_probed(config: ThemisConfig) -> list[Finding]:
    """A warning for each model that is changed by probed operations only, and has none for a change that plans may contain."""
    findings = []
    for model in config.models.values():
        absent = [operation for operation in config.operations_of(model) if operation not in model.profile.operations]
        if model.require_probed_operations and absent:
            found = f"{', '.join(absent)} {'was' if len(absent) == 1 else 'were'} not probed, and will not be used"
            key = f"models.{model.name}.require_probed_operations"
            findings.append(warning(key, found, f"run `themis probe {model.name}`, or set it to false"))
    return findings


def _server_of(adopted: AdoptedServer) -> Server:
    addresses = (adopted.grpc_address, adopted.http_address, adopted.metrics_address)
    return Server(adopted.name, adopted.device, *addresses, Phase.SERVING, launched=False, reach=adopted.reach)


def _unreadable(what: str, adopted: AdoptedServer, model: ModelConfig) -> Finding | None:
    """A warning where each change of a model with sequences is refused; see `sequences.check_in_place`."""
    folder = model_folder(adopted, model.name)
    file = config_file(folder, adopted.model_config_name) if folder is not None else None
    if file is not None and file.is_file():
        return None
    found = "it keeps state between calls, and its own file cannot be read here: its count stays as it is, because a reload cuts sequences"
    remedy = f"write {file}" if file is not None else f"name servers.{adopted.name}.model_repository, if it can be read here"
    return warning(what, found, remedy)


def _by_hand(what: str, adopted: AdoptedServer, model: ModelConfig, served: Config) -> Iterator[Finding]:
    """A warning where the server runs the model with other values than those of its file, which launched servers have."""
    folder = model_folder(adopted, model.name)
    own = read_config_text(folder.parent, model.name, adopted.model_config_name) if folder is not None else None
    try:
        fields = differing_fields(parse_config(*own), served) if own is not None else []
    except SettingsError as error:
        yield warning(what, f"its own file cannot be read ({error})", "correct the file")
        return
    # On several devices Themis itself changes the groups.
    fields = [field for field in fields if field != "instance_group" or not adopted.reach]
    if fields:
        found = (
            f"the server runs it with another {_listed(fields)} than its config.pbtxt: changes keep that, launched servers have the file's"
        )
        yield warning(what, found, "write the server's values into its config.pbtxt, or load it again without a configuration")


def _joint(what: str, _: AdoptedServer, model: ModelConfig, groups: list[Group], devices: Devices) -> Iterator[Finding]:
    if not is_joint(groups, devices):
        return
    instances = sum(max(1, group.count) * len(devices_of(group, devices)) for group in groups)
    memory = instances * model.profile.instance_memory_bytes
    price = f", with {memory / 2**20:.0f} MiB more memory for that time" if memory else ""
    found = f"an instance group lists several GPUs, so the first change makes all {instances} instances anew beside the old ones{price}"
    remedy = "write one instance_group for each GPU in its config.pbtxt"
    if "rebatch" not in model.profile.operations:
        remedy += f", or run `themis probe {model.name}`: its operation rebatch shows what a change of all instances costs"
    yield warning(what, found, remedy)


def _elsewhere(what: str, adopted: AdoptedServer, _: ModelConfig, groups: list[Group], devices: Devices) -> Iterator[Finding]:
    """Instances on GPUs that are not the server's."""
    gpus = sorted({gpu for group in groups if None in devices_of(group, devices) for gpu in group.gpus if gpu not in devices.values()})
    if gpus:
        key = f"servers.{adopted.name}.devices"
        found = f"it has instances on Triton's GPU {_listed(gpus)}, which {key} does not name: Themis neither counts nor changes them"
        yield warning(what, found, f"add the GPU to {key}, or remove it from the model's instance_group")


def _unbound(what: str, adopted: AdoptedServer, _: ModelConfig, groups: list[Group], __: Devices) -> Iterator[Finding]:
    """Instances that cannot be bound to a further GPU."""
    if any(group.kind == ModelInstanceGroup.KIND_MODEL for group in groups) and adopted.device.startswith("gpu:"):
        unbound = f"its instances are of KIND_MODEL, which cannot be bound to {_listed(adopted.reach)}"
        remedy = "write KIND_GPU in its config.pbtxt, or serve it on servers with one device"
        yield warning(what, f"{unbound}: it is scaled on {adopted.device} only", remedy)


def _several(what: str, adopted: AdoptedServer, _: ModelConfig, groups: list[Group], __: Devices) -> Iterator[Finding]:
    """Instances on several GPUs, or on a GPU, of a server whose settings name one other device."""
    gpus = sorted({gpu for group in groups if group.kind in ON_GPU for gpu in group.gpus})
    if len(gpus) > 1 or (gpus and not adopted.device.startswith("gpu:")):
        key = f"servers.{adopted.name}.device"
        found = f"it has instances on Triton's GPU {_listed(gpus)}, and {key} is {adopted.device}: plans know nothing of the other devices"
        yield warning(what, found, f"name all GPUs that the server uses in servers.{adopted.name}.devices")


def _unproven(what: str, model: ModelConfig, served: Config) -> Iterator[Finding]:
    if "add_one" in model.profile.operations:
        return
    remedy = f"run `themis probe {model.name}`: an operation that loses requests is then never used"
    if backends := _DEVICE_BLOCKING & {served.backend, served.platform}:
        found = f"its backend {min(backends)} makes all instances anew at each change of their count, with double memory for that time"
        yield warning(what, found, remedy)
    if any(group.kind == ModelInstanceGroup.KIND_MODEL for group in active_groups(served)):
        yield warning(what, "its instances are of KIND_MODEL, which choose their devices themselves: a change was not probed", remedy)


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))
