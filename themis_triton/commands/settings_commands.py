"""`themis validate`, `themis init` and `themis schema`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from themis_triton.adapters.findings import Finding, Severity
from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import EnvironmentCheckError, SettingsError
from themis_triton.settings import Problem, load_settings, problems
from themis_triton.settings.json_schema import schema_text
from themis_triton.settings.starter import starter

_MARKS = {Severity.OK: "[green]ok[/]     ", Severity.WARNING: "[yellow]warning[/]", Severity.ERROR: "[red]error[/]  "}


def validate_command(path: Path, live: bool, as_json: bool) -> int:
    """Check a settings file, and with `live` the servers, Envoy and devices that it names. Returns the exit code.

    Writes to stdout: sentences, or one JSON object `file, valid, problems, findings`.
    Exit codes: 0; 2 if the file is invalid, or with `live` a profile is stale; with `live` 3 if something on this
    machine is missing, 4 if a server does not answer.
    """
    errors = problems(path)
    config = None if errors else load_settings(path)
    findings = live_findings(config) if live and config is not None else []
    console = Console(soft_wrap=True, highlight=False)
    if as_json:
        report = {"file": str(path), "valid": config is not None, "problems": [*map(asdict, errors)], "findings": [*map(asdict, findings)]}
        console.out(json.dumps(report), highlight=False)
    else:
        _show(console, path, config, errors, findings)
    if errors:
        return SettingsError.exit_code
    return max((finding.exit_code for finding in findings), default=0)


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
    console = Console(soft_wrap=True, highlight=False)
    if path.exists() and not force:
        console.print(f"[red]{escape(str(path))}[/]: the file exists. Fix: use another name, or --force to replace it")
        return SettingsError.exit_code
    try:
        path.write_text(starter(), encoding="utf-8")
    except OSError as error:
        console.print(f"[red]{escape(str(path))}[/]: cannot be written ({error.strerror}). Fix: choose a writable folder that exists")
        return EnvironmentCheckError.exit_code
    console.print(f"[green]{escape(str(path))}[/] is written. Edit the names and addresses, then run: themis validate {escape(str(path))}")
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
    for finding in findings:
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        console.print(f"{_MARKS[finding.severity]} {escape(finding.what)}: {escape(finding.found + remedy)}")


def _summary(config: ThemisConfig) -> str:
    slots = len(config.launch.slots) if config.launch is not None else 0
    counts = (
        (len(config.models), "model"),
        (len(config.pipelines), "pipeline"),
        (len(config.servers), "adopted server"),
        (slots, "launch slot"),
    )
    return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts)
