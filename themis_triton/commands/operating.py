"""The commands with which people steer a running sidecar; `themis_triton.cli` has them all."""

from __future__ import annotations

from typing import Annotated

import typer

from themis_triton.commands.options import AuthorityOption, ConfigOption, IdentityOption, TokenOption

app = typer.Typer()
WhyOption = Annotated[str, typer.Option("--why", help="The reason, for the journal and the status.")]
PeriodOption = Annotated[str, typer.Option("--for", help="For how long: a number and s, m, h or d.")]


@app.command(epilog="Example: themis pause -c themis.yaml")
def pause(config: ConfigOption, token_file: TokenOption = None, ca: AuthorityOption = None, identity: IdentityOption = None) -> None:
    """Pause: make no changes from the next tick on. Observation, recommendations and Envoy continue. Persists over restarts."""
    from themis_triton.commands.status_calls import Remote  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.stop_command import pause_command  # noqa: PLC0415

    pause_command(config, Remote(token_file, ca, identity))


@app.command(epilog="Example: themis resume -c themis.yaml")
def resume(config: ConfigOption, token_file: TokenOption = None, ca: AuthorityOption = None, identity: IdentityOption = None) -> None:
    """Resume after a pause."""
    from themis_triton.commands.status_calls import Remote  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.stop_command import resume_command  # noqa: PLC0415

    resume_command(config, Remote(token_file, ca, identity))


@app.command(epilog="Example: themis pin detector --instances 4 --for 30m -c themis.yaml")
def pin(
    config: ConfigOption,
    name: Annotated[str, typer.Argument(help="A model, for --instances, or a pipeline, for --servers.")],
    instances: Annotated[
        str | None, typer.Option("--instances", metavar="N", help="Instances on each server, or on each device of one with several.")
    ] = None,
    servers: Annotated[str | None, typer.Option("--servers", metavar="N", help="Servers, or devices where a server uses several.")] = None,
    period: PeriodOption = "30m",
    why: WhyOption = "",
    token_file: TokenOption = None,
    ca: AuthorityOption = None,
    identity: IdentityOption = None,
) -> None:
    """Keep a model's instances, or a pipeline's servers, at a number for a time. Survives a restart of the sidecar."""
    from themis_triton.commands.override_commands import Counts, pin_command  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.status_calls import Remote  # noqa: PLC0415

    pin_command(config, name, Counts(instances, servers), period, why, Remote(token_file, ca, identity))


@app.command(epilog="Example: themis bounds video --servers 2:4 --for 2h -c themis.yaml")
def bounds(
    config: ConfigOption,
    name: Annotated[str, typer.Argument(help="A model, for --instances, or a pipeline, for --servers.")],
    instances: Annotated[
        str | None, typer.Option("--instances", metavar="MIN:MAX", help="Instances on each server, or on each device of one with several.")
    ] = None,
    servers: Annotated[
        str | None, typer.Option("--servers", metavar="MIN:MAX", help="Servers, or devices where a server uses several.")
    ] = None,
    period: PeriodOption = "30m",
    why: WhyOption = "",
    token_file: TokenOption = None,
    ca: AuthorityOption = None,
    identity: IdentityOption = None,
) -> None:
    """Keep a model's instances, or a pipeline's servers, within bounds for a time. Survives a restart; `themis unpin` ends it."""
    from themis_triton.commands.override_commands import Counts, bounds_command  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.status_calls import Remote  # noqa: PLC0415

    bounds_command(config, name, Counts(instances, servers), period, why, Remote(token_file, ca, identity))


@app.command(epilog="Example: themis unpin detector -c themis.yaml")
def unpin(
    config: ConfigOption,
    name: Annotated[str, typer.Argument(help="A pinned or bounded model or pipeline.")],
    why: WhyOption = "",
    token_file: TokenOption = None,
    ca: AuthorityOption = None,
    identity: IdentityOption = None,
) -> None:
    """End pins and bounds before their time."""
    from themis_triton.commands.override_commands import unpin_command  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.status_calls import Remote  # noqa: PLC0415

    unpin_command(config, name, why, Remote(token_file, ca, identity))


@app.command(epilog="Example: themis drain triton-0 --why 'new driver' -c themis.yaml")
def drain(
    config: ConfigOption,
    server: Annotated[str, typer.Argument(help="A server, as `themis status` names it.")],
    force: Annotated[bool, typer.Option("--force", help="At once, even if the other servers do not carry the load.")] = False,
    why: WhyOption = "",
    token_file: TokenOption = None,
    ca: AuthorityOption = None,
    identity: IdentityOption = None,
) -> None:
    """Route no new requests to a server, once others carry its load. An adopted one runs on, a launched one retires.

    A replacement is launched first where a slot is free. Survives a restart of the sidecar.
    """
    from themis_triton.commands.override_commands import drain_command  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.status_calls import Remote  # noqa: PLC0415

    drain_command(config, server, why, Remote(token_file, ca, identity), force=force)


@app.command(epilog="Example: themis undrain triton-0 -c themis.yaml")
def undrain(
    config: ConfigOption,
    server: Annotated[str, typer.Argument(help="A drained server.")],
    why: WhyOption = "",
    token_file: TokenOption = None,
    ca: AuthorityOption = None,
    identity: IdentityOption = None,
) -> None:
    """Route requests to a drained server again."""
    from themis_triton.commands.override_commands import undrain_command  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.status_calls import Remote  # noqa: PLC0415

    undrain_command(config, server, why, Remote(token_file, ca, identity))


@app.command(epilog="Example: themis mode advisory -c themis.yaml")
def mode(
    config: ConfigOption,
    name: Annotated[str, typer.Argument(metavar="advisory|active|settings", help="The mode; settings: that of the settings file again.")],
    why: WhyOption = "",
    token_file: TokenOption = None,
    ca: AuthorityOption = None,
    identity: IdentityOption = None,
) -> None:
    """Switch between active and advisory mode in the running sidecar. Survives a restart of the sidecar."""
    from themis_triton.commands.override_commands import mode_command  # noqa: PLC0415 - a command loads only what it needs
    from themis_triton.commands.status_calls import Remote  # noqa: PLC0415

    mode_command(config, name, why, Remote(token_file, ca, identity))


@app.command(epilog="Example: themis reload -c themis.yaml")
def reload(config: ConfigOption, token_file: TokenOption = None, ca: AuthorityOption = None, identity: IdentityOption = None) -> None:
    """Put edited settings into force in the running sidecar. Wrong settings are refused; what needs a restart is named."""
    from themis_triton.commands.reload_command import reload_command  # noqa: PLC0415
    from themis_triton.commands.status_calls import Remote  # noqa: PLC0415 - a command loads only what it needs

    reload_command(config, Remote(token_file, ca, identity))
