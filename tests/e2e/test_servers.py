"""Launching, changing and stopping real Triton servers."""

from __future__ import annotations

import asyncio
import os
import py_compile
import re
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.local import launch_command
from themis_triton.adapters.local.discovery import find_launched
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.local.triton_install import find_triton
from themis_triton.adapters.process_end import group_members, stop_everything, stop_process, wait_until
from themis_triton.adapters.process_identity import find_process
from themis_triton.adapters.processes import shared_memory_prefix, spawn
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.triton.metrics import TritonMetrics
from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.core.address import Address
from themis_triton.core.config import LocalLaunchConfig
from themis_triton.core.errors import ChangeRefusedError, LaunchFailedError, ServerError
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.observation import ServerReading
from themis_triton.emulation.process_start import PROCESS_START_VARIABLE, process_age_s

pytestmark = pytest.mark.e2e

T = TypeVar("T")
Launch = Callable[..., AbstractContextManager[Server]]
DETECTOR, CLASSIFIER = "video-detector", "video-classifier"
REPOSITORY = Path(__file__).parents[2] / "model_repository"
OFFSETS = {DETECTOR: 1.0, CLASSIFIER: 2.0}
PROCESS_START_S = 3.0


def with_control(use: Callable[[TritonModelControl], Awaitable[T]], answer_timeout_s: float = 60.0) -> T:
    async def run() -> T:
        control = TritonModelControl(answer_timeout_s)
        try:
            return await use(control)
        finally:
            await control.close()

    return asyncio.run(run())


def change(server: Server, model: str, state: ModelState) -> ModelState:
    return with_control(lambda control: control.change(server, model, state))


def read(state_directory: Path, server: Server, *models: str) -> dict[str, ModelState]:
    return with_control(lambda control: control.read_models(server, models))


def instance_pids(server: Server, model: str) -> set[int]:
    """The processes of a model's instances."""
    assert server.process is not None
    return {child.pid for child in psutil.Process(server.process.pid).children(recursive=True) if f"/{model}/" in " ".join(child.cmdline())}


def shows_key(server: Server) -> bool:
    """Whether other users can read the key of model control in the list of processes."""
    assert server.process is not None
    assert server.model_control_key is not None
    return server.model_control_key.encode() in Path(f"/proc/{server.process.pid}/cmdline").read_bytes()


def double(server: Server, model: str, values: list[float]) -> list[float]:
    """One real request of one row; what the model answers."""
    tensor = tritonclient.grpc.InferInput("INPUT", [1, len(values)], "FP32")
    tensor.set_data_from_numpy(np.array([values], dtype=np.float32))
    with tritonclient.grpc.InferenceServerClient(server.grpc_address.authority) as client:
        return [float(value) for value in client.infer(model, [tensor]).as_numpy("OUTPUT")[0]]


@contextmanager
def listening() -> Iterator[int]:
    """Somebody else on a loopback port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextmanager
def foreign_server(folder: Path, repository: Path, model: str) -> Iterator[Server]:
    """A Triton that somebody else started, straight on a model repository and without a key."""
    install = find_triton(folder)
    grpc, http, metrics = free_ports(3)
    listen = [f"--{kind}-address=127.0.0.1" for kind in ("grpc", "http", "metrics")]
    ports = [f"--grpc-port={grpc}", f"--http-port={http}", f"--metrics-port={metrics}"]
    load = [f"--model-repository={repository}", "--model-control-mode=explicit", f"--load-model={model}"]
    command = [str(install.binary), f"--backend-directory={install.backend_directory}", *load, *listen, *ports]
    process = spawn(command, {**os.environ, "PATH": f"{install.path_prefix}{os.pathsep}{os.environ['PATH']}"}, folder / "theirs.log")
    grpc_address, http_address, metrics_address = (Address("127.0.0.1", port) for port in (grpc, http, metrics))
    server = Server("theirs", "cpu:0", grpc_address, http_address, metrics_address, Phase.SERVING, launched=False, process=process)
    try:
        asyncio.run(wait_answers(server, model))
        yield server
    finally:
        asyncio.run(stop_process(process, 2.0))


async def wait_answers(server: Server, model: str) -> None:
    async with asyncio.timeout(60.0), httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                if (await client.get(server.http_address.url(f"/v2/models/{model}/ready"))).status_code == httpx.codes.OK:
                    return
            except httpx.ConnectError:
                assert server.process is not None
                assert find_process(server.process) is not None
            await asyncio.sleep(0.05)


class TestLaunch:
    def test_a_launched_server_holds_just_the_planned_states_and_answers(self, state_directory: Path, launch: Launch) -> None:
        models = {DETECTOR: ModelState(1, 4), CLASSIFIER: ModelState(3, 8)}
        with launch("planned", models) as server:
            assert server.phase is Phase.WARMING
            assert read(state_directory, server, DETECTOR, CLASSIFIER, "nlp-translation") == models
            for model, offset in OFFSETS.items():
                assert double(server, model, [1.0, -2.5]) == [2.0 + offset, -5.0 + offset]

    def test_warm_up_reaches_every_instance_at_every_batch_size(self, launcher: LocalLauncher, launch: Launch) -> None:
        with launch("warmed", {CLASSIFIER: ModelState(2, 6)}) as server:
            asyncio.run(launcher.warm_up(server))
            assert asyncio.run(launcher.wait_idle(server))  # Triton counts a request shortly after it answered it.
            counters = asyncio.run(self.read_metrics(server)).models[CLASSIFIER]
        assert counters.success == 2 * len([1, 2, 4, 6])
        assert counters.inferences == 2 * (1 + 2 + 4 + 6)
        assert counters.failure == 0

    @staticmethod
    async def read_metrics(server: Server) -> ServerReading:
        metrics = TritonMetrics(SystemClock())
        try:
            return (await metrics.read_servers([server]))[0]
        finally:
            await metrics.close()

    def test_a_process_start_delays_a_launched_server_and_no_later_instance(
        self, launcher: LocalLauncher, launch: Launch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(PROCESS_START_VARIABLE, str(PROCESS_START_S))
        with launch("cold", {DETECTOR: ModelState(1, 8), CLASSIFIER: ModelState(1, 8)}) as server:
            assert server.process is not None
            assert process_age_s(server.process.pid) >= PROCESS_START_S

            async def grown_before_another_is_ready(control: TritonModelControl) -> bool:
                other = await launcher.launch("colder", "cpu-b", {CLASSIFIER: ModelState(1, 8)})
                try:
                    ready = asyncio.create_task(launcher.wait_ready(other))
                    grown = asyncio.create_task(control.change(server, CLASSIFIER, ModelState(3, 8)))
                    assert await wait_until(lambda: not shows_key(other), 30.0)
                    assert not ready.done(), "the key is hidden long before the server is ready"
                    first, _ = await asyncio.wait({ready, grown}, return_when=asyncio.FIRST_COMPLETED)
                    assert (await grown).instances == 3
                    assert (await ready).phase is Phase.WARMING
                finally:
                    await launcher.stop(other)
                return first == {grown}

            assert with_control(grown_before_another_is_ready)

    def test_a_port_taken_meanwhile_is_replaced(self, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
        with listening() as taken:
            answers = iter([(*free_ports(2), taken)])
            monkeypatch.setattr(launch_command, "free_ports", lambda count, _: next(answers, None) or free_ports(count))
            with launch("raced", {CLASSIFIER: ModelState(1, 8)}) as server:
                assert server.metrics_address.port != taken
                assert double(server, CLASSIFIER, [3.0]) == [8.0]

    def test_unknown_slots_and_models_are_refused(self, launcher: LocalLauncher, state_directory: Path) -> None:
        with pytest.raises(LaunchFailedError, match=r"device slot gpu-7 does not exist: expected one of launch.slots: cpu-a, cpu-b"):
            asyncio.run(launcher.launch("nowhere", "gpu-7", {DETECTOR: ModelState(1, 8)}))
        with pytest.raises(LaunchFailedError, match=r"launch.model_repository: there is no folder .*/nothing\. Fix: "):
            asyncio.run(launcher.launch("nothing", "cpu-a", {"nothing": ModelState(1, 1)}))
        assert not (state_directory / "servers" / "nothing").exists()

    def test_a_model_that_fails_to_load_is_told_with_the_logs_last_lines(self, launcher: LocalLauncher, fail_init_file: Path) -> None:
        fail_init_file.write_text(f"{CLASSIFIER}\n")
        try:
            server = asyncio.run(launcher.launch("unloadable", "cpu-a", {CLASSIFIER: ModelState(1, 8)}))
            with pytest.raises(LaunchFailedError, match=re.escape(str(server.log_file))) as raised:
                asyncio.run(launcher.wait_ready(server))
        finally:
            fail_init_file.unlink()
        assert "ended before it was ready" in str(raised.value)
        assert "out of memory" in str(raised.value)
        asyncio.run(launcher.stop(server))


class TestChange:
    def test_the_first_change_is_in_place(self, launch: Launch) -> None:
        with launch("in-place", {CLASSIFIER: ModelState(1, 8)}) as server:
            first = instance_pids(server, CLASSIFIER)
            assert change(server, CLASSIFIER, ModelState(3, 8)).instances == 3
            grown = instance_pids(server, CLASSIFIER)
            assert first < grown
            assert len(grown) == 3
            assert change(server, CLASSIFIER, ModelState(2, 8)).instances == 2
            assert instance_pids(server, CLASSIFIER) < grown
            log = Path(str(server.log_file)).read_text()
        assert log.count("TRITONBACKEND_ModelInstanceInitialize") == 3

    def test_a_rebatch_is_a_reload_and_what_follows_is_in_place(self, video_server: Server) -> None:
        change(video_server, CLASSIFIER, ModelState(1, 8))
        before = instance_pids(video_server, CLASSIFIER)
        assert change(video_server, CLASSIFIER, ModelState(1, 4)) == ModelState(1, 4)
        reloaded = instance_pids(video_server, CLASSIFIER) - before
        assert len(reloaded) == 1
        change(video_server, CLASSIFIER, ModelState(2, 4))
        assert reloaded < instance_pids(video_server, CLASSIFIER)
        assert double(video_server, CLASSIFIER, [0.5]) == [3.0]

    def test_a_failed_grow_leaves_the_old_count_serving(self, state_directory: Path, video_server: Server, fail_init_file: Path) -> None:
        change(video_server, DETECTOR, ModelState(2, 8))
        before = instance_pids(video_server, DETECTOR)
        fail_init_file.write_text(f"{DETECTOR}\n")
        try:
            with pytest.raises(ChangeRefusedError, match="out of memory"):
                change(video_server, DETECTOR, ModelState(3, 8))
        finally:
            fail_init_file.unlink()
        assert read(state_directory, video_server, DETECTOR) == {DETECTOR: ModelState(2, 8)}
        assert before <= instance_pids(video_server, DETECTOR)
        assert double(video_server, DETECTOR, [4.0]) == [9.0]
        assert change(video_server, DETECTOR, ModelState(3, 8)).instances == 3

    def test_changes_of_one_model_at_the_same_time_are_made_one_after_the_other(self, video_server: Server) -> None:
        async def both(control: TritonModelControl) -> list[ModelState]:
            states = [ModelState(count, 8) for count in (2, 4)]
            return list(await asyncio.gather(*(control.change(video_server, DETECTOR, state) for state in states)))

        assert [state.instances for state in with_control(both)] == [2, 4]

    def test_an_adopted_server_is_changed_in_place_from_the_first_time(self, tmp_path: Path) -> None:
        repository = tmp_path / "models"
        shutil.copytree(REPOSITORY / CLASSIFIER, repository / CLASSIFIER, ignore=shutil.ignore_patterns("__pycache__"))
        py_compile.compile(str(repository / CLASSIFIER / "1" / "model.py"), doraise=True)  # Else Python writes it after Triton has looked.
        with foreign_server(tmp_path, repository, CLASSIFIER) as server:
            adopted = replace(server, model_repository=str(repository))
            first = instance_pids(server, CLASSIFIER)

            async def run() -> ModelState:
                control = TritonModelControl()
                try:
                    return await control.change(adopted, CLASSIFIER, ModelState(2, 8))
                finally:
                    await control.close()

            assert asyncio.run(run()) == ModelState(2, 8)
            assert first < instance_pids(server, CLASSIFIER)

    def test_a_model_whose_file_cannot_be_read_is_changed_from_what_the_server_reports(self, launch: Launch) -> None:
        with launch("unreadable", {CLASSIFIER: ModelState(1, 8)}) as server:
            adopted = replace(server, launched=False, model_repository=None)
            assert change(adopted, CLASSIFIER, ModelState(2, 8)) == ModelState(2, 8)
            second = instance_pids(server, CLASSIFIER)
            assert change(adopted, CLASSIFIER, ModelState(3, 8)) == ModelState(3, 8)
            assert second < instance_pids(server, CLASSIFIER)
            with pytest.raises(ChangeRefusedError, match=r"does not serve model nothing, and its config.pbtxt cannot be read here"):
                change(adopted, "nothing", ModelState(1, 1))

    def test_model_control_needs_the_key_and_inference_does_not(self, video_server: Server) -> None:
        with pytest.raises(ChangeRefusedError, match="give the server's model_control_key"):
            change(replace(video_server, model_control_key="guess"), DETECTOR, ModelState(5, 8))
        with tritonclient.grpc.InferenceServerClient(video_server.grpc_address.authority) as client:
            for call in (
                client.get_model_repository_index,
                client.get_trace_settings,
                client.get_log_settings,
                client.get_system_shared_memory_status,
            ):
                with pytest.raises(InferenceServerException, match="restricted"):
                    call()
        assert httpx.post(video_server.http_address.url(f"/v2/repository/models/{DETECTOR}/unload"), trust_env=False).status_code == 403
        assert double(video_server, DETECTOR, [1.0]) == [3.0]

    def test_the_key_of_a_ready_server_is_on_no_command_line(self, video_server: Server, state_directory: Path) -> None:
        assert not shows_key(video_server)
        (found,) = [each for each in find_launched(state_directory) if each.name == video_server.name]
        assert found.model_control_key == video_server.model_control_key

    def test_a_silent_server_is_told_from_a_refusal(self, video_server: Server) -> None:
        with listening() as port:
            silent = replace(video_server, name="silent", grpc_address=Address("127.0.0.1", port))

            async def ask(control: TritonModelControl) -> None:
                await control.read_models(silent, [DETECTOR])

            async def run() -> None:
                control = TritonModelControl(read_timeout_s=0.3)
                try:
                    await ask(control)
                finally:
                    await control.close()

            with pytest.raises(ServerError, match=r"server silent at 127.0.0.1:\d+ did not answer") as raised:
                asyncio.run(run())
        assert not isinstance(raised.value, ChangeRefusedError)


class TestStop:
    def test_a_killed_server_is_noticed_and_cleaned_up(self, launcher: LocalLauncher, launch: Launch) -> None:
        with launch("killed", {CLASSIFIER: ModelState(2, 8)}) as server:
            assert asyncio.run(launcher.is_alive(server))
            assert server.process is not None
            os.kill(server.process.pid, signal.SIGKILL)
            with pytest.raises(LaunchFailedError, match=r"ended before it was ready; log .*killed\.log, last lines:"):
                asyncio.run(launcher.wait_ready(server))
            assert not asyncio.run(launcher.is_alive(server))
            assert asyncio.run(launcher.wait_idle(server))
        assert group_members(server.process) == []
        assert Path(str(server.log_file)).exists()
        assert not list(Path("/dev/shm").glob("themis-*-killed-*"))  # noqa: S108 - where the regions of a killed server would stay

    def test_a_server_that_hangs_is_killed(self, launch_config: LocalLaunchConfig, state_directory: Path) -> None:
        servers = LocalLauncher(replace(launch_config, stop_timeout_s=0.3), state_directory)
        server = asyncio.run(servers.launch("hung", "cpu-b", {CLASSIFIER: ModelState(1, 8)}))
        server = asyncio.run(servers.wait_ready(server))
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        asyncio.run(servers.stop(server))
        assert not asyncio.run(servers.is_alive(server))
        assert group_members(server.process) == []

    def test_an_adopted_server_is_never_stopped(self, launcher: LocalLauncher, video_server: Server) -> None:
        with pytest.raises(ServerError, match="was not launched by Themis"):
            asyncio.run(launcher.stop(replace(video_server, launched=False)))
        assert asyncio.run(launcher.is_alive(video_server))

    def test_a_reused_pid_is_not_the_process(self, launcher: LocalLauncher, video_server: Server) -> None:
        assert video_server.process is not None
        other = replace(video_server, process=replace(video_server.process, start_ticks=video_server.process.start_ticks - 100))
        assert not asyncio.run(launcher.is_alive(other))

    def test_idle_means_that_requests_in_flight_have_ended(self, launcher: LocalLauncher, video_server: Server) -> None:
        async def run() -> tuple[bool, bool]:
            requests = [asyncio.create_task(asyncio.to_thread(double, video_server, DETECTOR, [float(i)])) for i in range(12)]
            await asyncio.sleep(0)
            idle = await launcher.wait_idle(video_server)
            ended = all(request.done() for request in requests)
            await asyncio.gather(*requests)
            return idle, ended

        assert asyncio.run(run()) == (True, True)

    def test_orphans_are_found_whole_and_everything_can_be_stopped(self, tmp_path: Path, launch_config: LocalLaunchConfig) -> None:
        servers = LocalLauncher(launch_config, tmp_path)
        launched = asyncio.run(servers.launch("lost", "cpu-b", {CLASSIFIER: ModelState(2, 4)}))
        try:
            (orphan,) = find_launched(tmp_path)
            assert orphan == launched
            assert asyncio.run(servers.wait_ready(orphan)).phase is Phase.WARMING
        finally:
            ended = stop_everything(tmp_path, timeout_s=1.0)
        assert launched.process is not None
        assert launched.process.pid in ended
        assert find_launched(tmp_path) == ()
        assert stop_everything(tmp_path) == ()
        assert not list(Path("/dev/shm").glob(f"{shared_memory_prefix(tmp_path)}*"))  # noqa: S108 - as above
