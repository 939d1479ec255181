"""Models that the settings do not name, beside those that Themis scales: each call reaches a server that holds its model."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import yaml
from tritonclient.utils import InferenceServerException

from tests.e2e.daemon_setup import ADOPTED, CLASSIFIER, DETECTOR, QUICK, Sidecar, Status, launched, traffic
from tests.e2e.triton_process import REPOSITORY, running_triton
from themis_triton.adapters.processes import stop_everything
from themis_triton.adapters.sockets import free_ports
from themis_triton.core.address import Address
from themis_triton.core.fleet import Phase, Server
from themis_triton.settings.shipped import shipped

pytestmark = pytest.mark.e2e
ENSEMBLE, LATER = "both stages.v1", "loaded-later"
SURGE_RPS = 60.0
_STEP = (
    'model_name: "{model}" model_version: -1 input_map {{ key: "INPUT" value: "{source}" }} output_map {{ key: "OUTPUT" value: "{to}" }}'
)


def repository(folder: Path) -> Path:
    """The video models, an ensemble of both, and one model that is loaded by hand later."""
    for name in (DETECTOR, CLASSIFIER):
        shutil.copytree(REPOSITORY / name, folder / name)
    shutil.copytree(REPOSITORY / CLASSIFIER, folder / LATER)
    config = folder / LATER / "config.pbtxt"
    config.write_text(config.read_text().replace(f'name: "{CLASSIFIER}"', f'name: "{LATER}"'))
    (folder / ENSEMBLE / "1").mkdir(parents=True)
    tensor = "data_type: TYPE_FP32 dims: [-1]"
    steps = [_STEP.format(model=DETECTOR, source="INPUT", to="between"), _STEP.format(model=CLASSIFIER, source="between", to="OUTPUT")]
    (folder / ENSEMBLE / "config.pbtxt").write_text(
        f'name: "{ENSEMBLE}"\nplatform: "ensemble"\nmax_batch_size: 8\ninput [{{ name: "INPUT" {tensor} }}]\n'
        f'output [{{ name: "OUTPUT" {tensor} }}]\nensemble_scheduling {{ {" ".join(f"step {{ {step} }}" for step in steps)} }}\n'
    )
    return folder


@dataclass
class Calls:
    """Calls one after the other, for as long as the block lasts; what failed or was wrong."""

    client: tritonclient.grpc.aio.InferenceServerClient
    model: str
    done: int = 0
    wrong: list[str] = field(default_factory=list)
    ended: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def go_on(self) -> None:
        tensor = tritonclient.grpc.InferInput("INPUT", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[3.0]], dtype=np.float32))
        while True:
            try:
                answer = (await self.client.infer(self.model, [tensor], client_timeout=20.0)).as_numpy("OUTPUT")
                if answer.tolist() != [[16.0]]:
                    self.wrong.append(f"{answer}")
            except InferenceServerException as error:
                self.wrong.append(str(error))
            async with self.ended:
                self.done += 1
                self.ended.notify_all()
            await asyncio.sleep(0.02)

    async def more(self, count: int) -> None:
        enough = self.done + count
        async with asyncio.timeout(30.0), self.ended:
            await self.ended.wait_for(lambda: self.done >= enough)


@asynccontextmanager
async def calls(sidecar: Sidecar, model: str) -> AsyncIterator[Calls]:
    client = tritonclient.grpc.aio.InferenceServerClient(sidecar.grpc_address)
    running = Calls(client, model)
    task = asyncio.create_task(running.go_on())
    try:
        yield running
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()


def sidecar_beside(adopted: Server, models: Path, folder: Path) -> Sidecar:
    sample = yaml.safe_load((shipped("config") / "themis.yaml").read_text())
    grpc, http, admin, status = (f"127.0.0.1:{port}" for port in free_ports(4))
    settings = {
        "state_directory": str(folder / "state"),
        "servers": {
            ADOPTED: {
                **{kind: str(getattr(adopted, f"{kind}_address")) for kind in ("grpc", "http", "metrics")},
                "device": "cpu:0",
                "model_repository": str(models),
            }
        },
        "envoy": {"grpc_listen": grpc, "http_listen": http, "admin": admin},
        "status": {"address": status},
        "models": {name: sample["models"][name] for name in (DETECTOR, CLASSIFIER)},
        "pipelines": {"video": sample["pipelines"]["video"]},
        "launch": {"slots": ["cpu:1"], "model_repository": str(models), "stop_timeout_s": 3, "drain_timeout_s": 10},
        "policy": QUICK,
    }
    path = folder / "themis.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return Sidecar(path, folder / "state", adopted, grpc, status, folder / "daemon.log")


def listed(status: Status, server: str) -> list[str]:
    return next((list(each["ready_models"] or ()) for each in status["servers"] if each["name"] == server), [])


def test_models_that_the_settings_do_not_name_are_answered_through_a_launch_and_a_retirement(tmp_path: Path) -> None:
    models = repository(tmp_path / "models")
    with running_triton(tmp_path, [DETECTOR, CLASSIFIER, ENSEMBLE], repository=models, exit_timeout_s=5) as triton:
        metrics = Address.parse(triton.metrics_url.removeprefix("http://").removesuffix("/metrics"))
        addresses = Address.parse(triton.grpc_address), Address.parse(triton.http_address), metrics
        sidecar = sidecar_beside(Server(ADOPTED, "cpu:0", *addresses, Phase.SERVING, launched=False), models, tmp_path)

        async def scenario() -> None:
            first = await sidecar.start()
            assert listed(first, ADOPTED) == sorted([DETECTOR, CLASSIFIER, ENSEMBLE])
            async with calls(sidecar, ENSEMBLE) as ensemble:
                async with traffic(sidecar, SURGE_RPS) as load:
                    await sidecar.until("second server", lambda s: bool(launched(s, "serving")))
                    await ensemble.more(60)
                    await check_index(sidecar)
                    await check_a_model_loaded_by_hand(sidecar)
                    summary = await load.end()
                await sidecar.until("retirement", lambda s: not launched(s))
                await ensemble.more(5)
            assert (summary.failed, summary.errors) == (0, {})
            assert (ensemble.wrong, ensemble.done >= 65) == ([], True)

        try:
            asyncio.run(scenario())
        finally:
            sidecar.end()
            stop_everything(sidecar.state, timeout_s=1.0)


async def check_index(sidecar: Sidecar) -> None:
    """Clients can read the repository index, over both protocols, and change nothing."""
    client = tritonclient.grpc.aio.InferenceServerClient(sidecar.grpc_address)
    try:
        for _ in range(6):  # with two servers, not by the luck of the balancer
            index = await client.get_model_repository_index(client_timeout=5.0)
            assert {model.name for model in index.models if model.state == "READY"} >= {DETECTOR, CLASSIFIER, ENSEMBLE}
        with pytest.raises(InferenceServerException, match="administrative calls"):
            await client.unload_model(ENSEMBLE, client_timeout=5.0)
    finally:
        await client.close()


async def check_a_model_loaded_by_hand(sidecar: Sidecar) -> None:
    """A model that is loaded on the server is answered at once, and routes follow what the server holds."""
    direct = tritonclient.grpc.aio.InferenceServerClient(str(sidecar.adopted.grpc_address))
    through = tritonclient.grpc.aio.InferenceServerClient(sidecar.grpc_address)
    try:
        await direct.load_model(LATER, client_timeout=20.0)
        for _ in range(6):
            assert await through.is_model_ready(LATER, client_timeout=5.0)
        await sidecar.until("the new model's route", lambda s: LATER in listed(s, ADOPTED), timeout_s=12.0)
        for _ in range(6):
            assert await through.is_model_ready(LATER, client_timeout=5.0)
        await direct.unload_model(LATER, client_timeout=20.0)
        await sidecar.until("the model's absence", lambda s: LATER not in listed(s, ADOPTED), timeout_s=12.0)
        assert not await through.is_model_ready(LATER, client_timeout=5.0)
    finally:
        await direct.close()
        await through.close()
