"""`themis profile`: resolves the flags, measures with a progress bar, and prints a summary."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from themis_triton.adapters.triton.arrays import read_arrays
from themis_triton.commands.bench_place import BenchFlags, BenchPlace, inputs_of, models_of, opened, resolve, warmed_with
from themis_triton.commands.interruptible import run_interruptible
from themis_triton.commands.terminal import TerminalConsole
from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.profile.files import check_writable
from themis_triton.profile.grid import GridPlan, next_points
from themis_triton.profile.identity import model_config
from themis_triton.profile.inputs import InputOptions, made_up_shapes
from themis_triton.profile.measure import Accuracy, is_poor
from themis_triton.profile.run import ProfileOptions, Step, kept, profile_model
from themis_triton.report.profile_html import write_report
from themis_triton.report.profile_pictures import draw_profile
from themis_triton.report.style import require_matplotlib
from themis_triton.settings.profile import ProfileSettings

_DEFAULT_INSTANCES = 8
_STEADY_FRACTION = 0.1


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


def profile_command(flags: ProfileFlags, where: BenchFlags, *, as_json: bool) -> None:
    """Measure a model, or each model of a pipeline, and write the profile files."""
    place = resolve(where)
    models = models_of(flags.target, place)
    require_matplotlib()
    check_inputs(flags.inputs, models)
    check_writable(flags.out)
    console = TerminalConsole(stderr=True)
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
        TerminalConsole().file.write(json.dumps(content) + "\n")


def check_inputs(inputs: InputOptions, models: tuple[str, ...]) -> None:
    """SettingsError for a shape of an unmeasured model, or an unreadable file of arrays."""
    for key in inputs.shapes:
        if key.rpartition(".")[0] not in models:
            raise SettingsError(f"--shape: {key} is invalid: expected an input of {', '.join(models)}")
    if inputs.file is not None:
        read_arrays(inputs.file)


async def _profiled(model: str, out: Path, flags: ProfileFlags, place: BenchPlace, console: Console) -> ProfileSettings:
    files = place.files(model)
    if files is not None:
        _plan(
            model, flags, place, model_config(files, place.config_name).max_batch_size
        )  # Reports an invalid flag before a server is started.
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        teller = _Teller(model, console, bar, bar.add_task(f"{escape(model)}: starting", total=None, left=""))
        async with opened(model, warmed_with(place, model, flags.inputs)) as bench:
            plan = _plan(model, flags, place, bench.config.max_batch_size)
            console.print(cost_of(model, plan, flags.accuracy), markup=False, highlight=False, soft_wrap=True)
            inputs = inputs_of(model, flags.inputs, place, bench)
            for name, sizes in made_up_shapes(bench.spec, inputs, batched=bench.batched).items():
                console.print(made_up_warning(model, name, sizes), markup=False, highlight=False, soft_wrap=True)
            return await profile_model(bench, ProfileOptions(out, plan, flags.accuracy, inputs, files), teller)


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
        self.bar.update(self.task, description=f"{escape(self.model)}: points{self.last}", completed=step.done, total=total, left=left)
        if step.point is not None and not self.console.is_terminal:
            line = f"{self.model}: {step.done} of {total} points{self.last}; {left}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def time_left(seconds: float) -> str:
    """The remaining time as text: a minimum, because a curved surface needs more points."""
    minutes, rest = divmod(round(seconds), 60)
    return f"at least {minutes}:{rest:02d} left"


def _plan(model: str, flags: ProfileFlags, place: BenchPlace, max_batch_size: int) -> GridPlan:
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
