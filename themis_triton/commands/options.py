"""Options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[Path, typer.Option("-c", "--config", help="The settings file.")]
TokenOption = Annotated[
    Path | None, typer.Option("--token-file", help="Token of the status API, to reach a sidecar on another machine at its status.address.")
]
AuthorityOption = Annotated[
    Path | None, typer.Option("--ca", help="PEM file with the authority of that sidecar's certificate, where its status API has TLS.")
]
IdentityOption = Annotated[
    Path | None,
    typer.Option(
        "--client-certificate",
        envvar="THEMIS_CLIENT_CERTIFICATE",
        help="PEM file with a certificate that its status.tls.client_ca signed, and with its key, where that is set.",
    ),
]
ColdStartOption = Annotated[
    float | None,
    typer.Option(help="Process start in seconds of each launched server, for emulated models; on a GPU 20 to 60. Default: about 1."),
]
TRACE_HELP = (
    "surge, diurnal, flash or steady; a .csv, .npz or .npy file of rates (one per second; column `rps`) or of time stamps (column "
    "`timestamp`, seconds or ISO 8601); twitter-paper or twitter@SECOND if THEMIS_TRACES is set."
)
TraceOption = Annotated[str, typer.Option(help=TRACE_HELP)]
RateOption = Annotated[float | None, typer.Option(help="A constant rate in requests/s instead of a trace.")]
FromOption = Annotated[int, typer.Option("--from", help="First second of the trace.")]
ToOption = Annotated[int | None, typer.Option("--to", help="Last second of the trace (exclusive).")]
ScaleOption = Annotated[float, typer.Option(help="Factor by which the trace's rates are multiplied.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Random seed of the arrivals.")]
BenchConfigOption = Annotated[Path | None, typer.Option("-c", "--config", help="Settings file: slots, servers, pipelines and limits.")]
RepositoryOption = Annotated[Path | None, typer.Option(help="Model repository. Default: the settings', else the shipped one.")]
ConfigNameOption = Annotated[
    str | None, typer.Option("--model-config-name", help="Triton's --model-config-name for the repository. Default: the settings'.")
]
SlotOption = Annotated[str | None, typer.Option(help="Slot of the settings to start a server on. Default: the last.")]
DeviceOption = Annotated[str, typer.Option(help="Device if no settings are given: gpu:N or cpu:N.")]
ShapeOption = Annotated[list[str] | None, typer.Option(help="Shape without the batch dimension, MODEL.INPUT=N,N. Repeatable.")]
DataOption = Annotated[Path | None, typer.Option(help="Input data: an .npz file with one array per INPUT or MODEL.INPUT.")]
SLO_HELP = "SLO in ms. Default: the settings'."
ControlKeyOption = Annotated[
    str | None,
    typer.Option(
        "--model-control-key",
        envvar="THEMIS_MODEL_CONTROL_KEY",
        help="The server's model-control key, where its model repository is restricted. In the environment other users cannot read it.",
    ),
]
CaOption = Annotated[Path | None, typer.Option("--ca", help="PEM file with the authority of its certificate, where its gRPC port has TLS.")]
CertificateOption = Annotated[
    Path | None, typer.Option("--certificate", help="PEM file of a client certificate, where the server asks for one; with --key.")
]
KeyOption = Annotated[Path | None, typer.Option("--key", help="PEM file of that certificate's key.")]
ServerNameOption = Annotated[
    str | None, typer.Option("--server-name", help="Name in the server's certificate, where it is not the host of its address.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON as the last line of standard output.")]


class LogFormat(StrEnum):
    """AUTO: readable lines on a terminal, else one JSON object a line."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"
