"""Where `themis profile` and `themis probe` measure: a scratch server on a device without live traffic, or a running server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from themis_triton.adapters.launchers import discover_all, stop_all
from themis_triton.adapters.triton.config_files import CONFIG_FILE, config_file, model_folder
from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.commands.tls_flags import TlsFlags
from themis_triton.core.config import AdoptedServer, DeviceSlot, LaunchConfig, LocalLaunchConfig, ModelInputs, ThemisConfig
from themis_triton.core.errors import ServerError, SettingsError
from themis_triton.core.fleet import Server
from themis_triton.daemon.lock import locked
from themis_triton.profile.bench import Bench, adopted_bench, adopted_server, launched_bench, live_models
from themis_triton.profile.inputs import InputOptions, with_configured
from themis_triton.profile.run import refuse_live
from themis_triton.settings import load_settings
from themis_triton.settings.kinds import DEVICE_WORDS, is_device, parse_address
from themis_triton.settings.shipped import shipped

_WATCH_S = 2.0
_STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class BenchFlags:
    """Where to measure: on a slot of the settings (or the device given), or on a running server.

    `reach`: a further device that the scratch server may use; None: those of the settings. `config_name`: `--model-config-name` of the
    servers; None: that of the settings. `tls`: of the address that `server` is.
    """

    config: Path | None = None
    repository: Path | None = None
    slot: str | None = None
    device: str = "cpu:0"
    reach: str | None = None
    server: str | None = None
    key: str | None = None
    state_directory: Path = Path(".themis")
    allow_live: bool = False
    config_name: str | None = None
    tls: TlsFlags = field(default_factory=TlsFlags)


@dataclass(frozen=True, slots=True)
class BenchPlace:
    """The flags, resolved against the settings."""

    flags: BenchFlags
    config: ThemisConfig | None
    launch: LaunchConfig
    slot: DeviceSlot
    state_directory: Path

    def _folders(self, model: str) -> list[Path]:
        return [repository / model for repository in (self.launch.model_repository, *self.launch.further_repositories)]

    def files(self, model: str) -> Path | None:
        """The model's folder, or None if it is not readable on this machine."""
        if self.flags.server is None:
            return next((each for each in self._folders(model) if each.is_dir()), self.launch.model_repository / model)
        if self.flags.repository is not None:
            return self.flags.repository / model
        known = {server.name: server for server in (self.config.servers if self.config is not None else ())}
        return model_folder(known[self.flags.server], model) if self.flags.server in known else None

    @property
    def config_name(self) -> str | None:
        """The `--model-config-name` of the servers that read the repository."""
        if self.flags.server is None or self.flags.config_name is not None:
            return self.launch.model_config_name
        known = {server.name: server.model_config_name for server in (self.config.servers if self.config is not None else ())}
        return known.get(self.flags.server)


def resolve(flags: BenchFlags) -> BenchPlace:
    """The place to measure, from the flags and the settings. SettingsError names the invalid flag."""
    config = load_settings(flags.config, allow_missing_profiles=True) if flags.config is not None else None
    if flags.slot is not None and (config is None or config.launch is None):
        raise SettingsError(
            f"--slot: {flags.slot} is unknown: no settings with a `launch` section are given. Fix: give -c FILE, or --device instead"
        )
    launch: LaunchConfig
    if config is None or config.launch is None:
        launch = LocalLaunchConfig((DeviceSlot("profile", flags.device),), flags.repository or shipped("model_repository"))
    elif not config.launch.runs_here:
        fault = "a profile cannot be measured with launched servers where `launch` starts them on other machines"
        raise SettingsError(f"-c: {fault}. Fix: give --server NAME or HOST:PORT of a running server, or --device without -c")
    else:
        launch = (
            config.launch
            if flags.repository is None
            else replace(config.launch, model_repository=flags.repository, further_repositories=())
        )
    for flag, device in (("--device", flags.device), ("--reach", flags.reach)):
        if device is not None and not is_device(device):
            raise SettingsError(f"{flag}: {device} is invalid: expected {DEVICE_WORDS}")
    slots = {slot.name: slot for slot in launch.slots}
    if flags.slot is not None and flags.slot not in slots:
        raise SettingsError(f"--slot: {flags.slot} is invalid: expected a slot of the settings: {', '.join(slots)}")
    slot = slots[flags.slot] if flags.slot is not None else launch.slots[-1]
    state = config.state_directory if config is not None else flags.state_directory.resolve()
    if flags.reach is not None and (flags.reach == slot.device or _kind(flags.reach) != _kind(slot.device)):
        raise SettingsError(f"--reach: {flags.reach} is invalid: expected another {_kind(slot.device)} device than {slot.device}")
    launch = replace(launch, model_repository=launch.model_repository.resolve(), reach=_reach(flags, config, launch))
    if flags.config_name is not None:
        launch = replace(launch, model_config_name=flags.config_name)
    return BenchPlace(flags, config, launch, slot, state)


def _reach(flags: BenchFlags, config: ThemisConfig | None, launch: LaunchConfig) -> tuple[str, ...]:
    """The devices that a scratch server may use: as a launched one, or all of the settings where only adopted servers have several."""
    if flags.reach is not None:
        return (flags.reach,)
    if launch.reach or config is None or not any(server.reach for server in config.servers):
        return launch.reach
    return config.devices


def _kind(device: str) -> str:
    return device.partition(":")[0]


def models_of(target: str, place: BenchPlace) -> tuple[str, ...]:
    """The models of a pipeline, or the model itself. SettingsError if a readable repository has no such model."""
    pipelines = {pipeline.name: pipeline.stages for pipeline in (place.config.pipelines if place.config is not None else ())}
    models = pipelines.get(target, (target,))
    for model in models:
        folder = place.files(model)
        if folder is not None and not config_file(folder, place.config_name).is_file():
            there = ", ".join(sorted(path.parent.name for path in folder.parent.glob(f"*/{CONFIG_FILE}"))) or "none"
            pipeline = f"pipelines: {', '.join(pipelines) or 'none'}" + ("" if place.config is not None else ", without -c SETTINGS")
            raise SettingsError(
                f"{model}: {folder.parent} has no such model (models: {there}; {pipeline}). Fix: correct the name or --repository"
            )
    return models


@asynccontextmanager
async def opened(model: str, place: BenchPlace) -> AsyncIterator[Bench]:
    """A bench for the model, after a check for live traffic; one bench at a time per state directory.

    Raises:
        EnvironmentCheckError: another measurement uses the state directory.
        ServerError: there is live traffic and no `--allow-live`, or the bench cannot be opened.
    """
    flags, config = place.flags, place.config
    if flags.server is None:
        if not flags.allow_live:
            await _refuse_busy_device(place)
        with locked(place.state_directory / "profile"):
            # Servers left by a killed measurement would contend with this one.
            await stop_all(place.state_directory / "profile", _STOP_S)
            folder = place.files(model)
            launch = place.launch if folder is None else replace(place.launch, model_repository=folder.parent)
            async with launched_bench(model, launch, place.slot, place.state_directory) as bench:
                yield bench
        return
    adopted = _adopted(flags, config)
    if not flags.allow_live:
        refuse_live(await live_models(adopted.grpc_address, _WATCH_S), f"server {flags.server}")
    async with adopted_bench(model, adopted, place.state_directory) as bench:
        yield bench


def _adopted(flags: BenchFlags, config: ThemisConfig | None) -> Server:
    """The server named by `--server`: a server of the settings, or an address. SettingsError if it is neither."""
    configured = {server.name: server for server in (config.servers if config is not None else ())}
    named = configured.get(flags.server or "")
    if named is not None:
        return adopted_server(named.grpc_address, named.device, named.model_control_key, flags.config_name or named.model_config_name)
    address = parse_address(flags.server or "")
    if address is None:
        raise SettingsError(
            f"--server: {flags.server} is invalid: expected HOST:PORT of Triton's gRPC, "
            f"or a server of the settings ({', '.join(configured) or 'none'})"
        )
    return adopted_server(flags.tls.applied(address), flags.device, flags.key, flags.config_name)


async def _refuse_busy_device(place: BenchPlace) -> None:
    """ServerError if a server has traffic on the slot's device: it would contend with the measurement."""
    for where, models in await _traffic_on(place, place.slot.device):
        refuse_live(models, where)


async def quiet_device(place: BenchPlace) -> str | None:
    """The first further device of a scratch server on which no server has traffic; None where there is none.

    With `--allow-live` the first one.
    """
    for device in place.launch.reach_from(place.slot.device):
        if place.flags.allow_live or not any(models for _, models in await _traffic_on(place, device)):
            return device
    return None


async def _traffic_on(place: BenchPlace, device: str) -> list[tuple[str, list[str]]]:
    """The servers that run on a device, in words, each with its models that have traffic, or with its own name if Themis launched it."""
    adopted = place.config.servers if place.config is not None else ()
    models = tuple(place.config.models) if place.config is not None else ()
    launched = await discover_all(place.state_directory)
    names = [f"server {server.name} of the daemon" for server in await _running_on(device, launched, models)]
    traffic = [(f"device {device}", names)]
    by_address = {server.grpc_address: server.name for server in adopted}
    for server in await _running_on(device, map(_server_of, adopted), models):
        live = await live_models(server.grpc_address, _WATCH_S)
        traffic.append((f"server {by_address[server.grpc_address]} on {device}", live))
    return traffic


async def _running_on(device: str, servers: Iterable[Server], models: tuple[str, ...]) -> list[Server]:
    """The servers with instances on a device. One that may use several, but does not answer, counts as running on all of them."""
    control = TritonModelControl()
    running = []
    try:
        for server in servers:
            if device not in server.devices:
                continue
            try:
                states = await control.read_models(server, models) if server.reach else {}
            except ServerError:
                running.append(server)
            else:
                running += [server] if replace(server, models=states).runs_on(device) else []
    finally:
        await control.close()
    return running


def _server_of(adopted: AdoptedServer) -> Server:
    return replace(adopted_server(adopted.grpc_address, adopted.device, adopted.model_control_key), reach=adopted.reach)


def inputs_of(model: str, inputs: InputOptions, place: BenchPlace, bench: Bench) -> InputOptions:
    """The flags' inputs, completed by the settings and the model's own `model_warmup`."""
    configured = place.config.models[model].inputs if place.config is not None and model in place.config.models else ModelInputs()
    return with_configured(inputs, model, configured, bench.config, place.files(model))


def warmed_with(place: BenchPlace, model: str, inputs: InputOptions) -> BenchPlace:
    """The place with a server that is warmed up with the flags' inputs; other inputs come from the settings."""
    configured = place.launch.inputs.get(model, ModelInputs())
    own = {key.partition(".")[2]: sizes for key, sizes in inputs.shapes.items() if key.partition(".")[0] == model}
    if inputs.file is not None:
        configured = ModelInputs(file=inputs.file)
    elif own:
        configured = ModelInputs({**configured.shapes, **own})
    return replace(place, launch=replace(place.launch, inputs={**place.launch.inputs, model: configured}))
