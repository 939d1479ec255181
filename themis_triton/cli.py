"""The command line. Each command parses its options and calls a function in `commands`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Annotated

import typer

import themis_triton
from themis_triton.commands import evaluating, measuring, observing, operating
from themis_triton.commands.options import (
    CaOption,
    CertificateOption,
    ConfigOption,
    ControlKeyOption,
    JsonOption,
    KeyOption,
    LogFormat,
    ServerNameOption,
)
from themis_triton.core.errors import EnvironmentCheckError, ThemisError
from themis_triton.core.printable import printable

app = typer.Typer(
    name="themis",
    help="Keeps models served by NVIDIA Triton within their latency SLOs at the lowest cost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
PARTS = (observing.app, operating.app, evaluating.app, measuring.app)
for _part in PARTS:
    app.add_typer(_part)
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


@app.command(epilog="Example: themis run -c themis.yaml")
def run(
    config: ConfigOption,
    standby: Annotated[bool, typer.Option("--standby", help="Wait while another sidecar leads; take over when it ends or hangs.")] = False,
    log: Annotated[LogFormat, typer.Option(help="Log lines: auto is console on a terminal, else json.")] = LogFormat.AUTO,
) -> None:
    """Run the sidecar until SIGTERM. Servers and Envoy keep serving afterwards."""
    from themis_triton.commands.run_command import run_command  # noqa: PLC0415 - a command loads only what it needs

    run_command(config, log, standby=standby)


@app.command(epilog="Example: themis validate -c themis.yaml --live")
def validate(
    file: Annotated[Path | None, typer.Argument(help="The settings file.")] = None,
    config: Annotated[Path | None, typer.Option("-c", "--config", help="The settings file, as other commands take it.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Also check the servers, Envoy and the devices that it names.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a settings file and report all its errors at once."""
    from themis_triton.commands.settings_commands import given_settings, validate_command  # noqa: PLC0415 - a command loads only what it needs

    raise typer.Exit(validate_command(given_settings(file, config), live, as_json))


@app.command(epilog="Example: themis init themis.yaml --from 127.0.0.1:8001")
def init(
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("themis.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    source: Annotated[str | None, typer.Option("--from", help="gRPC address of a running Triton, whose models the file then has.")] = None,
    http: Annotated[str | None, typer.Option("--http", help="Its HTTP address; by default the port below.")] = None,
    metrics: Annotated[str | None, typer.Option("--metrics", help="Its metrics address; by default the port above.")] = None,
    model_control_key: ControlKeyOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    server_name: ServerNameOption = None,
) -> None:
    """Write a minimal settings file, or with --from one with every model of a running Triton."""
    from themis_triton.commands.settings_commands import init_command, init_from_command  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.tls_flags import TlsFlags  # noqa: PLC0415

    if source is None:
        raise typer.Exit(init_command(file, force))
    tls = TlsFlags(ca, certificate, key, server_name)
    raise typer.Exit(init_from_command(file, force, source, http, metrics, tls, model_control_key))


@app.command("envoy-bootstrap", epilog="Example: themis envoy-bootstrap -c themis.yaml edge-1 --zone west-1 > envoy.json")
def envoy_bootstrap(
    config: ConfigOption,
    name: Annotated[str, typer.Argument(help="The Envoy's name, another one for each.")],
    zone: Annotated[str | None, typer.Option("--zone", help="Its zone, as the servers have theirs.")] = None,
    server: Annotated[
        list[str] | None,
        typer.Option("--server", help="HOST:PORT at which it reaches Themis, once for each sidecar; else envoy.xds.listen."),
    ] = None,
    grpc_listen: Annotated[str | None, typer.Option("--grpc-listen", help="Its listener for gRPC; else envoy.grpc_listen.")] = None,
    http_listen: Annotated[str | None, typer.Option("--http-listen", help="Its listener for HTTP; else envoy.http_listen.")] = None,
    stats: Annotated[str | None, typer.Option("--stats", help="IP:PORT at which Themis reads its statistics.")] = None,
    admin: Annotated[str | None, typer.Option("--admin", help="Its admin address: a socket's path or IP:PORT; else a socket here.")] = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    server_name: ServerNameOption = None,
) -> None:
    """Print the bootstrap of an Envoy that gets its routes over xDS."""
    from themis_triton.commands.envoy_bootstrap_command import EnvoyFlags, envoy_bootstrap_command  # noqa: PLC0415 - loads only what it needs
    from themis_triton.commands.tls_flags import TlsFlags  # noqa: PLC0415

    flags = EnvoyFlags(name, zone, tuple(server or ()), grpc_listen, http_listen, stats, admin)
    raise typer.Exit(envoy_bootstrap_command(config, flags, TlsFlags(ca, certificate, key, server_name)))


@app.command(epilog="Example: themis schema > themis.schema.json")
def schema() -> None:
    """Print the JSON Schema of the settings file, for editors."""
    from themis_triton.commands.settings_commands import schema_command  # noqa: PLC0415 - a command loads only what it needs

    raise typer.Exit(schema_command())


@app.command(epilog="Example: themis stop -c themis.yaml")
def stop(
    config: ConfigOption,
    everything: Annotated[bool, typer.Option("--all", help="Also stop the servers that Themis launched, and its Envoy.")] = False,
) -> None:
    """Stop the sidecar and wait until it has ended. Servers and Envoy keep serving unless --all is given."""
    from themis_triton.commands.stop_command import stop_command  # noqa: PLC0415 - a command loads only what it needs

    stop_command(config, everything=everything)
    if everything:
        from themis_triton.commands.down_command import down_command  # noqa: PLC0415 - a command loads only what it needs

        down_command(config)


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


def _application(words: Sequence[str]) -> typer.Typer:
    """The application with the called command alone, or with all: to declare them all takes longer than a client command does."""
    declared = [each for part in (app, *PARTS) for each in part.registered_commands]
    called = [each for each in declared if (each.name or getattr(each.callback, "__name__", "")) in words]
    if not called:
        return app
    alone = copy(app)
    alone.registered_groups, alone.registered_commands = [], called
    return alone


def main() -> None:
    """Entry point. A ThemisError becomes one message on standard error and its exit code; Ctrl-C becomes exit code 130."""
    try:
        _application(sys.argv[1:2])()
    except ThemisError as error:
        typer.secho(f"error: {printable(str(error))}", fg=typer.colors.RED, err=True)
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
