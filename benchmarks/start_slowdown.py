"""How much longer a running model's batches take while instances of another model start in the same server, on a real Triton.

`python benchmarks/start_slowdown.py` (about two minutes) leaves `results/start-slowdown.json`: models that sleep or compute on the CPU,
beside one or three starting instances whose initialisation sleeps or uses a core. It justifies `SimWorld.start_slowdown`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import py_compile
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import mean, median

import numpy as np
import tritonclient.grpc.aio as triton
from common import versions, write_result

from tests.e2e.triton_process import running_triton
from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.core.address import Address
from themis_triton.core.fleet import ModelState, Phase, Server

INIT_S, BEFORE_S, AFTER_S = 1.5, 2.0, 0.3
BATCH_S = 0.04
"""Of a batch; requests that may end after the initialisation are left out."""
_MODEL = """
import time

import numpy as np
import triton_python_backend_utils as pb_utils


def compute(seconds):
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass


def spin(seconds):
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pass


class TritonPythonModel:
    def initialize(self, args):
        {initialize}

    def execute(self, requests):
        {execute}
        output = pb_utils.Tensor("OUTPUT", np.zeros((1, 1), dtype=np.int64))
        return [pb_utils.InferenceResponse(output_tensors=[output]) for _ in requests]
"""
_CONFIG = """
max_batch_size: 1
backend: "python"
input [{ name: "INPUT", data_type: TYPE_INT64, dims: [1] }]
output [{ name: "OUTPUT", data_type: TYPE_INT64, dims: [1] }]
instance_group [{ count: 1, kind: KIND_CPU }]
"""
RUNNING = {"sleeps": f"time.sleep({BATCH_S})", "computes": f"compute({BATCH_S})"}
STARTING = {"sleeps": f"time.sleep({INIT_S})", "uses a core": f"spin({INIT_S})"}
COUNTS = (1, 3)


def main() -> None:
    """Every pair of models with each number of starting instances."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="themis-slowdown-") as name:
        folder = Path(name)
        models = write_models(folder / "models")
        arguments = ("--disable-auto-complete-config",)
        with running_triton(folder, models, repository=folder / "models", exit_timeout_s=3, arguments=arguments) as process:
            address = Address("127.0.0.1", int(process.grpc_address.rpartition(":")[2]))
            repository = str(folder / "models")
            server = Server("server", "cpu:0", address, address, address, Phase.SERVING, launched=False, model_repository=repository)
            for running, starting, count in product(RUNNING, STARTING, COUNTS):
                names = model_name("run", running), model_name("init", starting)
                ratios = [asyncio.run(slowdown(server, *names, count)) for _ in range(flags.repeats)]
                fraction = median(ratios)
                rows.append(
                    {
                        "running_model": running,
                        "initialisation": starting,
                        "starting": count,
                        "slowdown": round(fraction, 3),
                        "slowdown_per_instance": round(fraction / count, 3),
                        "runs": [round(each, 3) for each in ratios],
                        "load_average": round(os.getloadavg()[0], 2),
                    }
                )
                print(rows[-1], flush=True)
    write_result("start-slowdown", {"versions": versions("nvidia-pytriton"), "rows": rows})


def model_name(role: str, kind: str) -> str:
    return f"{role}-{kind.replace(' ', '-')}"


def write_models(repository: Path) -> list[str]:
    """A model for each kind of running and of starting instance."""
    bodies = {model_name("run", kind): ("pass", execute) for kind, execute in RUNNING.items()}
    bodies |= {model_name("init", kind): (initialize, "pass") for kind, initialize in STARTING.items()}
    for name, (initialize, execute) in bodies.items():
        folder = repository / name
        (folder / "1").mkdir(parents=True)
        source = folder / "1" / "model.py"
        source.write_text(_MODEL.format(initialize=initialize, execute=execute))
        # Written by the server's first start, it would make the first change a reload.
        py_compile.compile(str(source), doraise=True)
        (folder / "config.pbtxt").write_text(f'name: "{name}"{_CONFIG}')
    return list(bodies)


async def slowdown(server: Server, running: str, starting: str, count: int) -> float:
    """By which fraction requests of a running model, one after the other, take longer while instances of the other start."""
    control, ends = TritonModelControl(), list[tuple[float, float]]()
    async with triton.InferenceServerClient(server.grpc_address.authority) as client:
        requests = asyncio.create_task(_one_after_the_other(client, running, ends))
        await asyncio.sleep(BEFORE_S)
        begin_s = time.monotonic()
        await control.change(server, starting, ModelState(1 + count, 1))
        end_s = time.monotonic()
        await asyncio.sleep(AFTER_S)
        requests.cancel()
        await asyncio.gather(requests, return_exceptions=True)
    await control.change(server, starting, ModelState(1, 1))
    await control.close()
    before = [duration_s for at_s, duration_s in ends if at_s + duration_s < begin_s]
    during = [duration_s for at_s, duration_s in ends if begin_s <= at_s < end_s - 2 * BATCH_S]
    return mean(during) / mean(before[5:]) - 1.0


async def _one_after_the_other(client: triton.InferenceServerClient, model: str, ends: list[tuple[float, float]]) -> None:
    tensor = triton.InferInput("INPUT", [1, 1], "INT64")
    tensor.set_data_from_numpy(np.zeros((1, 1), dtype=np.int64))
    while True:
        at_s = time.monotonic()
        await client.infer(model, [tensor])
        ends.append((at_s, time.monotonic() - at_s))


if __name__ == "__main__":
    main()
