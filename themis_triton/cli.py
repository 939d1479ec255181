"""The command line. Each command parses its options and calls a function in `commands`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import themis_triton
from themis_triton.core.errors import EnvironmentCheckError, ThemisError

app = typer.Typer(
    name="themis",
    help="Keeps models served by NVIDIA Triton within their latency SLOs at the lowest cost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ConfigOption = Annotated[Path, typer.Option("-c", "--config", help="The settings file.")]
ColdStartOption = Annotated[
    float | None,
    typer.Option(help="Process start in seconds of each launched server, for emulated models; on a GPU 20 to 60. Default: about 1."),
]
TRACE_HELP = (
    "surge, diurnal, flash or steady; a .csv, .npz or .npy file of rates (one per second; column `rps`) or of time stamps (column "
    "`timestamp`, seconds or ISO 8601); twitter-paper or twitter@SECOND if THEMIS_TRACES is set."
)
SIDECAR_MODULES = frozenset(
    (
        "aiohttp",
        "google",
        "grpc",
        "httpx",
        "llvmlite",
        "numba",
        "numpy",
        "prometheus_client",
        "psutil",
        "pynvml",
        "structlog",
        "tritonclient",
    )
)
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON as the last line of standard output.")]


@app.command(epilog="Example: themis run -c themis.yaml")
def run(config: ConfigOption) -> None:
    """Run the sidecar until SIGTERM. Servers and Envoy keep serving afterwards."""
    from themis_triton.commands.run_command import run_command  # noqa: PLC0415 - a command loads only what it needs

    run_command(config)


@app.command(epilog="Example: themis demo --policy themis --duration 60")
def demo(
    duration: Annotated[int | None, typer.Option(help="Duration in seconds; stretches the shipped surge, truncates other traces.")] = None,
    trace: Annotated[str, typer.Option(help=TRACE_HELP)] = "surge",
    from_s: Annotated[int, typer.Option("--from", help="First second of the trace.")] = 0,
    to_s: Annotated[int | None, typer.Option("--to", help="Last second of the trace (exclusive).")] = None,
    scale: Annotated[float, typer.Option(help="Factor by which the trace's rates are multiplied.")] = 1.0,
    policy: Annotated[str, typer.Option(help="themis, or a baseline: themis-paper, horizontal, vertical, inferline or static.")] = "themis",
    pipeline: Annotated[str, typer.Option(help="Pipeline: video, sentiment or nlp.")] = "video",
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the arrivals.")] = 0,
    cold_start: ColdStartOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the picture, the results and the logs.")] = Path("themis-demo"),
    as_json: JsonOption = False,
) -> None:
    """Run a surge through a real Triton and a real Envoy on this machine, scaled by Themis."""
    from themis_triton.commands.demo_command import demo_command, parse_policy  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.demo.run import DemoOptions  # noqa: PLC0415
    from themis_triton.load.traces import TraceOptions  # noqa: PLC0415

    options = TraceOptions(source=trace, from_s=from_s, to_s=to_s, scale=scale, duration_s=duration)
    demo_command(DemoOptions(out, options, parse_policy(policy), pipeline, seed, as_json, cold_start_s=cold_start))


@app.command(epilog="Example: themis load -c themis.yaml --rate 50 --duration 30")
def load(
    config: Annotated[Path | None, typer.Option("-c", "--config", help="Settings file: pipelines and Envoy's address.")] = None,
    address: Annotated[str | None, typer.Option(help="Address of a KServe-v2 gRPC service, HOST:PORT.")] = None,
    pipeline: Annotated[
        list[str] | None, typer.Option(help="Pipeline of the settings, or NAME=MODEL,MODEL. Repeatable. Default: the first.")
    ] = None,
    slo_ms: Annotated[float | None, typer.Option(help="SLO in ms. Default: the settings'.")] = None,
    trace: Annotated[str, typer.Option(help="surge, diurnal, flash, steady, twitter-paper, or a file.")] = "surge",
    rate: Annotated[float | None, typer.Option(help="A constant rate in requests/s instead of a trace.")] = None,
    duration: Annotated[int | None, typer.Option(help="Duration in seconds.")] = None,
    from_s: Annotated[int, typer.Option("--from", help="First second of the trace.")] = 0,
    to_s: Annotated[int | None, typer.Option("--to", help="Last second of the trace (exclusive).")] = None,
    scale: Annotated[float, typer.Option(help="Factor by which the trace's rates are multiplied.")] = 1.0,
    shape: Annotated[list[str] | None, typer.Option(help="Free dimensions of an input, MODEL.INPUT=N,N. Repeatable.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the arrivals.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write one row per request to this .npz file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Send an open-loop gRPC load; latency counts from the intended send time."""
    from themis_triton.commands.load_command import load_command  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.load_options import LoadFlags, options_from  # noqa: PLC0415
    from themis_triton.load.traces import TraceOptions  # noqa: PLC0415

    trace_options = TraceOptions(source=trace, rate_rps=rate, from_s=from_s, to_s=to_s, scale=scale, duration_s=duration)
    flags = LoadFlags(config, address, tuple(pipeline or ()), slo_ms, trace_options, tuple(shape or ()), seed, out)
    report = load_command(options_from(flags), as_json=as_json)
    if any(summary.failed for summary in report.summaries):
        raise typer.Exit(1)


@app.command(epilog="Example: themis plan -c themis.yaml --rate 120 --from live")
def plan(
    config: ConfigOption,
    rate: Annotated[str, typer.Option(help="Arrival rate in requests/s: 120, or 20:400:20 (from:to:step).")],
    pipeline: Annotated[str | None, typer.Option(help="Pipeline of the settings. Default: the first.")] = None,
    slo: Annotated[str | None, typer.Option(help="SLO in ms. Default: the settings'.")] = None,
    devices: Annotated[str | None, typer.Option(help="Maximum number of servers. Default: the settings'.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Show the migration from live (the running fleet), or from 2:3,1 (2 servers, 3 and 1 instances), or 2:3,1:8,8 (batches).",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also plot the plans: a .png, .svg or .pdf file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the plan for a rate: servers, instances, batches, predicted p99, cost and the binding limit. Changes nothing."""
    from themis_triton.commands.plan_command import PlanFlags, parse_what_if, plan_command  # noqa: PLC0415 - a command loads only what it needs

    plan_command(PlanFlags(config, rate, parse_what_if(pipeline, slo, devices), plot, as_json, start))


@app.command(epilog="Example: themis profile my-model -c themis.yaml")
def profile(
    target: Annotated[str, typer.Argument(help="A model, or a pipeline of the settings for all its models.")],
    config: Annotated[Path | None, typer.Option("-c", "--config", help="Settings file: slots, servers, pipelines and limits.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the profile files, one per model.")] = Path("profiles"),
    repository: Annotated[Path | None, typer.Option(help="Model repository. Default: the settings', else the shipped one.")] = None,
    slot: Annotated[str | None, typer.Option(help="Slot of the settings to start a server on. Default: the last.")] = None,
    device: Annotated[str, typer.Option(help="Device if no settings are given: gpu:N or cpu:N.")] = "cpu:0",
    server: Annotated[str | None, typer.Option(help="Measure on a running server: HOST:PORT of its gRPC, or its name.")] = None,
    key: Annotated[str | None, typer.Option(help="Model-control key of --server.")] = None,
    max_batch: Annotated[int | None, typer.Option(min=1, help="Maximum batch size. Default: the settings', else the model's.")] = None,
    max_instances: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of instances. Default: what the settings allow on the device, or 8.")
    ] = None,
    percentile: Annotated[float, typer.Option(min=1, max=99.99, help="Percentile of the service time.")] = 99.0,
    precision: Annotated[
        float, typer.Option(min=0.001, max=1, help="Target half-width of the 95 % confidence interval, as a fraction.")
    ] = 0.03,
    tolerance: Annotated[
        float, typer.Option(min=0.001, max=1, help="Curvature below which the surface counts as smooth, as a fraction.")
    ] = 0.04,
    max_points: Annotated[int, typer.Option(min=1, help="Maximum number of points.")] = 40,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Maximum seconds per point.")] = 60.0,
    shape: Annotated[list[str] | None, typer.Option(help="Shape without the batch dimension, MODEL.INPUT=N,N. Repeatable.")] = None,
    data: Annotated[Path | None, typer.Option(help="Input data: an .npz file with one array per INPUT or MODEL.INPUT.")] = None,
    allow_live: Annotated[bool, typer.Option("--allow-live", help="Measure even if the server or device carries live traffic.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what a model costs: service time by batch and instances, memory, start times. Continues after an interruption."""
    from themis_triton.commands.load_options import shapes_from  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.profile_command import BenchFlags, ProfileFlags, profile_command  # noqa: PLC0415
    from themis_triton.profile.inputs import InputOptions  # noqa: PLC0415
    from themis_triton.profile.measure import Accuracy  # noqa: PLC0415

    where = BenchFlags(config, repository, slot, device, server, key, allow_live=allow_live)
    accuracy = Accuracy(percentile, precision, max_seconds=max_seconds)
    inputs = InputOptions(shapes_from(shape or ()), data)
    flags = ProfileFlags(target, out, max_batch, max_instances, tolerance, max_points, accuracy, inputs)
    profile_command(flags, where, as_json=as_json)


@app.command(epilog="Example: themis simulate -c themis.yaml --trace diurnal")
def simulate(
    config: ConfigOption,
    trace: Annotated[str, typer.Option(help=TRACE_HELP)] = "surge",
    policies: Annotated[str, typer.Option(help="Policies, comma-separated; clairvoyant is the bound.")] = "themis,horizontal,vertical",
    seeds: Annotated[int, typer.Option(help="Number of runs of each policy, with the seeds 0, 1, …")] = 1,
    pipeline: Annotated[list[str] | None, typer.Option(help="Pipeline of the settings. Default: the first. Repeatable.")] = None,
    duration: Annotated[int | None, typer.Option(help="Duration in seconds: stretches a shipped trace, truncates any other.")] = None,
    from_s: Annotated[int, typer.Option("--from", help="First second of the trace.")] = 0,
    to_s: Annotated[int | None, typer.Option("--to", help="Last second of the trace (exclusive).")] = None,
    scale: Annotated[float, typer.Option(help="Factor by which the trace's rates are multiplied.")] = 1.0,
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

    options = TraceOptions(source=trace, from_s=from_s, to_s=to_s, scale=scale, duration_s=duration)
    overrides = WorldFlags(world, cold_start, in_place, noise, profile_error, metrics_lag, batch_wait, devices)
    simulate_command(SimulateFlags(config, options, policies, seeds, tuple(pipeline or ()), jobs, out, overrides), as_json=as_json)


@app.command(epilog="Example: themis compare -c themis.yaml --duration 60")
def compare(
    config: ConfigOption,
    trace: Annotated[str, typer.Option(help=TRACE_HELP)] = "surge",
    policies: Annotated[str, typer.Option(help="Policies, comma-separated. Each runs live for the length of the trace.")] = (
        "themis,horizontal,vertical"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the arrivals, live and simulated.")] = 0,
    pipeline: Annotated[str | None, typer.Option(help="Pipeline of the settings. Default: the first.")] = None,
    duration: Annotated[int | None, typer.Option(help="Duration in seconds: stretches a shipped trace, truncates any other.")] = None,
    from_s: Annotated[int, typer.Option("--from", help="First second of the trace.")] = 0,
    to_s: Annotated[int | None, typer.Option("--to", help="Last second of the trace (exclusive).")] = None,
    scale: Annotated[float, typer.Option(help="Factor by which the trace's rates are multiplied.")] = 1.0,
    cold_start: ColdStartOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures, the results and the logs.")] = Path("themis-compare"),
    as_json: JsonOption = False,
) -> None:
    """Run policies live on this machine, one after the other, beside the simulator's prediction."""
    from themis_triton.commands.compare_command import CompareFlags, compare_command  # noqa: PLC0415 - a command loads what it needs
    from themis_triton.commands.compared_runs import ComparedLoad  # noqa: PLC0415
    from themis_triton.load.traces import TraceOptions  # noqa: PLC0415

    options = TraceOptions(source=trace, from_s=from_s, to_s=to_s, scale=scale, duration_s=duration)
    compare_command(CompareFlags(ComparedLoad(options, config, pipeline, seed, cold_start), policies, out), as_json=as_json)


@app.command(epilog="Example: themis probe my-model -c themis.yaml")
def probe(
    model: Annotated[str, typer.Argument(help="The model to probe.")],
    config: Annotated[Path | None, typer.Option("-c", "--config", help="Settings file: slots and model repository.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the profile files. The result is written into the model's file.")] = Path("profiles"),
    repository: Annotated[Path | None, typer.Option(help="Model repository. Default: the settings', else the shipped one.")] = None,
    slot: Annotated[str | None, typer.Option(help="Slot of the settings for the scratch server. Default: the last.")] = None,
    device: Annotated[str, typer.Option(help="Device if no settings are given: gpu:N or cpu:N.")] = "cpu:0",
    many: Annotated[int, typer.Option(min=2, help="Instances that the operation add_many adds at once.")] = 3,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Load in requests/s. Default: half of one instance's capacity.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="Shape without the batch dimension, MODEL.INPUT=N,N. Repeatable.")] = None,
    data: Annotated[Path | None, typer.Option(help="Input data: an .npz file with one array per INPUT or MODEL.INPUT.")] = None,
    allow_live: Annotated[bool, typer.Option("--allow-live", help="Probe even if the device carries live traffic.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure under load, on a scratch server, which operations on a model are safe."""
    from themis_triton.commands.load_options import shapes_from  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.probe_command import probe_command  # noqa: PLC0415
    from themis_triton.commands.profile_command import BenchFlags  # noqa: PLC0415
    from themis_triton.profile.inputs import InputOptions  # noqa: PLC0415
    from themis_triton.profile.probe import ProbeOptions  # noqa: PLC0415

    where = BenchFlags(config, repository, slot, device, allow_live=allow_live)
    options = ProbeOptions(many, rate, inputs=InputOptions(shapes_from(shape or ()), data))
    probe_command(model, out, options, where, as_json=as_json)


@app.command(epilog="Example: themis validate themis.yaml --live")
def validate(
    file: Annotated[Path, typer.Argument(help="The settings file.")],
    live: Annotated[bool, typer.Option("--live", help="Also check the servers, Envoy and the devices that it names.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a settings file and report all its errors at once."""
    from themis_triton.commands.settings_commands import validate_command  # noqa: PLC0415 - a command loads only what it needs

    raise typer.Exit(validate_command(file, live, as_json))


@app.command(epilog="Example: themis init themis.yaml")
def init(
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("themis.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a minimal settings file."""
    from themis_triton.commands.settings_commands import init_command  # noqa: PLC0415 - a command loads only what it needs

    raise typer.Exit(init_command(file, force))


@app.command(epilog="Example: themis schema > themis.schema.json")
def schema() -> None:
    """Print the JSON Schema of the settings file, for editors."""
    from themis_triton.commands.settings_commands import schema_command  # noqa: PLC0415 - a command loads only what it needs

    raise typer.Exit(schema_command())


@app.command(epilog="Example: themis status -c themis.yaml")
def status(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Show the running sidecar's measurements, decisions and actions."""
    from themis_triton.commands.status_command import status_command  # noqa: PLC0415 - a command loads only what it needs

    status_command(config, as_json=as_json)


@app.command(epilog="Example: themis why -c themis.yaml")
def why(
    config: ConfigOption,
    decision: Annotated[str | None, typer.Argument(help="Decision id. Default: the newest decision that changed something.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain one decision: its evidence, its actions and their outcomes. Reads the journal; needs no running sidecar."""
    from themis_triton.commands.why_command import why_command  # noqa: PLC0415 - a command loads only what it needs

    why_command(config, decision, as_json=as_json)


@app.command(epilog="Example: themis history -c themis.yaml --since 2h")
def history(
    config: ConfigOption,
    since: Annotated[str, typer.Option(help="Period to list: a number and s, m, h or d.")] = "1h",
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of ticks.")] = 50,
    every: Annotated[bool, typer.Option("--all", help="Also list ticks without a change (kept for some minutes).")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the changes with their time and reason, oldest first. Reads the journal; needs no running sidecar."""
    from themis_triton.commands.history_command import history_command  # noqa: PLC0415 - a command loads only what it needs

    history_command(config, since, limit, every=every, as_json=as_json)


@app.command(epilog="Example: themis stop -c themis.yaml")
def stop(
    config: ConfigOption,
    everything: Annotated[bool, typer.Option("--all", help="Also stop the servers that Themis launched, and its Envoy.")] = False,
) -> None:
    """Stop the sidecar and wait until it has ended. Servers and Envoy keep serving unless --all is given."""
    from themis_triton.commands.stop_command import stop_command  # noqa: PLC0415 - a command loads only what it needs

    stop_command(config)
    if everything:
        from themis_triton.commands.down_command import down_command  # noqa: PLC0415 - a command loads only what it needs

        down_command(config)


@app.command(epilog="Example: themis pause -c themis.yaml")
def pause(config: ConfigOption) -> None:
    """Pause: make no changes from the next tick on. Observation, recommendations and Envoy continue. Persists over restarts."""
    from themis_triton.commands.stop_command import pause_command  # noqa: PLC0415 - a command loads only what it needs

    pause_command(config)


@app.command(epilog="Example: themis resume -c themis.yaml")
def resume(config: ConfigOption) -> None:
    """Resume after a pause."""
    from themis_triton.commands.stop_command import resume_command  # noqa: PLC0415 - a command loads only what it needs

    resume_command(config)


@app.command(epilog="Example: themis down -c themis.yaml")
def down(config: ConfigOption) -> None:
    """Stop the launched servers and Envoy of a sidecar that has stopped, as `stop --all` does. Fails while the sidecar runs."""
    from themis_triton.commands.down_command import down_command  # noqa: PLC0415 - a command loads only what it needs

    down_command(config)


@app.command(epilog="Example: themis warm")
def warm(as_json: JsonOption = False) -> None:
    """Compile the solvers and the simulator and cache the result, so that no later command compiles."""
    from themis_triton.commands.warm_command import warm_command  # noqa: PLC0415 - a command loads only what it needs

    warm_command(as_json=as_json)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(themis_triton.__version__)
        raise typer.Exit


@app.callback()
def common(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options before a command."""


def main() -> None:
    """Entry point. A ThemisError becomes one message on standard error and its exit code; Ctrl-C becomes exit code 130."""
    try:
        app()
    except ThemisError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in SIDECAR_MODULES:
            raise
        missing = f"error: this command needs the package {error.name}, which is not installed. Fix: pip install 'themis-triton[sidecar]'"
        typer.secho(missing, fg=typer.colors.RED, err=True)
        sys.exit(EnvironmentCheckError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
