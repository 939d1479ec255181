"""`themis profile`: resolves the flags, measures with a progress bar, and prints a summary."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from themis_triton.adapters.launchers import bare_launchers, stop_all
from themis_triton.adapters.triton.arrays import read_arrays
from themis_triton.adapters.triton.model_config import CONFIG_FILE
from themis_triton.commands.interruptible import run_interruptible
from themis_triton.core.config import DeviceSlot, LaunchConfig, LocalLaunchConfig, ModelInputs, ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.core.fleet import Server
from themis_triton.daemon.lock import locked
from themis_triton.profile.bench import Bench, adopted_bench, adopted_server, launched_bench, live_models
from themis_triton.profile.files import check_writable
from themis_triton.profile.grid import GridPlan, next_points
from themis_triton.profile.identity import model_config
from themis_triton.profile.inputs import InputOptions, made_up_shapes, with_configured
from themis_triton.profile.measure import Accuracy, is_poor
from themis_triton.profile.run import ProfileOptions, Step, kept, profile_model, refuse_live
from themis_triton.report.profile_html import write_report
from themis_triton.report.profile_pictures import draw_profile
from themis_triton.report.style import require_matplotlib
from themis_triton.settings import load_settings
from themis_triton.settings.kinds import DEVICE_WORDS, is_device, parse_address
from themis_triton.settings.profile import ProfileSettings
from themis_triton.settings.shipped import shipped

_WATCH_S = 2.0
_STOP_S = 5.0
_DEFAULT_INSTANCES = 8
_STEADY_FRACTION = 0.1


@dataclass(frozen=True, slots=True)
class BenchFlags:
    """Where to measure: on a slot of the settings (or the device given), or on a running server."""

    config: Path | None = None
    repository: Path | None = None
    slot: str | None = None
    device: str = "cpu:0"
    server: str | None = None
    key: str | None = None
    state_directory: Path = Path(".themis")
    allow_live: bool = False


@dataclass(frozen=True, slots=True)
class ProfileFlags:
    """The options of the command line. None: the default of the settings or the model."""

    target: str
    out: Path
    max_batch: int | None
    max_instances: int | None
    tolerance: float
    max_points: int
    accuracy: Accuracy
    inputs: InputOptions


@dataclass(frozen=True, slots=True)
class Place:
    """The flags, resolved against the settings."""

    flags: BenchFlags
    config: ThemisConfig | None
    launch: LaunchConfig
    slot: DeviceSlot
    state_directory: Path

    def files(self, model: str) -> Path | None:
        """The model's folder, or None if it is not readable on this machine."""
        if self.flags.server is None:
            return self.launch.model_repository / model
        known = {server.name: server.model_repository for server in (self.config.servers if self.config is not None else ())}
        repository = self.flags.repository or known.get(self.flags.server)
        return repository / model if repository is not None else None


def profile_command(flags: ProfileFlags, where: BenchFlags, *, as_json: bool) -> None:
    """Measure a model, or each model of a pipeline, and write the profile files."""
    place = resolve(where)
    models = models_of(flags.target, place)
    require_matplotlib()
    check_inputs(flags.inputs, models)
    check_writable(flags.out)
    console = Console(stderr=True)
    profiles = {}
    for model in models:
        out = flags.out / f"{model}.yaml"
        try:
            profiles[out] = run_interruptible(_profiled(model, out, flags, place, console))
        except KeyboardInterrupt:
            console.print(f"interrupted; {kept(out)}", markup=False, highlight=False, soft_wrap=True)
            raise
    for out, profile in profiles.items():
        _say(console, out, profile, flags.accuracy)
        draw_profile(profile, out.stem, out.with_suffix(".png"))
    write_report({out.stem: profile for out, profile in profiles.items()}, flags.out / f"{flags.target}.html")
    if as_json:
        content = {str(out): profile.model_dump(mode="json", exclude_none=True) for out, profile in profiles.items()}
        Console().file.write(json.dumps(content) + "\n")


def check_inputs(inputs: InputOptions, models: tuple[str, ...]) -> None:
    """SettingsError for a shape of an unmeasured model, or an unreadable file of arrays."""
    for key in inputs.shapes:
        if key.rpartition(".")[0] not in models:
            raise SettingsError(f"--shape: {key} is invalid: expected an input of {', '.join(models)}")
    if inputs.file is not None:
        read_arrays(inputs.file)


def resolve(flags: BenchFlags) -> Place:
    """The place to measure, from the flags and the settings. SettingsError names the invalid flag."""
    config = load_settings(flags.config, allow_missing_profiles=True) if flags.config is not None else None
    if flags.slot is not None and (config is None or config.launch is None):
        raise SettingsError(
            f"--slot: {flags.slot} is unknown: no settings with a `launch` section are given. Fix: give -c FILE, or --device instead"
        )
    launch: LaunchConfig
    if config is None or config.launch is None:
        launch = LocalLaunchConfig((DeviceSlot("profile", flags.device),), flags.repository or shipped("model_repository"))
    else:
        launch = config.launch if flags.repository is None else replace(config.launch, model_repository=flags.repository)
    if not is_device(flags.device):
        raise SettingsError(f"--device: {flags.device} is invalid: expected {DEVICE_WORDS}")
    slots = {slot.name: slot for slot in launch.slots}
    if flags.slot is not None and flags.slot not in slots:
        raise SettingsError(f"--slot: {flags.slot} is invalid: expected a slot of the settings: {', '.join(slots)}")
    slot = slots[flags.slot] if flags.slot is not None else launch.slots[-1]
    state = config.state_directory if config is not None else flags.state_directory.resolve()
    return Place(flags, config, replace(launch, model_repository=launch.model_repository.resolve()), slot, state)


def models_of(target: str, place: Place) -> tuple[str, ...]:
    """The models of a pipeline, or the model itself. SettingsError if a readable repository has no such model."""
    pipelines = {pipeline.name: pipeline.stages for pipeline in (place.config.pipelines if place.config is not None else ())}
    models = pipelines.get(target, (target,))
    for model in models:
        folder = place.files(model)
        if folder is not None and not (folder / CONFIG_FILE).is_file():
            there = ", ".join(sorted(path.parent.name for path in folder.parent.glob(f"*/{CONFIG_FILE}"))) or "none"
            pipeline = f"pipelines: {', '.join(pipelines) or 'none'}" + ("" if place.config is not None else ", without -c SETTINGS")
            raise SettingsError(
                f"{model}: {folder.parent} has no such model (models: {there}; {pipeline}). Fix: correct the name or --repository"
            )
    return models


@asynccontextmanager
async def opened(model: str, place: Place) -> AsyncIterator[Bench]:
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
            async with launched_bench(model, place.launch, place.slot, place.state_directory) as bench:
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
        return adopted_server(named.grpc_address, named.device, named.model_control_key)
    address = parse_address(flags.server or "")
    if address is None:
        raise SettingsError(
            f"--server: {flags.server} is invalid: expected HOST:PORT of Triton's gRPC, "
            f"or a server of the settings ({', '.join(configured) or 'none'})"
        )
    return adopted_server(address, flags.device, flags.key)


async def _refuse_busy_device(place: Place) -> None:
    """ServerError if a server of the settings has traffic on the slot's device: it would contend with the measurement."""
    for server in place.config.servers if place.config is not None else ():
        if server.device == place.slot.device:
            refuse_live(await live_models(server.grpc_address, _WATCH_S), f"server {server.name} on {server.device}")
    launched = [server for launcher in bare_launchers(place.state_directory) for server in await launcher.discover()]
    names = [f"server {server.name} of the daemon" for server in launched if server.device == place.slot.device]
    refuse_live(names, f"device {place.slot.device}")


async def _profiled(model: str, out: Path, flags: ProfileFlags, place: Place, console: Console) -> ProfileSettings:
    files = place.files(model)
    if files is not None:
        _plan(model, flags, place, model_config(files).max_batch_size)  # Reports an invalid flag before a server is started.
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        teller = _Teller(model, console, bar, bar.add_task(f"{model}: starting", total=None, left=""))
        async with opened(model, warmed_with(place, model, flags.inputs)) as bench:
            plan = _plan(model, flags, place, bench.config.max_batch_size)
            console.print(cost_of(model, plan, flags.accuracy), markup=False, highlight=False, soft_wrap=True)
            inputs = inputs_of(model, flags.inputs, place, bench)
            for name, sizes in made_up_shapes(bench.spec, inputs, batched=bench.batched).items():
                console.print(made_up_warning(model, name, sizes), markup=False, highlight=False, soft_wrap=True)
            return await profile_model(bench, ProfileOptions(out, plan, flags.accuracy, inputs, files), teller)


def inputs_of(model: str, inputs: InputOptions, place: Place, bench: Bench) -> InputOptions:
    """The flags' inputs, completed by the settings and the model's own `model_warmup`."""
    configured = place.config.models[model].inputs if place.config is not None and model in place.config.models else ModelInputs()
    return with_configured(inputs, model, configured, bench.config)


def warmed_with(place: Place, model: str, inputs: InputOptions) -> Place:
    """The place with a server that is warmed up with the flags' inputs; other inputs come from the settings."""
    configured = place.launch.inputs.get(model, ModelInputs())
    own = {key.partition(".")[2]: sizes for key, sizes in inputs.shapes.items() if key.partition(".")[0] == model}
    if inputs.file is not None:
        configured = ModelInputs(file=inputs.file)
    elif own:
        configured = ModelInputs({**configured.shapes, **own})
    return replace(place, launch=replace(place.launch, inputs={**place.launch.inputs, model: configured}))


def cost_of(model: str, plan: GridPlan, accuracy: Accuracy) -> str:
    """One line with the number of points and the maximum duration of a profile."""
    corners = len(next_points(plan, {}))
    minutes = max(1, round(plan.max_points * accuracy.max_seconds / 60.0))
    return (
        f"{model}: measuring {min(corners, plan.max_points)} to {plan.max_points} points, at most {accuracy.max_seconds:g} s each: "
        f"up to {minutes} min"
    )


def made_up_warning(model: str, name: str, sizes: list[int]) -> str:
    """A warning about an input whose free dimensions have default sizes."""
    return (
        f"warning: {model}: input {name} has free dimensions and is measured with the made-up shape {sizes}. "
        f"Fix: set models.{model}.inputs in the settings, or --shape {model}.{name}=…"
    )


@dataclass(slots=True)
class _Teller:
    """Shows progress: a bar on a terminal, else one log line per point."""

    model: str
    console: Console
    bar: Progress
    task: TaskID
    started_s: float | None = None
    measured: int = 0
    last: str = ""

    def __call__(self, step: Step) -> None:
        """Show one step. The time left is the mean over all points, because Rich's estimate ignores points older than 30 s."""
        now_s = asyncio.get_running_loop().time()
        self.started_s = now_s if self.started_s is None else self.started_s
        if step.point is not None:
            self.measured += 1
            self.last = f", last l({step.point.batch}, {step.point.instances}) = {step.point.service_ms:.1f} ms"
        left = time_left((now_s - self.started_s) / self.measured * step.left) if self.measured else ""
        total = step.done + step.left
        self.bar.update(self.task, description=f"{self.model}: points{self.last}", completed=step.done, total=total, left=left)
        if step.point is not None and not self.console.is_terminal:
            line = f"{self.model}: {step.done} of {total} points{self.last}; {left}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def time_left(seconds: float) -> str:
    """The remaining time as text: a minimum, because a curved surface needs more points."""
    minutes, rest = divmod(round(seconds), 60)
    return f"at least {minutes}:{rest:02d} left"


def _plan(model: str, flags: ProfileFlags, place: Place, max_batch_size: int) -> GridPlan:
    bounds = place.config.models.get(model) if place.config is not None else None
    largest = max(1, max_batch_size)
    max_batch = flags.max_batch or (bounds.max_batch if bounds is not None else largest)
    if max_batch > largest:
        raise SettingsError(f"--max-batch: {max_batch} is invalid: expected at most {largest}, the max_batch_size of model {model}")
    instances = flags.max_instances or (busiest(place.config, place.slot.device) if place.config is not None else 0) or _DEFAULT_INSTANCES
    return GridPlan(max_batch, instances, flags.tolerance, flags.max_points)


def busiest(config: ThemisConfig, device: str) -> int:
    """The maximum number of busy instances of all models on a device: the range in which plans use a surface."""
    slots = config.launch.slots if config.launch is not None else ()
    devices = [slot.device for slot in slots] + [server.device for server in config.servers]
    return max(1, devices.count(device)) * sum(model.max_instances for model in config.models.values())


def _say(console: Console, out: Path, profile: ProfileSettings, accuracy: Accuracy) -> None:
    measured = profile.measured
    if measured is None:
        raise ValueError("a finished profile has measurements")
    kept = next((fit for fit in measured.fits if fit.kept), None)
    form = (
        f"{kept.form} fits within {100 * kept.cross_error:.1f} %"
        if kept is not None
        else "neither form fits; between points the table is interpolated"
    )
    lines = [f"{out}: {len(measured.points)} points, {form}"]
    if loose := [f"l({point.batch}, {point.instances})" for point in measured.points if accuracy.misses(point)]:
        lines.append(f"less precise than ±{accuracy.precision:.1%}: {', '.join(loose)}. Fix: raise --max-seconds")
    if poor := [f"l({point.batch}, {point.instances})" for point in measured.points if is_poor(point)]:
        lines.append(f"the table contains the upper end of the interval at {', '.join(poor)}, because the interval is wide")
    if measured.drift_ratio is not None and abs(measured.drift_ratio - 1.0) > _STEADY_FRACTION:
        lines.append(
            f"warning: the first point took {measured.drift_ratio:.2f} times as long at the end as at the start. "
            "Fix: stop other work on the machine, and measure again"
        )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
