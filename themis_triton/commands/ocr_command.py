"""`themis read-text`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from themis_triton.ocr.client import read_text
from themis_triton.ocr.pipeline import load_image


async def read_text_command(image: Path, address: str, *, as_json: bool) -> None:
    """Print the lines of text, best guess first in reading order, with their scores."""
    lines = await read_text(address, load_image(image))
    console = Console()
    if as_json:
        console.file.write(json.dumps([asdict(line) for line in lines]) + "\n")
        return
    for line in lines:
        console.print(f"{line.text}  [dim]{line.score:.2f}[/dim]", highlight=False)
