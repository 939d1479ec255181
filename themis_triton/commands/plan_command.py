"""`themis plan`: the plans of a settings file for given rates, as a table, JSON and a plot."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from themis_triton.commands.plan_live import live_demand, live_fleet
from themis_triton.commands.plan_migrations import LIVE, Fleet, parse_fleet, path_row, show_paths, stage_rows
from themis_triton.commands.status_command import fetch_status
from themis_triton.commands.terminal import TerminalConsole
from themis_triton.commands.warm_command import planning_groups, prepare_kernels
from themis_triton.core.config import PipelineConfig, PlanningConfig, ThemisConfig, ThroughputRule
from themis_triton.core.errors import SettingsError
from themis_triton.core.overrides import overridden
from themis_triton.core.sharing import sharing_notes
from themis_triton.daemon.learning import with_learnt_times
from themis_triton.planning import RatePlan, WhatIf, other_calls, plan_rates, selected_pipeline
from themis_triton.planning_measured import OtherCalls, measured_others, others_at_places, with_measured_calls
from themis_triton.report.plans import PlanSeries, draw_plans
from themis_triton.settings import load_settings

MAX_RATES = 10_000
MAX_RATE_RPS = 1e6
MAX_DEVICES = 1_000_000
RATE_WORDS = f"a rate of 0 to {MAX_RATE_RPS:,.0f} requests/s, or from:to:step with at most {MAX_RATES:,} rates, such as 20:400:20"


@dataclass(frozen=True, slots=True)
class PlanFlags:
    """The command line as typed."""

    config: Path
    rate: str | None
    what_if: WhatIf
    plot: Path | None = None
    as_json: bool = False
    start: str | None = None


def plan_command(flags: PlanFlags) -> tuple[RatePlan, ...]:
    """Print the plans: a table, and with `as_json` one JSON list as the last line of standard output. SettingsError for bad flags."""
    if flags.rate is None and flags.start != LIVE:
        raise SettingsError(f"--rate: missing: expected {RATE_WORDS}. Fix: add it, or --from live for the demand of now")
    rates = parse_rates(flags.rate) if flags.rate is not None else ()
    _check(flags.what_if)
    start = _started(flags, load_settings(flags.config))
    rates = rates or (start.demand_rps,)
    config, pipeline, what_if, fleet = start.config, start.pipeline, start.what_if, start.fleet
    prepare_kernels(planning_groups(config))
    answers = plan_rates(config, rates, what_if)
    console = TerminalConsole()
    console.print(plan_table(answers, pipeline, config))
    if config.is_stateful(pipeline):
        console.print(f"{pipeline.name} has one server, because a stage keeps state between the calls of a sequence", soft_wrap=True)
    if not config.knows(pipeline):
        guessed = ", ".join(config.unknown(pipeline))
        fix = "run `themis profile`, or use `--from live` once a sidecar has learnt its service times"
        console.print(f"{guessed} has no profile: these plans are of a guess. Fix: {fix}", soft_wrap=True, markup=False)
    for line in _shared_lines(start):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    paths = show_paths(console, config, rates, what_if, fleet) if fleet is not None else None
    if flags.plot is not None:
        draw_plans(series_of(answers), pipeline.slo_ms, f"Plans for {pipeline.name}, policy {config.policy.name.value}", flags.plot)
        console.print(f"plot: {flags.plot}", soft_wrap=True, markup=False, highlight=False)
    if flags.as_json:
        # Written to the stream, because Rich would wrap or colour the line.
        rows = [asdict(answer) | {"stages": stage_rows(answer.stages)} for answer in answers]
        order: dict[str, object] = {"order": pipeline.order, "bound": pipeline.bound} if pipeline.order else {}
        extras = [order | {"path": path_row(path)} for path in paths] if paths is not None else [order for _ in rows]
        console.file.write(json.dumps([row | extra for row, extra in zip(rows, extras, strict=True)]) + "\n")
    return answers


@dataclass(frozen=True, slots=True)
class _Start:
    """What plans start from. `others`: what other pipelines and direct calls bring to each stage. `demand_rps`: of the running sidecar."""

    config: ThemisConfig
    pipeline: PipelineConfig
    what_if: WhatIf
    others: OtherCalls
    fleet: Fleet | None = None
    demand_rps: float = 0.0


def _started(flags: PlanFlags, config: ThemisConfig) -> _Start:
    """With `--from live` as the sidecar has measured it; the rates of `--also` replace the measured ones."""
    pipeline, what_if = selected_pipeline(config, flags.what_if), flags.what_if
    if flags.start != LIVE:
        fleet = parse_fleet(flags.start, pipeline, config) if flags.start is not None else None
        return _Start(config, pipeline, what_if, other_calls(config, pipeline, what_if), fleet)
    status = fetch_status(flags.config)
    learnt = tuple(each.knowledge for each in status.pipelines if each.knowledge is not None)
    config = overridden(with_measured_calls(with_learnt_times(config, learnt), status), status.overrides)
    pipeline = selected_pipeline(config, what_if)
    measured, named = measured_others(status, pipeline), other_calls(config, pipeline, what_if)
    others = {stage: {**parts, **named[stage]} for stage, parts in measured.items()}
    if any(others.values()):
        what_if = replace(what_if, others_at=others_at_places(status, pipeline, config, others))
    return _Start(config, pipeline, what_if, others, live_fleet(status, pipeline, config), live_demand(status, pipeline))


def _shared_lines(start: _Start) -> Iterator[str]:
    """How the models of several pipelines are counted, and what others bring to each."""
    config, pipeline = start.config, start.pipeline
    for names, sentence in sharing_notes(config.pipelines):
        others = [name for name in names if name != pipeline.name]
        if pipeline.name in names:
            yield f"{' and '.join((pipeline.name, *others))}: {sentence}"
    for stage, parts in start.others.items():
        if parts:
            named = " + ".join(f"{rps:.4g}/s of {'direct calls' if name == stage else name}" for name, rps in parts.items())
            yield f"{stage} is planned for {named} beside those of {pipeline.name}"


def parse_rates(text: str) -> tuple[float, ...]:
    """The rates of `120` or `20:400:20` (both ends included if the step meets them). SettingsError for any other text."""
    parts = [_number(part) for part in text.split(":")]
    numbers = [part for part in parts if part is not None and 0 <= part <= MAX_RATE_RPS]
    if len(numbers) == len(parts) == 1:
        return (numbers[0],)
    if len(numbers) == len(parts) == 3:
        first, last, step = numbers
        if first <= last and step > 0 and (last - first) / step < MAX_RATES:
            count = math.floor((last - first) / step + 1e-9) + 1
            return tuple(round(first + index * step, 9) for index in range(count))
    raise SettingsError(f'--rate: "{text}" is invalid: expected {RATE_WORDS}')


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+(\.\d*)?|\.\d+", text.strip(), re.ASCII) else None


def parse_what_if(pipeline: str | None, slo: str | None, devices: str | None, also: Sequence[str] = ()) -> WhatIf:
    """The overrides as typed. SettingsError for an invalid SLO or number of devices."""
    try:
        slo_ms = None if slo is None else float(slo)
    except ValueError:
        raise _slo_error(slo) from None
    if devices is not None and not re.fullmatch(r"[+-]?\d{1,18}", devices.strip(), re.ASCII):
        raise _devices_error(devices)
    what_if = WhatIf(pipeline, slo_ms, None if devices is None else int(devices), tuple(map(_named_rate, also)))
    _check(what_if)
    return what_if


def _named_rate(text: str) -> tuple[str, float]:
    name, _, rate = text.rpartition("=")
    rate_rps = _number(rate)
    if not name or rate_rps is None or rate_rps > MAX_RATE_RPS:
        raise SettingsError(f'--also: "{text}" is invalid: expected NAME=RATE with a rate of 0 to {MAX_RATE_RPS:,.0f} requests/s')
    return name, rate_rps


def _check(what_if: WhatIf) -> None:
    if what_if.slo_ms is not None and not (what_if.slo_ms > 0 and math.isfinite(what_if.slo_ms)):
        raise _slo_error(f"{what_if.slo_ms:g}")
    if what_if.devices is not None and not 1 <= what_if.devices <= MAX_DEVICES:
        raise _devices_error(what_if.devices)


def _slo_error(value: object) -> SettingsError:
    return SettingsError(f"--slo-ms: {value} is invalid: expected a number > 0, in ms")


def _devices_error(value: object) -> SettingsError:
    return SettingsError(f"--devices: {value} is invalid: expected a whole number ≥ 1 and ≤ {MAX_DEVICES:,}")


def plan_table(answers: Sequence[RatePlan], pipeline: PipelineConfig, config: ThemisConfig) -> Table:
    """One row per rate. "bound by" names the constraint that prevents a cheaper plan, or any plan."""
    policy, planning = config.policy, config.planning
    table = Table(
        title=f"Plans for {pipeline.name}: SLO {pipeline.slo_ms:g} ms at p{pipeline.percentile:g}, policy {policy.name.value}",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=_caption(answers, pipeline, config),
        caption_justify="left",
    )
    table.add_column("rate/s", justify="right")
    for stage, calls in zip(pipeline.stages, pipeline.per_request, strict=True):
        name = stage.replace("-", "-\n").replace("_", "_\n") + ("" if calls == 1.0 else f"\n{calls:g} a request")
        rows = config.models[stage].rows_per_request
        name += "" if rows == 1.0 else f"\nof {rows:g} rows"
        table.add_column(f"{escape(name)}\n{_count_words(planning)}", justify="right", overflow="fold", min_width=len("10×10, 8 "))
    priced = any(answer.price_per_hour is not None for answer in answers)
    for column in ("p99 ms", "cost", *(("per hour",) if priced else ())):
        table.add_column(column, justify="right")
    table.add_column("bound by", min_width=len("throughput"))
    table.add_column("runner-up")
    for answer in answers:
        table.add_row(*_cells(answer, priced=priced), style=None if answer.feasible else "red")
    return table


def _count_words(planning: PlanningConfig) -> str:
    return "n×cores, b" if planning.throughput is ThroughputRule.CORES else "n×c, b"


def _cells(answer: RatePlan, *, priced: bool) -> tuple[str, ...]:
    bound = answer.binding.value if answer.feasible else f"NO PLAN: {answer.binding.value}, at {answer.carried_rps:.0f}/s"
    p99 = "–" if answer.predicted_p99_ms is None else f"{answer.predicted_p99_ms:.0f}"
    stages = (f"{stage.servers}×{stage.instances}, {stage.batch}" for stage in answer.stages)
    price = ("–" if answer.price_per_hour is None else f"{answer.price_per_hour:.4g}",) if priced else ()
    return (f"{answer.rate_rps:g}", *stages, p99, f"{answer.cost:g}", *price, bound, _runner_up(answer))


def _runner_up(answer: RatePlan) -> str:
    other = answer.runner_up
    return f"n = {other.servers}: {other.predicted_p99_ms:.0f} ms, {other.cost - answer.cost:+g}" if other is not None else ""


def _caption(answers: Sequence[RatePlan], pipeline: PipelineConfig, config: ThemisConfig) -> str:
    margin = config.policy.slo_margin_fraction
    lines = [f"Plans aim at {pipeline.slo_ms * (1.0 - margin):g} ms: policy.slo_margin_fraction is {margin:g}."] if margin else []
    if pipeline.order:
        lines.append(f"Order: {pipeline.order}.")
    if not all(answer.feasible for answer in answers):
        lines.append("NO PLAN: the row shows the plan with the largest rate inside the SLO.")
    lines.append("n servers with c instances (or cores) each, batches of up to b; the runner-up with its p99 and its extra cost.")
    return "\n".join(lines)


def series_of(answers: Sequence[RatePlan]) -> PlanSeries:
    """The plans as series for the plot."""
    return PlanSeries(
        rate_rps=[answer.rate_rps for answer in answers],
        feasible=[answer.feasible for answer in answers],
        p99_ms=[answer.predicted_p99_ms for answer in answers],
        cost=[answer.cost for answer in answers],
        stages=list(zip(*(answer.stages for answer in answers), strict=True)),
    )
