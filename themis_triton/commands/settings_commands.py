"""`themis validate`, `themis init` and `themis schema`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.device_kinds_check import mixed_devices
from themis_triton.adapters.exposure import exposure_findings
from themis_triton.adapters.findings import Finding, Severity
from themis_triton.commands.terminal import TerminalConsole
from themis_triton.commands.tls_flags import TlsFlags
from themis_triton.core.address import Address
from themis_triton.core.config import PipelineConfig, Placement, ThemisConfig, ThroughputRule
from themis_triton.core.errors import EnvironmentCheckError, SettingsError
from themis_triton.core.graph import nested, series
from themis_triton.core.sharing import sharing_notes
from themis_triton.settings import Problem, load_settings, problems
from themis_triton.settings.from_server import settings_text
from themis_triton.settings.json_schema import schema_text
from themis_triton.settings.kinds import ADDRESS_WORDS, parse_address
from themis_triton.settings.starter import starter

PRIVATE_MODE = 0o600
MIB = 2**20
_MARKS = {Severity.OK: "[green]ok[/]     ", Severity.WARNING: "[yellow]warning[/]", Severity.ERROR: "[red]error[/]  "}


def given_settings(file: Path | None, config: Path | None) -> Path:
    """The settings file of the argument or of `-c`. SettingsError for none, and for two."""
    if (file is None) == (config is None):
        fault = "neither FILE nor -c is given" if file is None else f"both FILE ({file}) and -c ({config}) are given"
        raise SettingsError(f"themis validate: {fault}: expected one settings file. Fix: themis validate -c FILE")
    return file or config or Path()


def validate_command(path: Path, live: bool, as_json: bool) -> int:
    """Check a settings file, and with `live` the servers, Envoy and devices that it names. Returns the exit code.

    Writes to stdout: sentences, or one JSON object `file, valid, problems, findings, pipelines`; a pipeline has its order in words, and
    as nested lists under `series`, `parallel` and `calls`.
    Exit codes: 0; 2 if the file is invalid, or with `live` a profile is stale; 3 if something on this machine is missing, expired or open
    to other users; with `live` 4 if a server does not answer.
    """
    errors = problems(path)
    config = None if errors else load_settings(path)
    findings = [] if config is None else [*exposure_findings(config, SystemClock().now_s(), path), *mixed_devices(config)]
    if config is not None and live:
        findings += live_findings(config)
    console = TerminalConsole(soft_wrap=True, highlight=False)
    if as_json:
        pipelines = [*map(_pipeline_row, config.pipelines)] if config is not None else []
        report = {
            "file": str(path),
            "valid": config is not None,
            "problems": [*map(asdict, errors)],
            "findings": [*map(asdict, findings)],
            "pipelines": pipelines,
        }
        console.out(json.dumps(report), highlight=False)
    else:
        _show(console, path, config, errors, findings)
    if errors:
        return SettingsError.exit_code
    return max((finding.exit_code for finding in findings), default=0)


def _pipeline_row(pipeline: PipelineConfig) -> dict[str, object]:
    graph = pipeline.graph if pipeline.graph is not None else series(pipeline.stages)
    order = pipeline.order or " → ".join(pipeline.stages)
    return {"name": pipeline.name, "stages": pipeline.stages, "order": order, "graph": nested(graph), "bound": pipeline.bound}


def live_findings(config: ThemisConfig) -> list[Finding]:
    """Findings about the servers, Envoy, devices and profiles that the settings name."""
    import asyncio  # noqa: PLC0415 - only --live needs the packages of the sidecar

    from themis_triton.adapters.live_check import check_live  # noqa: PLC0415

    return [*asyncio.run(check_live(config)), *stale_findings(config)]


def stale_findings(config: ThemisConfig) -> list[Finding]:
    """Stale profiles, which `themis run` refuses unless the settings allow them."""
    from themis_triton.profile.stale import stale_profiles  # noqa: PLC0415 - needs the packages of the sidecar

    remedy = "measure again with `themis profile`, or set `allow_stale_profiles: true`"
    severity, code = (Severity.WARNING, 0) if config.allow_stale_profiles else (Severity.ERROR, SettingsError.exit_code)
    try:
        parts = [sentence.partition(": ") for sentence in stale_profiles(config)]
    except SettingsError as error:  # A GPU that NVML does not know, or a config.pbtxt that cannot be parsed.
        return [Finding(severity, "profiles", str(error), "correct it, so that profiles can be checked", code)]
    return [Finding(severity, key, found, remedy, code) for key, _, found in parts]


def init_command(path: Path, force: bool) -> int:
    """Write a settings file to start from. Returns 0; 2 when the file exists and `force` is not given; 3 when it cannot be written."""
    return _write(path, starter, "Edit the names and addresses", force=force)


def init_from_command(
    path: Path, force: bool, source: str, http: str | None, metrics: str | None, tls: TlsFlags | None = None, key: str | None = None
) -> int:
    """Write a settings file with every model of a running server. Returns 0, and the codes of `init_command`.

    `http` and `metrics` None: the ports below and above that of gRPC, as Triton's own defaults are. `key`: of its model control.

    Raises:
        SettingsError: an address is none, or a flag of TLS lacks another one.
        ServerError: the server does not answer, or a PEM file cannot be read.
    """
    import asyncio  # noqa: PLC0415 - only --from needs the packages of the sidecar

    from themis_triton.adapters.triton.inventory import read_inventory  # noqa: PLC0415

    grpc_address = _address("--from", source)
    http_address = _address("--http", http) if http is not None else replace(grpc_address, port=grpc_address.port - 1)
    metrics_address = _address("--metrics", metrics) if metrics is not None else replace(grpc_address, port=grpc_address.port + 1)
    grpc_address = (tls or TlsFlags()).applied(grpc_address)
    inventory = asyncio.run(read_inventory(grpc_address, http_address, metrics_address, key))
    return _write(
        path,
        lambda: settings_text(inventory),
        f"It has {len(inventory.models)} models; fill in the SLOs",
        force=force,
        secret=key is not None,
    )


def _address(flag: str, text: str) -> Address:
    address = parse_address(text)
    if address is None:
        raise SettingsError(f"{flag}: {text} is invalid: expected {ADDRESS_WORDS}")
    return address


def _write(path: Path, text: Callable[[], str], todo: str, *, force: bool, secret: bool = False) -> int:
    """Write the settings, readable by their owner alone if they hold a secret."""
    console = TerminalConsole(soft_wrap=True, highlight=False)
    if path.exists() and not force:
        console.print(f"[red]{escape(str(path))}[/]: the file exists. Fix: use another name, or --force to replace it")
        return SettingsError.exit_code
    try:
        content = text()
        if secret:
            path.touch(mode=PRIVATE_MODE)
            path.chmod(PRIVATE_MODE)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        console.print(f"[red]{escape(str(path))}[/]: cannot be written ({error.strerror}). Fix: choose a writable folder that exists")
        return EnvironmentCheckError.exit_code
    console.print(f"[green]{escape(str(path))}[/] is written. {todo}, then run: themis validate -c {escape(str(path))}")
    return 0


def schema_command() -> int:
    """Write the JSON Schema of the settings file to stdout. Returns 0."""
    sys.stdout.write(schema_text())
    return 0


def _show(console: Console, path: Path, config: ThemisConfig | None, found: list[Problem], findings: list[Finding]) -> None:
    for problem in found:
        key = f" {escape(problem.key)}" if problem.key else ""
        console.print(f"[bold]{escape(problem.place)}[/]:[red]{key}[/]")
        for name, text in (("error", problem.error), ("expected", problem.expected), ("fix", problem.fix)):
            console.print(f"  [dim]{name:<8}[/] {escape(text)}")
    if config is None:
        console.print(f"[red]{len(found)} {'error' if len(found) == 1 else 'errors'}[/] in {escape(str(path))}")
        return
    console.print(f"[green]{escape(str(path))}[/] is valid: {_summary(config)}")
    for where, sentence in _notes(config):
        console.print(f"[yellow]note[/]    {escape(where)}: {escape(sentence)}")
    for pipeline in config.pipelines:
        if pipeline.order:
            console.print(f"[dim]order[/]   pipelines.{escape(pipeline.name)}: {escape(pipeline.order)}")
    for finding in findings:
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        console.print(f"{_MARKS[finding.severity]} {escape(finding.what)}: {escape(finding.found + remedy)}")


def _notes(config: ThemisConfig) -> Iterator[tuple[str, str]]:
    """What a reader of the settings may not expect, each with the keys that it follows from."""
    for pipeline in filter(config.is_stateful, config.pipelines):
        stateful = ", ".join(stage for stage in pipeline.stages if config.models[stage].stateful)
        state = "keeps state between the calls of a sequence; one server has all of its calls, and is scaled in place only"
        yield f"pipelines.{pipeline.name}", f"{stateful} {state}"
    for pipeline in (each for each in config.pipelines if not config.knows(each)):
        profile = "has no profile: its service times are learnt, and nothing changes for it before"
        yield f"pipelines.{pipeline.name}", f"{', '.join(config.unknown(pipeline))} {profile}"
    for name in (name for name, model in config.models.items() if model.profile.raised_to_calls):
        calls = ", ".join(config.callees[name])
        raised = f"is below the time of the calls of {calls}, one after the other for each request of a batch; plans count with that time"
        yield f"models.{name}.profile.surface", f"{raised}. Fix: measure {name} with `themis profile`, or set `learn: true`"
    yield from _separate_notes(config)
    yield from _slot_notes(config)
    for names, sentence in sharing_notes(config.pipelines):
        yield ", ".join(f"pipelines.{name}" for name in names), sentence


def _separate_notes(config: ThemisConfig) -> Iterator[tuple[str, str]]:
    """What separate stages mean for these settings, where they are not just planned and simulated."""
    planning, slots = config.planning, len(config.launch.slots) if config.launch is not None else 0
    if planning.placement is Placement.SEPARATE and planning.throughput is ThroughputRule.INSTANCES and slots:
        models = len({stage for pipeline in config.pipelines for stage in pipeline.stages})
        shared = f"{slots} launch slot{'' if slots == 1 else 's'} for {models} model{'' if models == 1 else 's'}"
        first = "a free slot goes first to a model that no server holds"
        few = f"; {models - slots} of them share a server, as far as its memory allows" if slots < models else ""
        yield "planning.placement", f"each launched server holds one model; {shared}: {first}{few}"


def _slot_notes(config: ThemisConfig) -> Iterator[tuple[str, str]]:
    """How pipelines are served where slots are fewer. What adopted servers hold is not known here."""
    slots, planning = config.launch.slots if config.launch is not None else (), config.planning
    if planning.placement is Placement.SEPARATE or planning.throughput is ThroughputRule.CORES or config.servers:
        return
    if 0 < len(slots) < len(config.pipelines):
        limits = [slot.memory_bytes for slot in slots if slot.memory_bytes is not None]
        needed = sum(model.min_instances * model.profile.instance_memory_bytes for model in config.models.values())
        served = f"{len(slots)} for {len(config.pipelines)} pipelines: a server holds several of them, as far as its memory allows"
        if len(limits) == len(slots) and needed > sum(limits):
            memory = f"all slots have {sum(limits) / MIB:,.0f} MiB, and the fewest instances of all models need {needed / MIB:,.0f} MiB"
            served += f". {memory}: some pipelines get no server. Fix: give slots more memory, or add slots"
        yield "launch.slots", served


def _summary(config: ThemisConfig) -> str:
    slots = len(config.launch.slots) if config.launch is not None else 0
    counts = (
        (len(config.models), "model"),
        (len(config.pipelines), "pipeline"),
        (len(config.servers), "adopted server"),
        (slots, "launch slot"),
    )
    return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts)
