"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[Path, typer.Option("-c", "--config", help="The settings file.")]
TokenOption = Annotated[
    Path | None, typer.Option("--token-file", help="Token of the status API, to reach a sidecar on another machine at its status.address.")
]
ColdStartOption = Annotated[
    float | None,
    typer.Option(help="Process start in seconds of each launched server, for emulated models; on a GPU 20 to 60. Default: about 1."),
]
TRACE_HELP = (
    "surge, diurnal, flash or steady; a .csv, .npz or .npy file of rates (one per second; column `rps`) or of time stamps (column "
    "`timestamp`, seconds or ISO 8601); twitter-paper or twitter@SECOND if THEMIS_TRACES is set."
)
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON as the last line of standard output.")]
