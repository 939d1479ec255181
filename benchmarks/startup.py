"""How long client commands take from start to end: wall and processor time, the median of ten runs each.

`python benchmarks/startup.py` takes half a minute; it writes results/startup.json.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import write_result

from themis_triton.settings.shipped import shipped

RUNS = 10
GOAL_S = 0.3
COMMANDS = (("--help",), ("status",), ("why",), ("history",), ("pause",), ("resume",), ("stop",))


def main() -> None:
    """Time each command; without a sidecar, so that nothing but the command itself is measured."""
    with tempfile.TemporaryDirectory(prefix="themis-startup-") as folder:
        config = Path(folder) / "themis.yaml"
        config.write_text((shipped("config") / "themis.yaml").read_text())
        rows = [timed(command, config) for command in COMMANDS]
    for row in rows:
        print(row)
    print(write_result("startup", {"runs": RUNS, "goal_wall_s": GOAL_S, "load_average": round(os.getloadavg()[0], 2), "commands": rows}))


def timed(command: tuple[str, ...], config: Path) -> dict[str, Any]:
    """Medians of one command."""
    arguments = [sys.executable, "-m", "themis_triton.cli", *command, *(() if command == ("--help",) else ("-c", str(config)))]
    walls, processors = [], []
    for _ in range(RUNS):
        before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(arguments, capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls.append(time.perf_counter() - began_s)
        processors.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {
        "command": " ".join(command),
        "wall_s": round(statistics.median(walls), 3),
        "processor_s": round(statistics.median(processors), 3),
    }


if __name__ == "__main__":
    main()
