"""The commands that show what the sidecar sees and does; `themis_triton.cli` has them all."""

from __future__ import annotations

from typing import Annotated

import typer

from themis_triton.commands.options import AuthorityOption, ConfigOption, IdentityOption, JsonOption, TokenOption

app = typer.Typer()


@app.command(epilog="Example: themis status -c themis.yaml")
def status(
    config: ConfigOption,
    as_json: JsonOption = False,
    token_file: TokenOption = None,
    ca: AuthorityOption = None,
    identity: IdentityOption = None,
) -> None:
    """Show the running sidecar's measurements, decisions and actions."""
    from themis_triton.commands.status_calls import Remote  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.status_command import status_command  # noqa: PLC0415

    status_command(config, as_json=as_json, remote=Remote(token_file, ca, identity))


@app.command(epilog="Example: themis inventory -c themis.yaml")
def inventory(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Show the nodes that the engine of `launch` has, their devices and node types, and the slots with their prices. Changes nothing."""
    from themis_triton.commands.inventory_command import inventory_command  # noqa: PLC0415 - a command loads only what it needs

    inventory_command(config, as_json=as_json)


@app.command(epilog="Example: themis top -c themis.yaml")
def top(config: ConfigOption, token_file: TokenOption = None, ca: AuthorityOption = None, identity: IdentityOption = None) -> None:
    """Watch the running sidecar live in the terminal: pipelines, servers, decisions and why; pause and resume by a key."""
    from themis_triton.commands.status_calls import Remote  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.top.command import top_command  # noqa: PLC0415

    top_command(config, Remote(token_file, ca, identity))


@app.command(epilog="Example: themis why -c themis.yaml --at 30m")
def why(
    config: ConfigOption,
    decision: Annotated[str | None, typer.Argument(help="Decision id. Default: the newest decision that changed something.")] = None,
    at: Annotated[
        str | None,
        typer.Option(help="The newest decision until then: so long ago, such as 30m, or a local time, such as 02:50 or 2026-03-01T14:30."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain one decision: its evidence, its actions, their outcomes and what came of it. Reads the journal; needs no running sidecar."""
    from themis_triton.commands.why_command import why_command  # noqa: PLC0415 - a command loads only what it needs

    why_command(config, decision, as_json=as_json, at=at)


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
