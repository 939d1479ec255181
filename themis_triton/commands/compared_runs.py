"""One policy on real Triton and Envoy, and its simulation with the same settings and arrivals."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from themis_triton.commands.host_use import HostUse, HostWatch
from themis_triton.commands.simulated_runs import bound_of
from themis_triton.core.action import OutcomeKind
from themis_triton.core.config import ThemisConfig
from themis_triton.core.policy import PolicyName
from themis_triton.core.recurring import RecurringRise
from themis_triton.demo.base import DemoBase, read_base
from themis_triton.demo.frame import DemoSummary
from themis_triton.demo.run import DemoOptions, run_demo
from themis_triton.load.traces import TraceOptions, arrivals, load_trace
from themis_triton.load.twitter import twitter_for
from themis_triton.report.series import EventKind, RunEvent, RunSeries
from themis_triton.settings import load_settings
from themis_triton.sim.result import SimResult
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import PREROLL_S, SimOptions
from themis_triton.solver.surface import FloatArray

REFERENCES = (PolicyName.VERTICAL_THEMIS, PolicyName.ORACLE)
"""What each policy is seen beside: our decisions on a fixed number of servers that carry the load's known peak, and the delayed oracle."""
_NOWHERE = {"grpc": "127.0.0.1:4", "http": "127.0.0.1:5", "status": "127.0.0.1:7"}


@dataclass(frozen=True, slots=True)
class ComparedLoad:
    """The load of a comparison. `settings` None: the shipped settings; `pipeline` None: their first pipeline.

    `cold_start_s`: process start of the emulated servers that are launched, live and simulated; None: their own. The load begins once
    servers that a policy launches at the start can serve, for every policy alike.
    """

    trace: TraceOptions
    settings: Path | None = None
    pipeline: str | None = None
    seed: int = 0
    cold_start_s: float | None = None

    @property
    def title(self) -> str:
        """Pipeline and trace, and the cold start if one is chosen."""
        chosen = "" if self.cold_start_s is None else f", cold start {self.cold_start_s:g} s"
        return f"{self.pipeline} under {self.trace.name}{chosen}"

    @property
    def settle_s(self) -> float:
        """Time between the first tick and the first request, live and simulated."""
        return PREROLL_S + (self.cold_start_s or 0.0)

    def named(self) -> ComparedLoad:
        """The load with the pipeline's name and trace. SettingsError for invalid settings or an unknown pipeline."""
        name = read_base(self.settings, self.pipeline, self.cold_start_s).pipeline.name
        return replace(self, pipeline=name, trace=replace(self.trace, source=twitter_for(self.trace.source, name)))


@dataclass(frozen=True, slots=True)
class RunFigures:
    """The results of one run over the trace. `violations` is the fraction of all requests not answered within the SLO."""

    requests: int
    failed: int
    violations: float
    p50_ms: float | None
    p99_ms: float | None
    cost: float
    server_seconds: float
    instance_seconds: float
    max_servers: int
    actions: dict[str, int] = field(default_factory=dict)
    server_seconds_by_kind: dict[str, float] = field(default_factory=dict)


FIGURES = tuple(each.name for each in fields(RunFigures))


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A measured run and its simulation. `load_average`: the machine's, over one minute, before and after the live run.

    `bound_cost` is the clairvoyant policy's cost under the same arrivals and settings. `host`: the machine during the live run.
    `seeds`: how many runs it stands for; `violations_error`: half the width of the 95 % interval of the measured violations.
    `references`: policies of REFERENCES, simulated under the same arrivals and settings.
    """

    policy: str
    slo_ms: float
    measured: RunFigures
    simulated: RunFigures
    measured_series: RunSeries
    simulated_series: RunSeries
    load_average: tuple[float, float]
    bound_cost: float
    host: HostUse = field(default_factory=HostUse)
    seeds: int = 1
    violations_error: float | None = None
    references: dict[str, RunFigures] = field(default_factory=dict)

    @property
    def cost_error(self) -> float:
        """The simulated cost relative to the measured cost, minus 1."""
        return self.simulated.cost / self.measured.cost - 1.0 if self.measured.cost else 0.0

    def row(self) -> dict[str, Any]:
        """The measured results under the keys of `themis simulate`, and the simulated results, as JSON values."""
        return {
            "policy": self.policy,
            **asdict(self.measured),
            "cost_vs_clairvoyant": self._of_bound(self.measured),
            "simulated": asdict(self.simulated) | {"cost_vs_clairvoyant": self._of_bound(self.simulated)},
            "slo_ms": self.slo_ms,
            "bound_cost": self.bound_cost,
            "cost_error": self.cost_error,
            "load_average": list(self.load_average),
            "seeds": self.seeds,
            "violations_error": self.violations_error,
            "host": asdict(self.host),
            "references": {
                name: asdict(figures) | {"cost_vs_clairvoyant": self._of_bound(figures)} for name, figures in self.references.items()
            },
        }

    def _of_bound(self, run: RunFigures) -> float | None:
        return run.cost / self.bound_cost if self.bound_cost else None

    def as_plain(self) -> dict[str, Any]:
        """All fields as JSON values; `run_from` reads them."""
        series = {"measured_series": asdict(self.measured_series), "simulated_series": asdict(self.simulated_series)}
        plain: dict[str, Any] = json.loads(json.dumps(self.row() | series, default=lambda array: array.tolist(), allow_nan=False))
        return plain


def compared_run(load: ComparedLoad, policy: PolicyName, directory: Path, prepare: Callable[[Path], None] | None = None) -> ComparedRun:
    """Run the policy live in its own folder, then simulate it with the settings of that run. `prepare`: see `DemoOptions`.

    Raises:
        SettingsError, EnvironmentCheckError: as `run_demo`, before anything is started.
        LaunchFailedError, ServerError: a part did not start or answer; nothing is left running.
        KeyboardInterrupt: Ctrl-C or SIGTERM; nothing is left running.
    """
    load = load.named()
    before = os.getloadavg()[0]
    options = DemoOptions(
        directory, load.trace, policy, load.pipeline, load.seed, True, load.settings, load.settle_s, load.cold_start_s, peak_of(load)
    )
    options = replace(options, prepare=prepare)
    watch = HostWatch()
    summary = run_demo(options)
    host = watch.use()
    after = os.getloadavg()[0]
    config = load_settings(directory / "themis.yaml")
    result = simulated_like(config, load)
    return ComparedRun(
        policy=policy.value,
        slo_ms=summary.slo_ms,
        measured=measured_figures(summary),
        simulated=simulated_figures(result),
        measured_series=replace(series_from(json.loads((directory / "series.json").read_text())), label="measured"),
        simulated_series=replace(result.series(), label="simulated"),
        load_average=(before, after),
        bound_cost=_bound_cost(config, load),
        host=host,
    )


def peak_of(load: ComparedLoad) -> float:
    """The largest rate of the trace, for policies that are provisioned for it."""
    return float(load_trace(load.trace, load.seed).rates_rps.max())


def references_like(config: ThemisConfig, load: ComparedLoad, measured: Collection[PolicyName]) -> dict[str, RunFigures]:
    """The figures of the references that are not measured, simulated under the settings of a live run."""
    planned_rps = config.policy.vertical.planned_rps or peak_of(load)
    policy = replace(config.policy, vertical=replace(config.policy.vertical, planned_rps=planned_rps))
    return {
        name.value: simulated_figures(simulated_like(replace(config, policy=replace(policy, name=name)), load))
        for name in REFERENCES
        if name not in measured
    }


def _arrivals(config: ThemisConfig, load: ComparedLoad) -> tuple[dict[str, FloatArray], int]:
    """The arrival times of the pipeline, and their duration in seconds."""
    trace = load_trace(load.trace, load.seed)
    return {config.pipelines[0].name: arrivals(trace, load.seed)}, trace.duration_s


def _bound_cost(config: ThemisConfig, load: ComparedLoad) -> float:
    return bound_of(config, *_arrivals(config, load), SimOptions(seed=load.seed)).cost


def simulated_like(config: ThemisConfig, load: ComparedLoad, recurring: tuple[RecurringRise, ...] = ()) -> SimResult:
    """The settings of a live run for the simulator: the same first server, policy and arrivals.

    `recurring`: rises that the policy knows, in seconds after the start of the load.
    """
    rises = {config.pipelines[0].name: recurring} if recurring else {}
    return simulate(config, *_arrivals(config, load), SimOptions(seed=load.seed, preroll_s=load.settle_s, recurring=rises))


def simulated_again(run: ComparedRun, load: ComparedLoad) -> ComparedRun:
    """The measured run with a new simulation under the current settings of `load` and the slots of a live run."""
    load = load.named()
    base = replace(read_base(load.settings, load.pipeline, load.cold_start_s), peak_rps=peak_of(load))
    with TemporaryDirectory(prefix="themis-settings-") as folder:
        path = Path(folder) / "themis.yaml"
        path.write_text(yaml.safe_dump(base.settings(PolicyName(run.policy), _nowhere(base), _NOWHERE, Path(folder) / "state")))
        config = load_settings(path)
    result = simulated_like(config, load)
    series = replace(result.series(), label="simulated")
    return replace(run, simulated=simulated_figures(result), simulated_series=series, bound_cost=_bound_cost(config, load))


def _nowhere(base: DemoBase) -> dict[str, str | list[str]]:
    """The adopted server of a run that is only simulated: on the first slot's device, with addresses that are never used."""
    addresses: dict[str, str | list[str]] = {"grpc": "127.0.0.1:1", "http": "127.0.0.1:2", "metrics": "127.0.0.1:3"}
    device = base.launch.slots[0].device
    return addresses | {"devices": list(dict.fromkeys((device, *base.reach)))}


def measured_figures(summary: DemoSummary) -> RunFigures:
    """The results of a live run."""
    return RunFigures(
        requests=summary.requests,
        failed=summary.failed,
        violations=1.0 - summary.slo_attainment,
        p50_ms=summary.p50_ms,
        p99_ms=summary.p99_ms,
        cost=summary.cost,
        server_seconds=summary.server_seconds,
        instance_seconds=summary.instance_seconds,
        max_servers=summary.max_servers,
        actions=dict(summary.actions),
        server_seconds_by_kind=dict(summary.server_seconds_by_kind),
    )


def simulated_figures(result: SimResult) -> RunFigures:
    """The results of a simulated run of one pipeline. Actions count if they ended before the last arrival, as in a live run."""
    run, end_s = result.pipelines[0], result.start_s + result.duration_s
    ended = [o for o in result.outcomes if o.kind is OutcomeKind.DONE and result.start_s <= o.ended_at_s < end_s]
    return RunFigures(
        requests=result.requests,
        failed=result.failed,
        violations=result.violations,
        p50_ms=run.percentile_ms(50.0),
        p99_ms=run.percentile_ms(99.0),
        cost=result.cost,
        server_seconds=result.server_seconds,
        instance_seconds=result.instance_seconds,
        max_servers=result.max_servers,
        actions=dict(Counter(outcome.action.kind.value for outcome in ended)),
        server_seconds_by_kind=result.server_seconds_by_kind,
    )


def series_from(plain: dict[str, Any]) -> RunSeries:
    """The series from its JSON values."""
    events = tuple(RunEvent(event["at_s"], EventKind(event["kind"]), event["label"]) for event in plain["events"])
    return RunSeries(**{**plain, "events": events})


def run_from(plain: dict[str, Any]) -> ComparedRun:
    """The run from the output of `as_plain`; other keys are ignored."""
    before, after = plain["load_average"]
    return ComparedRun(
        policy=plain["policy"],
        slo_ms=plain["slo_ms"],
        measured=_figures_from(plain),
        simulated=_figures_from(plain["simulated"]),
        measured_series=series_from(plain["measured_series"]),
        simulated_series=series_from(plain["simulated_series"]),
        load_average=(before, after),
        bound_cost=plain["bound_cost"],
        host=HostUse(**plain.get("host", {})),
        seeds=plain.get("seeds", 1),
        violations_error=plain.get("violations_error"),
        references={name: _figures_from(figures) for name, figures in plain.get("references", {}).items()},
    )


def _figures_from(plain: dict[str, Any]) -> RunFigures:
    earlier: dict[str, Any] = {"server_seconds_by_kind": {}}  # results of earlier versions have no kinds
    return RunFigures(**{name: (earlier | plain)[name] for name in FIGURES})
