"""A stand-in for the driver of a Ray cluster: answers as the first file of a folder says, which it removes; run as a program.

`refuse`: the cluster does not answer. `end`: it connects and ends. Otherwise it connects, has one actor, and answers all requests.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def run() -> None:
    folder = Path(os.environ["THEMIS_DRIVER_DOUBLE"])
    orders = sorted(folder.iterdir())
    mode = orders[0].name.partition("-")[2] if orders else ""
    for order in orders[:1]:
        order.unlink()
    for line in sys.stdin:
        request = json.loads(line)
        if mode == "refuse":
            say({"id": request["id"], "error": "ConnectionError: no head at 10.0.0.1:6379"})
            continue
        say({"servers": {"one:5d1f": {"state": "placed", "description": None, "why": ""}}})
        say({"id": request["id"], "result": {"version": "2.60.0", "call": request["call"]}})
        if mode == "end":
            return


if __name__ == "__main__":
    run()
