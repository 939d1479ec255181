"""The command line of the commands that plan, simulate and decide again, without a server: their options, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from themis_triton.commands.options import (
    SLO_HELP,
    ConfigOption,
    FromOption,
    JsonOption,
    RateOption,
    ScaleOption,
    SeedOption,
    ToOption,
    TraceOption,
)

app = typer.Typer()


@app.command(epilog="Example: themis plan -c themis.yaml --rate 120 --from live")
def plan(
    config: ConfigOption,
    rate: Annotated[
        str | None,
        typer.Option(help="Arrival rate in requests/s: 120, or 20:400:20 (from:to:step). Default with --from live: the demand of now."),
    ] = None,
    pipeline: Annotated[str | None, typer.Option(help="Pipeline of the settings. Default: the first.")] = None,
    slo: Annotated[str | None, typer.Option("--slo-ms", "--slo", help=SLO_HELP)] = None,
    devices: Annotated[str | None, typer.Option(help="Maximum number of servers. Default: the settings'.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Show the migration from live (the running fleet), or from 2:3,1 (2 servers, 3 and 1 instances), or 2:3,1:8,8 (batches).",
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="NAME=RATE: requests/s of another pipeline that shares a model, or of a model called directly. Repeatable."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also plot the plans: a .png, .svg or .pdf file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the plan for a rate: servers, instances, batches, predicted p99, cost and the binding limit. Changes nothing.

    The exit code is 1 where no plan carries any of the rates inside the SLO.
    """
    from themis_triton.commands.plan_command import PlanFlags, parse_what_if, plan_command  # noqa: PLC0415

    what_if = parse_what_if(pipeline, slo, devices, also or ())
    plans = plan_command(PlanFlags(config, rate, what_if, plot, as_json, start))
    if not any(each.feasible for each in plans):
        raise typer.Exit(1)


@app.command(epilog="Example: themis replay -c themis.yaml --from 1h --slo video=200")
def replay(
    config: Annotated[Path | None, typer.Option("-c", "--config", help="The settings file of a sidecar on this machine.")] = None,
    journal: Annotated[Path | None, typer.Option(help="Its journal instead, or a copy of it: STATE_DIRECTORY/journal.sqlite.")] = None,
    slo: Annotated[list[str] | None, typer.Option(help="Another SLO, PIPELINE=MS. Repeatable.")] = None,
    policy: Annotated[str | None, typer.Option(help="Another policy: see `policy.name` in the settings' reference.")] = None,
    from_text: Annotated[
        str | None, typer.Option("--from", help="Start: so long before the recording's end (30m), or a local time. Default: all of it.")
    ] = None,
    to_text: Annotated[str | None, typer.Option("--to", help="End, likewise.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Decide recorded time again: the same decisions at the same settings, else an error that names the first difference.

    With --slo or --policy: what would have been otherwise, by the simulator under the recorded arrivals.
    """
    from themis_triton.commands.replay_command import ReplayFlags, chosen_journal, replay_command  # noqa: PLC0415

    flags = ReplayFlags(chosen_journal(config, journal), tuple(slo or ()), policy, from_text, to_text)
    raise typer.Exit(replay_command(flags, as_json=as_json))


@app.command(epilog="Example: themis report -c themis.yaml --day 2026-03-01")
def report(
    config: ConfigOption,
    day: Annotated[str | None, typer.Option(help="A local day, YYYY-MM-DD, up to three days ago. Default: yesterday.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a day's late requests and cost, and what Themis would have had under the same arrivals. Needs no running sidecar."""
    from themis_triton.commands.report_command import report_command  # noqa: PLC0415 - a command loads what it needs

    report_command(config, day, as_json=as_json)


@app.command(epilog="Example: themis simulate -c themis.yaml --trace diurnal")
def simulate(
    config: ConfigOption,
    trace: TraceOption = "surge",
    rate: RateOption = None,
    policies: Annotated[str, typer.Option(help="Policies, comma-separated; clairvoyant is the bound.")] = "themis,horizontal,vertical",
    seed: SeedOption = 0,
    seeds: Annotated[int, typer.Option(help="Number of runs of each policy, with this seed and the next ones.")] = 1,
    pipeline: Annotated[list[str] | None, typer.Option(help="Pipeline of the settings. Default: the first. Repeatable.")] = None,
    duration: Annotated[int | None, typer.Option(help="Duration in seconds: stretches a shipped trace, truncates any other.")] = None,
    from_s: FromOption = 0,
    to_s: ToOption = None,
    scale: ScaleOption = 1.0,
    jobs: Annotated[int, typer.Option(help="Parallel processes.")] = 1,
    world: Annotated[str | None, typer.Option(help="Simulated cluster: triton or paper. Default: by the settings' planning.")] = None,
    cold_start: Annotated[float | None, typer.Option(help="Cold start in seconds. Default: from the profiles.")] = None,
    in_place: Annotated[float | None, typer.Option(help="Duration of an in-place change in seconds. Default: from the profiles.")] = None,
    noise: Annotated[float, typer.Option(help="Coefficient of variation of service times.")] = 0.0,
    profile_error: Annotated[float, typer.Option(help="Fraction by which service times exceed the profiles'; may be negative.")] = 0.0,
    metrics_lag: Annotated[float, typer.Option(help="Age of the metrics in seconds.")] = 0.0,
    batch_wait: Annotated[
        float | None, typer.Option(help="Seconds that a central queue waits for a full batch. Default: 0.05, and 0 for themis.")
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(help="Maximum number of servers. Default: the adopted ones and the slots, or 64 in the paper's world."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write pictures to this folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate policies against a trace in virtual time: the same tick as live, over a simulated cluster.

    Each policy uses the section policy of the settings, and its own overrides in the section policies. The clairvoyant bound uses the
    section policy only. config/paper-*.yaml contain the constants of the published evaluation.
    """
    from themis_triton.commands.simulate_command import SimulateFlags, simulate_command  # noqa: PLC0415 - a command loads what it needs
    from themis_triton.commands.simulated_runs import WorldFlags  # noqa: PLC0415
    from themis_triton.load.traces import TraceOptions  # noqa: PLC0415

    options = TraceOptions(source=trace, rate_rps=rate, from_s=from_s, to_s=to_s, scale=scale, duration_s=duration)
    overrides = WorldFlags(world, cold_start, in_place, noise, profile_error, metrics_lag, batch_wait, devices)
    simulate_command(SimulateFlags(config, options, policies, seeds, tuple(pipeline or ()), jobs, out, overrides, seed), as_json=as_json)
