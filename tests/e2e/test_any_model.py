"""Models that the settings do not name, beside those that Themis scales: each call reaches a server that holds its model."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import yaml
from tritonclient.utils import InferenceServerException

from tests.certificates import authority, issued_certificate, self_made_certificate
from tests.e2e.clients import Clients
from tests.e2e.daemon_setup import ADOPTED, CLASSIFIER, DETECTOR, POLL_S, QUICK, TIMEOUT_S, Sidecar, Status, instances, launched, traffic
from tests.e2e.odd_models import COMPLETED, FILE, ODD_MODELS, OWN, OWN_DATA, OddCalls, completed_model, odd_models, picky_model
from tests.e2e.tls_front import tls_front
from tests.e2e.triton_process import REPOSITORY, TritonProcess, running_triton
from tests.unit.fakes import FakeRecorder, FakeRoutes
from themis_triton.act.actuators import Actuators
from themis_triton.act.backoff import Backoff
from themis_triton.act.executor import Executor
from themis_triton.act.fleet import Fleet
from themis_triton.act.launch_rests import SAME_FAILURES
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.process_end import stop_everything
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.adapters.triton.warmup import remedy
from themis_triton.commands.settings_commands import init_from_command
from themis_triton.commands.tls_flags import TlsFlags
from themis_triton.core.action import Action, ActionKind, Outcome, OutcomeKind, Plan
from themis_triton.core.address import Address
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig, ModelInputs
from themis_triton.core.errors import WarmupFailedError
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.observation import launch_of
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped

pytestmark = pytest.mark.e2e
ODD = f"_odd.v1+~{'n' * 191}"
"""Two hundred characters; the Python backend loads no names with spaces, quotes or Unicode."""
ENSEMBLE, LATER = "_both stagés ☃.v1", "loaded-later"
SURGE_RPS = 60.0
PAUSE_S = 0.02  # between two calls
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
    chain_ensemble(folder, ENSEMBLE, DETECTOR, CLASSIFIER)
    return folder


def chain_ensemble(folder: Path, name: str, first: str, second: str) -> None:
    """An ensemble of two emulated models, one after the other."""
    (folder / name / "1").mkdir(parents=True)
    tensor = "data_type: TYPE_FP32 dims: [-1]"
    steps = [_STEP.format(model=first, source="INPUT", to="between"), _STEP.format(model=second, source="between", to="OUTPUT")]
    (folder / name / "config.pbtxt").write_text(
        f'name: "{name}"\nplatform: "ensemble"\nmax_batch_size: 8\ninput [{{ name: "INPUT" {tensor} }}]\n'
        f'output [{{ name: "OUTPUT" {tensor} }}]\nensemble_scheduling {{ {" ".join(f"step {{ {step} }}" for step in steps)} }}\n'
    )


@dataclass
class Calls(Clients):
    """Calls of a model one after the other."""

    model: str
    expected: float = 16.0
    rows: int = 1

    async def one(self) -> None:
        tensor = tritonclient.grpc.InferInput("INPUT", [self.rows, 1], "FP32")
        tensor.set_data_from_numpy(np.full((self.rows, 1), 3.0, dtype=np.float32))
        try:
            answer = (await self.client.infer(self.model, [tensor], client_timeout=20.0)).as_numpy("OUTPUT")
            if answer.tolist() != [[self.expected]] * self.rows:
                self.wrong.append(f"{answer}")
        except InferenceServerException as error:
            self.wrong.append(str(error))
        await asyncio.sleep(PAUSE_S)


def odd_copy(models: Path) -> None:
    """The classifier under a name that few expect."""
    shutil.copytree(REPOSITORY / CLASSIFIER, models / ODD)
    config = models / ODD / "config.pbtxt"
    config.write_text(config.read_text().replace(f'name: "{CLASSIFIER}"', f'name: "{ODD}"'))


def calls(sidecar: Sidecar, model: str, expected: float = 16.0) -> AbstractAsyncContextManager[Calls]:
    return Calls(tritonclient.grpc.aio.InferenceServerClient(sidecar.grpc_address), model, expected).running()


def sidecar_beside(adopted: Server, models: Path, folder: Path, *, slots: bool = True, odd: bool = False, **more: Any) -> Sidecar:
    """`more`: further keys of the adopted server's section. Without `slots` no server can be launched. `odd`: scale `ODD` too."""
    sample = yaml.safe_load((shipped("config") / "themis.yaml").read_text())
    grpc, http, status = (f"127.0.0.1:{port}" for port in free_ports(3))
    settings: dict[str, Any] = {
        "state_directory": str(folder / "state"),
        "servers": {
            ADOPTED: {
                **{kind: str(getattr(adopted, f"{kind}_address")) for kind in ("grpc", "http", "metrics")},
                "device": "cpu:0",
                "model_repository": str(models),
                **more,
            }
        },
        "envoy": {"grpc_listen": grpc, "http_listen": http},
        "status": {"address": status},
        "models": {name: sample["models"][name] for name in (DETECTOR, CLASSIFIER)},
        "pipelines": {"video": sample["pipelines"]["video"]},
        "launch": {"slots": ["cpu:1"], "model_repository": str(models), "stop_timeout_s": 3, "drain_timeout_s": 10},
        "policy": QUICK,
    }
    if not slots:
        del settings["launch"]
    if odd:
        settings["models"][ODD] = sample["models"][CLASSIFIER]
        settings["pipelines"]["odd"] = {"model": ODD, "slo_ms": 300}
    path = folder / "themis.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return Sidecar(path, folder / "state", adopted, grpc, status, folder / "daemon.log")


def with_odd_models(sidecar: Sidecar, more: Path) -> None:
    """The settings with the odd models as further stages of the pipeline, so that launched servers hold them."""
    settings = yaml.safe_load(sidecar.settings.read_text())
    surface = {"form": "contention", "alpha_ms": 0.1, "beta_ms": 0.1, "gamma_ms": 0.1, "zeta_ms": 1}
    model = {"instances": [1, 4], "max_batch": 4, "profile": {"surface": surface}}
    settings["models"] |= {name: model | ({"warmup": "real.npz"} if name == FILE else {}) for name in ODD_MODELS}
    settings["pipelines"]["video"]["stages"] += ODD_MODELS
    settings["launch"]["model_repository"] = [settings["launch"]["model_repository"], str(more)]
    sidecar.settings.write_text(yaml.safe_dump(settings, sort_keys=False))


def odd_calls(sidecar: Sidecar) -> AbstractAsyncContextManager[OddCalls]:
    return OddCalls(tritonclient.grpc.aio.InferenceServerClient(sidecar.grpc_address)).running(4)


def listed(status: Status, server: str) -> list[str]:
    return next((list(each["ready_models"] or ()) for each in status["servers"] if each["name"] == server), [])


def test_models_that_the_settings_do_not_name_are_answered_through_a_launch_and_a_retirement(tmp_path: Path) -> None:
    models, more = repository(tmp_path / "models"), tmp_path / "more"
    odd_models(models, more)
    held, arguments = [DETECTOR, CLASSIFIER, ENSEMBLE, *ODD_MODELS], [f"--model-repository={more}"]
    with running_triton(tmp_path, held, repository=models, exit_timeout_s=5, arguments=arguments) as triton:
        metrics = Address.parse(triton.metrics_url.removeprefix("http://").removesuffix("/metrics"))
        addresses = Address.parse(triton.grpc_address), Address.parse(triton.http_address), metrics
        sidecar = sidecar_beside(Server(ADOPTED, "cpu:0", *addresses, Phase.SERVING, launched=False), models, tmp_path)
        with_odd_models(sidecar, more)

        async def scenario() -> None:
            first = await sidecar.start()
            assert listed(first, ADOPTED) == sorted(held)
            async with calls(sidecar, ENSEMBLE) as ensemble, odd_calls(sidecar) as odd:
                async with traffic(sidecar, SURGE_RPS) as load:
                    second = await sidecar.until("second server", lambda s: bool(launched(s, "serving")))
                    assert set(ODD_MODELS) < set(launched(second)[0]["models"])
                    await asyncio.gather(ensemble.more(60), odd.more(20))
                    await check_index(sidecar)
                    await check_a_model_loaded_by_hand(sidecar)
                    summary = await load.end()
                await sidecar.until("retirement", lambda s: not launched(s))
                await asyncio.gather(ensemble.more(5), odd.more(5))
            assert (summary.failed, summary.errors) == (0, {})
            assert (ensemble.wrong, ensemble.done >= 65) == ([], True)
            assert odd.wrong == []

        try:
            asyncio.run(scenario())
        finally:
            sidecar.end()
            stop_everything(sidecar.state, timeout_s=1.0)


def test_requests_of_several_rows_are_planned_as_such_and_answered_by_servers_with_smaller_batches(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(REPOSITORY / DETECTOR, models / DETECTOR)
    with running_triton(tmp_path, [DETECTOR], repository=models, exit_timeout_s=5) as triton:
        metrics = Address.parse(triton.metrics_url.removeprefix("http://").removesuffix("/metrics"))
        addresses = Address.parse(triton.grpc_address), Address.parse(triton.http_address), metrics
        sidecar = sidecar_beside(Server(ADOPTED, "cpu:0", *addresses, Phase.SERVING, launched=False), models, tmp_path)
        settings = yaml.safe_load(sidecar.settings.read_text())
        settings["models"] = {DETECTOR: settings["models"][DETECTOR] | {"max_batch": 4}}
        settings["pipelines"] = {"video": {"stages": [DETECTOR], "slo_ms": 500}}
        sidecar.settings.write_text(yaml.safe_dump(settings, sort_keys=False))

        async def scenario() -> None:
            await sidecar.start()
            client = tritonclient.grpc.aio.InferenceServerClient(sidecar.grpc_address)
            async with Calls(client, DETECTOR, 7.0, rows=6).running(4) as load:
                status = await sidecar.until("second server", lambda s: bool(launched(s, "serving")))
                await load.more(40)
            assert (load.wrong, load.done >= 40) == ([], True)
            assert status["pipelines"][0]["estimate"]["sizes"] == [{"rows": 6.0, "executed": 1.0}]
            assert f"requests of {DETECTOR} have 6 rows of a batch" in sidecar.command("status").stdout

        try:
            asyncio.run(scenario())
        finally:
            sidecar.end()
            stop_everything(sidecar.state, timeout_s=1.0)


def test_a_server_with_tls_that_refuses_changes_is_said_once_and_scaled_by_servers_alone(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in (DETECTOR, CLASSIFIER):
        shutil.copytree(REPOSITORY / name, models / name)
    tls = self_made_certificate(tmp_path / "tls")
    secure = [f"--grpc-{flag}={tls[key]}" for flag, key in (("server-cert", "certificate"), ("server-key", "key"), ("root-cert", "ca"))]
    arguments = ["--model-control-mode=none", "--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true", *secure]
    proxy = issued_certificate(tmp_path / "proxy", authority(tmp_path / "authority"))
    with ExitStack() as stack:
        triton = stack.enter_context(running_triton(tmp_path, [], repository=models, exit_timeout_s=5, arguments=arguments))
        metrics = triton.metrics_url.removeprefix("http://").removesuffix("/metrics")
        check_init_from(triton, tls, tmp_path / "from-server.yaml")
        grpc, *plain = (int(where.rpartition(":")[2]) for where in (triton.grpc_address, triton.http_address, metrics))
        secure_ports = stack.enter_context(tls_front(tmp_path / "front", plain, proxy))
        own, http, counters = (Address("localhost", port) for port in (grpc, *secure_ports))  # The certificates are for this name.
        adopted = Server(ADOPTED, "cpu:0", own, http, counters, Phase.SERVING, launched=False)
        sidecar = sidecar_beside(adopted, models, tmp_path, tls=tls, proxy_tls=proxy)
        written = yaml.safe_load(sidecar.settings.read_text())
        written["servers"][ADOPTED] |= {key: f"https://{written['servers'][ADOPTED][key]}" for key in ("http", "metrics")}
        sidecar.settings.write_text(yaml.safe_dump(written, sort_keys=False))

        async def scenario() -> None:
            first = await sidecar.start()
            assert first["resting"][f"{ADOPTED}/{DETECTOR}"].endswith("Fix: start it with --model-control-mode=explicit --load-model=*")
            async with traffic(sidecar, SURGE_RPS) as load:
                await load.more(60)  # These are answered over TLS.
                await asyncio.to_thread(check_rest, written["envoy"]["http_listen"])
                served = await sidecar.until("second server", lambda s: bool(launched(s, "serving")))
                summary = await load.end()
            assert (summary.failed, summary.errors) == (0, {})
            assert served["usage"]["failed_actions"] == {}

        try:
            asyncio.run(scenario())
            assert sidecar.log.read_text().count("model_control_missing") == 1
        finally:
            sidecar.end()
            stop_everything(sidecar.state, timeout_s=1.0)


def test_an_adopted_server_on_ipv6_that_restarts_is_planned_from_the_counts_and_the_mode_that_it_starts_with(tmp_path: Path) -> None:
    models, ports, host = tmp_path / "models", free_ports(3), loopback()
    for name in (DETECTOR, CLASSIFIER):
        shutil.copytree(REPOSITORY / name, models / name)
    odd_copy(models)
    http, grpc, metrics = (Address(host, port) for port in ports)
    sidecar = sidecar_beside(
        Server(ADOPTED, "cpu:0", grpc, http, metrics, Phase.SERVING, launched=False), models, tmp_path, slots=False, odd=True
    )

    settings = yaml.safe_load(sidecar.settings.read_text())
    settings["models"][DETECTOR]["instances"] = [1, 3]
    sidecar.settings.write_text(yaml.safe_dump(settings, sort_keys=False))

    @contextmanager
    def running(folder: str, *arguments: str) -> Iterator[None]:
        (tmp_path / folder).mkdir()
        loaded = [] if arguments else [DETECTOR, CLASSIFIER, ODD]
        with running_triton(tmp_path / folder, loaded, repository=models, exit_timeout_s=5, ports=ports, host=host, arguments=arguments):
            yield

    async def restarted(before: Status) -> None:
        assert instances(before, DETECTOR) == 1
        words = f"{DETECTOR} has 5 instances on {ADOPTED} instead of 1 instance, without an action of Themis; plans start from this"
        await sidecar.until("the new count", lambda s: words in [event["sentence"] for event in s["events"]])
        status = await sidecar.until("a count inside the bounds", lambda s: 0 < instances(s, DETECTOR) <= 3)
        assert (status["usage"]["failed_actions"], status["tick_errors"]) == ({}, 0)
        assert words in sidecar.command("history").stdout
        async with calls(sidecar, ODD, 8.0) as load:
            await load.more(3)
            await sidecar.until(
                "the odd model's requests", lambda s: any(p["name"] == "odd" and p["estimate"]["recent_rps"] for p in s["pipelines"])
            )
        assert load.wrong == []

    try:
        with running("first"):
            status = asyncio.run(sidecar.start())
        config = models / DETECTOR / "config.pbtxt"
        config.write_text(config.read_text().replace("{ count: 1,", "{ count: 5,"))
        with running("second"):
            asyncio.run(restarted(status))
        with running("third", "--model-control-mode=none"):
            # A change that was under way before the server was asked is refused once.
            asyncio.run(sidecar.until("the other mode", lambda s: f"{ADOPTED}/{DETECTOR}" in s["resting"]))
    finally:
        sidecar.end()


def check_rest(address: str) -> None:
    """A request over REST is answered, through the proxy with TLS."""
    tensor = tritonclient.http.InferInput("INPUT", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.full((1, 1), 3.0, dtype=np.float32))
    with tritonclient.http.InferenceServerClient(address) as client:
        assert client.infer(DETECTOR, [tensor]).as_numpy("OUTPUT").shape == (1, 1)


def check_init_from(triton: TritonProcess, tls: dict[str, str], path: Path) -> None:
    """A server that asks for a certificate is read with one; its certificate is for another name than the address."""
    source, metrics = Address.parse(triton.grpc_address), triton.metrics_url.removeprefix("http://").removesuffix("/metrics")
    flags = TlsFlags(**{name: Path(file) for name, file in tls.items()}, server_name="localhost")
    assert init_from_command(path, force=False, source=str(source), http=triton.http_address, metrics=metrics, tls=flags) == 0
    secure = replace(source, tls=True, server_name="localhost", ca=tls["ca"], certificate=tls["certificate"], key=tls["key"])
    assert load_settings(path).servers[0].grpc_address == secure


def loopback() -> str:
    """The loopback address of IPv6; where this machine has none, that of IPv4."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return "::1"
    except OSError:
        return "127.0.0.1"


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


def test_models_that_refuse_zeros_or_have_no_configuration_are_launched_whatever_their_names(tmp_path: Path) -> None:
    own, file, bare, completed = OWN, FILE, "picky", COMPLETED
    for name in (own, file, bare):
        picky_model(tmp_path / "models", name, OWN_DATA if name == own else "")
    completed_model(tmp_path / "more")
    np.savez(tmp_path / "real.npz", SIZE=np.array([2.0], dtype=np.float32))
    inputs = {file: ModelInputs(file=tmp_path / "real.npz")}
    config = LocalLaunchConfig(
        (DeviceSlot("cpu-1", "cpu:1"),),
        tmp_path / "models",
        ready_timeout_s=40.0,
        stop_timeout_s=2.0,
        inputs=inputs,
        further_repositories=(tmp_path / "more",),
    )
    launcher = LocalLauncher(config, tmp_path / "state")

    async def scenario() -> None:
        control = TritonModelControl()
        server = await launcher.launch("one", "cpu-1", dict.fromkeys((own, file, bare, completed), ModelState(1, 1)))
        try:
            ready = await launcher.wait_ready(server)
            await launcher.warm_up(replace(ready, models={name: ready.models[name] for name in (own, file, completed)}))
            assert await control.read_models(ready, [completed]) == {completed: ModelState(1, 4)}
            assert await control.change(ready, completed, ModelState(2, 4)) == ModelState(2, 4)
            with pytest.raises(WarmupFailedError, match="SIZE must be positive") as failure:
                await launcher.warm_up(replace(ready, models={bare: ready.models[bare]}))
            assert (failure.value.model, failure.value.remedy) == (bare, remedy(bare, ModelInputs(), own=False))
        finally:
            await control.close()
            await launcher.stop(server)

    asyncio.run(scenario())


def test_launches_whose_warm_ups_fail_alike_rest_until_the_models_files_change(tmp_path: Path) -> None:
    models = tmp_path / "models"
    picky_model(models, "picky")
    config = LocalLaunchConfig((DeviceSlot("cpu-1", "cpu:1"),), models, ready_timeout_s=40.0, stop_timeout_s=0.5)
    control, launcher, recorder = TritonModelControl(), LocalLauncher(config, tmp_path / "state"), FakeRecorder()
    actuators = Actuators(control, FakeRoutes([]), launcher, recorder, SystemClock())
    executor = Executor(actuators, Fleet(recorder), Backoff(0.1, 0.1), ("picky",))

    async def launch(number: int) -> Outcome:
        models = {"picky": ModelState(1, 1)}
        executor.submit(Plan("test", (Action(f"{number}", ActionKind.LAUNCH, "test", f"s{number}", slot="cpu-1", models=models),)))
        for _ in range(int(TIMEOUT_S / POLL_S)):
            if outcomes := executor.collect():
                return outcomes[0]
            await asyncio.sleep(POLL_S)
        raise AssertionError(f"launch {number} has not ended within {TIMEOUT_S:g} s")

    async def scenario() -> None:
        try:
            for number in range(SAME_FAILURES):
                assert executor.resting == {}
                assert "SIZE must be positive" in (await launch(number)).detail
            assert executor.resting[launch_of("cpu-1", "picky")].startswith("warm-up of model picky failed 3 times with the same cause")
            assert launch_of("cpu-1", "picky") in executor.backing_off(1e12)
            await executor.end_rests()
            assert launch_of("cpu-1", "picky") in executor.resting
            config = models / "picky" / "config.pbtxt"
            config.write_text(config.read_text() + OWN_DATA)
            await executor.end_rests()
            assert executor.resting == {}
            assert (await launch(SAME_FAILURES)).kind is OutcomeKind.DONE
            assert [(server.name, server.phase) for server in executor.fleet.all()] == [("s3", Phase.SERVING)]
        finally:
            await executor.cancel()
            await launcher.stop_all()
            await control.close()

    asyncio.run(scenario())
