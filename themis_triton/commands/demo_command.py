"""`themis demo`."""

from __future__ import annotations

from rich.console import Console

from themis_triton.demo.run import DemoOptions, run_demo


def demo_command(options: DemoOptions) -> None:
    """Run the demo; with `as_json` the last line of standard output is the summary."""
    summary = run_demo(options)
    if options.as_json:
        # Straight to the stream: the line must never be wrapped or coloured.
        Console().file.write(summary.json_line() + "\n")
