"""The command line of the commands that run real servers and measure them: their options, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from themis_triton.commands.options import (
    SLO_HELP,
    BenchConfigOption,
    CaOption,
    CertificateOption,
    ColdStartOption,
    ConfigNameOption,
    ConfigOption,
    ControlKeyOption,
    DataOption,
    DeviceOption,
    FromOption,
    JsonOption,
    KeyOption,
    RateOption,
    RepositoryOption,
    ScaleOption,
    SeedOption,
    ServerNameOption,
    ShapeOption,
    SlotOption,
    ToOption,
    TraceOption,
)

app = typer.Typer()


@app.command(epilog="Example: themis demo --policy themis --duration 60")
def demo(
    duration: Annotated[int | None, typer.Option(help="Duration in seconds; stretches the shipped surge, truncates other traces.")] = None,
    trace: TraceOption = "surge",
    rate: RateOption = None,
    from_s: FromOption = 0,
    to_s: ToOption = None,
    scale: ScaleOption = 1.0,
    policy: Annotated[str, typer.Option(help="themis, or a baseline: see `policy.name` in the settings' reference.")] = "themis",
    pipeline: Annotated[str, typer.Option(help="Pipeline: video, sentiment or nlp.")] = "video",
    seed: SeedOption = 0,
    cold_start: ColdStartOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the picture, the results and the logs.")] = Path("themis-demo"),
    as_json: JsonOption = False,
) -> None:
    """Run a surge through a real Triton and a real Envoy on this machine, scaled by Themis."""
    from themis_triton.commands.demo_command import demo_command, parse_policy  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.demo.run import DemoOptions  # noqa: PLC0415
    from themis_triton.load.traces import TraceOptions  # noqa: PLC0415

    options = TraceOptions(source=trace, rate_rps=rate, from_s=from_s, to_s=to_s, scale=scale, duration_s=duration)
    demo_command(DemoOptions(out, options, parse_policy(policy), pipeline, seed, as_json, cold_start_s=cold_start, shows_launches=True))


@app.command(epilog="Example: themis load -c themis.yaml --rate 50 --duration 30")
def load(
    config: Annotated[Path | None, typer.Option("-c", "--config", help="Settings file: pipelines and Envoy's address.")] = None,
    address: Annotated[str | None, typer.Option(help="Address of a KServe-v2 gRPC service, HOST:PORT.")] = None,
    pipeline: Annotated[
        list[str] | None, typer.Option(help="Pipeline of the settings, or NAME=MODEL,MODEL. Repeatable. Default: the first.")
    ] = None,
    slo_ms: Annotated[float | None, typer.Option("--slo-ms", help=SLO_HELP)] = None,
    trace: TraceOption = "surge",
    rate: RateOption = None,
    duration: Annotated[int | None, typer.Option(help="Duration in seconds.")] = None,
    from_s: FromOption = 0,
    to_s: ToOption = None,
    scale: ScaleOption = 1.0,
    shape: ShapeOption = None,
    data: DataOption = None,
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="Write one row per request to this .npz file.")] = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    server_name: ServerNameOption = None,
    bearer_file: Annotated[
        Path | None, typer.Option("--bearer-file", help="File with the API key or JSON Web Token that requests carry.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send an open-loop gRPC load; latency counts from the intended send time."""
    from themis_triton.commands.load_command import load_command  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.load_options import LoadFlags, options_from  # noqa: PLC0415
    from themis_triton.commands.tls_flags import TlsFlags  # noqa: PLC0415
    from themis_triton.load.traces import TraceOptions  # noqa: PLC0415

    trace_options = TraceOptions(source=trace, rate_rps=rate, from_s=from_s, to_s=to_s, scale=scale, duration_s=duration)
    tls, shapes = TlsFlags(ca, certificate, key, server_name), tuple(shape or ())
    flags = LoadFlags(config, address, tuple(pipeline or ()), slo_ms, trace_options, shapes, seed, out, data, tls, bearer_file)
    report = load_command(options_from(flags), as_json=as_json)
    if any(summary.failed for summary in report.summaries):
        raise typer.Exit(1)


@app.command(epilog="Example: themis profile my-model -c themis.yaml")
def profile(
    target: Annotated[str, typer.Argument(help="A model, or a pipeline of the settings for all its models.")],
    config: BenchConfigOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the profile files, one per model.")] = Path("profiles"),
    repository: RepositoryOption = None,
    model_config_name: ConfigNameOption = None,
    slot: SlotOption = None,
    device: DeviceOption = "cpu:0",
    server: Annotated[str | None, typer.Option(help="Measure on a running server: HOST:PORT of its gRPC, or its name.")] = None,
    model_control_key: ControlKeyOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    server_name: ServerNameOption = None,
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
    shape: ShapeOption = None,
    data: DataOption = None,
    allow_live: Annotated[bool, typer.Option("--allow-live", help="Measure even if the server or device carries live traffic.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what a model costs: service time by batch and instances, memory, start times. Continues after an interruption."""
    from themis_triton.commands.bench_place import BenchFlags  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.load_options import shapes_from  # noqa: PLC0415
    from themis_triton.commands.profile_command import ProfileFlags, profile_command  # noqa: PLC0415
    from themis_triton.commands.tls_flags import TlsFlags  # noqa: PLC0415
    from themis_triton.profile.inputs import InputOptions  # noqa: PLC0415
    from themis_triton.profile.measure import Accuracy  # noqa: PLC0415

    tls = TlsFlags(ca, certificate, key, server_name)
    where = BenchFlags(
        config, repository, slot, device, None, server, model_control_key, allow_live=allow_live, config_name=model_config_name, tls=tls
    )
    accuracy = Accuracy(percentile, precision, max_seconds=max_seconds)
    inputs = InputOptions(shapes_from(shape or ()), data)
    flags = ProfileFlags(target, out, max_batch, max_instances, tolerance, max_points, accuracy, inputs)
    profile_command(flags, where, as_json=as_json)


@app.command(epilog="Example: themis compare -c themis.yaml --duration 60")
def compare(
    config: ConfigOption,
    trace: TraceOption = "surge",
    rate: RateOption = None,
    policies: Annotated[str, typer.Option(help="Policies, comma-separated. Each runs live for the length of the trace.")] = (
        "themis,horizontal,vertical"
    ),
    seed: SeedOption = 0,
    seeds: Annotated[int, typer.Option(help="Number of runs of each policy, with this seed and the next ones.")] = 1,
    pipeline: Annotated[str | None, typer.Option(help="Pipeline of the settings. Default: the first.")] = None,
    duration: Annotated[int | None, typer.Option(help="Duration in seconds: stretches a shipped trace, truncates any other.")] = None,
    from_s: FromOption = 0,
    to_s: ToOption = None,
    scale: ScaleOption = 1.0,
    cold_start: ColdStartOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures, the results and the logs.")] = Path("themis-compare"),
    as_json: JsonOption = False,
) -> None:
    """Run policies live on this machine, one after the other, beside the simulator's prediction."""
    from themis_triton.commands.compare_command import CompareFlags, compare_command  # noqa: PLC0415 - a command loads what it needs
    from themis_triton.commands.compared_runs import ComparedLoad  # noqa: PLC0415
    from themis_triton.load.traces import TraceOptions  # noqa: PLC0415

    options = TraceOptions(source=trace, rate_rps=rate, from_s=from_s, to_s=to_s, scale=scale, duration_s=duration)
    compare_command(CompareFlags(ComparedLoad(options, config, pipeline, seed, cold_start), policies, out, seeds), as_json=as_json)


@app.command(epilog="Example: themis probe my-model -c themis.yaml")
def probe(
    model: Annotated[str, typer.Argument(help="The model to probe.")],
    config: BenchConfigOption = None,
    out: Annotated[Path, typer.Option(help="Folder of the profile files. The result is written into the model's file.")] = Path("profiles"),
    repository: RepositoryOption = None,
    model_config_name: ConfigNameOption = None,
    slot: SlotOption = None,
    device: DeviceOption = "cpu:0",
    reach: Annotated[
        str | None, typer.Option(help="Further device to probe growth onto: gpu:N or cpu:N. Default: one of the settings without traffic.")
    ] = None,
    many: Annotated[int, typer.Option(min=2, help="Instances that the operation add_many adds at once.")] = 3,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Load in requests/s. Default: half of one instance's capacity.")] = None,
    shape: ShapeOption = None,
    data: DataOption = None,
    allow_live: Annotated[bool, typer.Option("--allow-live", help="Probe even if the device carries live traffic.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure under load, on a scratch server, which operations on a model are safe."""
    from themis_triton.commands.bench_place import BenchFlags  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.load_options import shapes_from  # noqa: PLC0415
    from themis_triton.commands.probe_command import probe_command  # noqa: PLC0415
    from themis_triton.profile.inputs import InputOptions  # noqa: PLC0415
    from themis_triton.profile.probe import ProbeOptions  # noqa: PLC0415

    where = BenchFlags(config, repository, slot, device, reach, allow_live=allow_live, config_name=model_config_name)
    options = ProbeOptions(many, rate, inputs=InputOptions(shapes_from(shape or ()), data))
    probe_command(model, out, options, where, as_json=as_json)
