"""`themis profile` on real Tritons with emulated models: the true surface comes back, interruptions cost nothing, errors are clear."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import REPOSITORY, Launch
from tests.e2e.rounds import measured_again_if_disturbed
from themis_triton.adapters.process_end import owned_processes, stop_everything, stop_process
from themis_triton.adapters.triton.model_config import state_of
from themis_triton.commands.bench_place import BenchFlags, BenchPlace, opened, resolve
from themis_triton.commands.profile_command import ProfileFlags, profile_command
from themis_triton.core.address import Address
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig
from themis_triton.core.errors import LaunchFailedError, ServerError, SettingsError
from themis_triton.core.fleet import ModelState, Server
from themis_triton.load.connection import open_stub, read_specs
from themis_triton.profile.bench import adopted_bench, adopted_server, launched_bench
from themis_triton.profile.drive import closed_loop
from themis_triton.profile.files import read_profile, replace_profile, resume_path
from themis_triton.profile.grid import GridPlan
from themis_triton.profile.identity import config_hash, model_config
from themis_triton.profile.inputs import InputOptions, build_request
from themis_triton.profile.measure import Accuracy, measure_point
from themis_triton.profile.run import ProfileOptions, Step, profile_model
from themis_triton.settings import load_settings
from themis_triton.settings.measured import PointSettings, TimeSource
from themis_triton.settings.profile import ProfileSettings, TableSettings

pytestmark = pytest.mark.e2e

MODEL = "video-detector"
LAUNCH = LocalLaunchConfig((DeviceSlot("profile", "cpu:0"),), REPOSITORY, stop_timeout_s=5.0)
EARLIER = ProfileSettings(table=TableSettings(batches=[1], instances=[1], latency_ms=[[5.0]]), instance_init_s=0.5)
QUICK = Accuracy(percentile=50.0, precision=0.02, max_seconds=6.0, max_samples=60)
TOLERANCE = 0.05


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    try:
        yield tmp_path / "state"
    finally:
        stop_everything(tmp_path / "state" / "profile", timeout_s=5.0)


def true_ms(batch: int, instances: int) -> float:
    return 4.0 * batch * instances + 8.0 * batch + 4.0 * instances + 20.0


def options(tmp_path: Path, plan: GridPlan | None = None) -> ProfileOptions:
    return ProfileOptions(tmp_path / "detector.yaml", plan or GridPlan(4, 3), QUICK, files=REPOSITORY / MODEL)


class InterruptedRunError(Exception):
    """Stands for Ctrl-C after some points."""


@pytest.mark.timed
@measured_again_if_disturbed
def test_an_interrupted_profile_goes_on_and_recovers_the_true_surface(tmp_path_factory: pytest.TempPathFactory, state: Path) -> None:
    folder = tmp_path_factory.mktemp("interrupted")
    reported: list[tuple[int, int]] = []

    def until(points: int) -> None:
        def tell(step: Step) -> None:
            if step.point is not None:
                reported.append((step.point.batch, step.point.instances))
                if len(reported) == points:
                    raise InterruptedRunError

        async def run() -> None:
            async with launched_bench(MODEL, LAUNCH, LAUNCH.slots[0], state) as bench:
                await profile_model(bench, options(folder), tell)

        asyncio.run(run())

    with pytest.raises(InterruptedRunError):
        until(4)
    assert resume_path(folder / "detector.yaml").exists()
    assert not (folder / "detector.yaml").exists()
    assert not owned_processes(state / "profile"), "the scratch server is gone"
    until(1000)
    assert len(reported) == len(set(reported)), "no point twice"

    profile = read_profile(folder / "detector.yaml")
    table = profile.table
    assert table is not None
    assert (table.batches[-1], table.instances[-1]) == (4, 3)
    for row, batch in zip(table.latency_ms, table.batches, strict=True):
        for value, count in zip(row, table.instances, strict=True):
            assert value == pytest.approx(true_ms(batch, count), rel=TOLERANCE), (batch, count)
    measured = profile.measured
    assert measured is not None
    assert measured.source is TimeSource.TRACE
    assert {(p.batch, p.instances) for p in measured.points} == set(reported)
    assert [fit.form for fit in measured.fits if fit.kept] == ["contention"]
    assert profile.instance_init_s == pytest.approx(0.5, abs=2.0)
    assert profile.instance_memory > 10 * 2**20
    assert measured.launch is not None
    assert measured.launch.load_s > 0.5


class SlowStub:
    """A stub whose requests leave 30 ms late: a client or a network that leaves an instance without a request after each response."""

    def __init__(self, stub: Any) -> None:
        self.stub = stub

    async def ModelInfer(self, message: Any, timeout: float) -> Any:  # noqa: ASYNC109, N802 - as in the generated stub
        await asyncio.sleep(0.03)
        return await self.stub.ModelInfer(message, timeout=timeout)


@pytest.mark.timed
@measured_again_if_disturbed
def test_instances_are_measured_busy_however_late_the_client_sends_its_next_request(state: Path) -> None:
    async def run() -> PointSettings:
        async with launched_bench(MODEL, LAUNCH, LAUNCH.slots[0], state) as bench:
            bench.stub = SlowStub(bench.stub)
            return await measure_point(bench, (1, 2), InputOptions(), QUICK)

    point = asyncio.run(run())
    assert point.service_ms == pytest.approx(true_ms(1, 2), rel=TOLERANCE)
    assert point.client_ms > point.service_ms + point.queue_ms


@pytest.mark.timed
@measured_again_if_disturbed
def test_an_adopted_server_is_measured_by_the_client_and_put_back(
    tmp_path_factory: pytest.TempPathFactory, state: Path, launch: Launch
) -> None:
    folder = tmp_path_factory.mktemp("adopted")
    with launch("adopted", {MODEL: ModelState(2, 8)}) as server:
        adopted = adopted_server(server.grpc_address, "cpu:0", server.model_control_key)

        async def run() -> ModelState:
            async with adopted_bench(MODEL, adopted, state) as bench:
                await profile_model(bench, replace(options(folder, GridPlan(2, 1)), files=REPOSITORY / MODEL), lambda _: None)
                client = bench.client
                inside = state_of((await client.get_model_config(MODEL)).config)
                assert inside.max_batch == 1, "no batcher while measuring"
            return await served_state(server)

        assert asyncio.run(run()) == ModelState(2, 8)
    profile = read_profile(folder / "detector.yaml")
    assert profile.measured is not None
    assert profile.measured.source is TimeSource.CLIENT
    assert profile.measured.launch is None
    assert profile.measured.config_hash == config_hash(model_config(REPOSITORY / MODEL)), "not stale as soon as it is written"
    for point in profile.measured.points:
        assert point.service_ms == pytest.approx(true_ms(point.batch, point.instances), rel=2 * TOLERANCE)


async def served_state(server: Server) -> ModelState:
    async with open_stub(server.grpc_address.authority, 5.0) as stub:
        from tritonclient.grpc import service_pb2  # noqa: PLC0415 - used here alone

        return state_of((await stub.ModelConfig(service_pb2.ModelConfigRequest(name=MODEL))).config)


def test_live_traffic_is_not_disturbed(tmp_path: Path, launch: Launch) -> None:
    with launch("live", {MODEL: ModelState(1, 8)}) as server:
        place = resolve(BenchFlags(repository=REPOSITORY, server=server.grpc_address.authority, state_directory=tmp_path))
        with pytest.raises(ServerError, match=rf"carries live traffic \({MODEL}\).*--allow-live"):
            asyncio.run(_open_under_load(place, server))


async def _open_under_load(place: BenchPlace, server: Server) -> None:
    async with open_stub(server.grpc_address.authority, 5.0) as stub:
        spec = (await read_specs(stub, [MODEL], 5.0))[MODEL]
        request = build_request(spec, 1, InputOptions(), batched=True)
        async with closed_loop(stub, request, 1, 5.0), opened(MODEL, place):
            pytest.fail("it was opened")


def test_a_server_that_dies_leaves_a_clear_error_and_what_was_measured(tmp_path: Path, state: Path) -> None:
    async def run() -> None:
        async with launched_bench(MODEL, LAUNCH, LAUNCH.slots[0], state) as bench:
            killed: list[asyncio.Task[bool]] = []

            def tell(step: Step) -> None:
                if step.point is not None and not killed:
                    assert bench.server.process is not None
                    killed.append(asyncio.ensure_future(stop_process(bench.server.process, 0.0)))

            await profile_model(bench, options(tmp_path), tell)

    message = (
        rf"model {MODEL}: its server ended during the measurement\. Fix: see its log .*\.log; the measured points are in .*\.resume; the"
    )
    with pytest.raises(ServerError, match=message):
        asyncio.run(run())
    assert resume_path(tmp_path / "detector.yaml").exists()
    assert not (tmp_path / "detector.yaml").exists()


BROKEN = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(request, "X").as_numpy() for request in requests]
        if len(arrays[0]) > 1:
            raise ValueError("batches are beyond me")
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", array)]) for array in arrays]
"""
BLIND = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", np.ones((1, 2), np.float32))]) for _ in requests]
"""
BROKEN_CONFIG = """
name: "broken"
backend: "python"
max_batch_size: 4
input [{ name: "X", data_type: TYPE_FP32, dims: [2] }]
output [{ name: "Y", data_type: TYPE_FP32, dims: [2] }]
instance_group [{ count: 1, kind: KIND_CPU }]
"""


def broken_launch(folder: Path) -> LocalLaunchConfig:
    """A repository with a model that answers single requests and fails on every batch."""
    (folder / "broken" / "1").mkdir(parents=True)
    (folder / "broken" / "config.pbtxt").write_text(BROKEN_CONFIG)
    (folder / "broken" / "1" / "model.py").write_text(BROKEN)
    return LocalLaunchConfig(LAUNCH.slots, folder, stop_timeout_s=5.0)


def test_a_model_that_answers_errors_is_named_with_its_words_and_the_profile_there_is_untouched(tmp_path: Path, state: Path) -> None:
    launch = broken_launch(tmp_path / "repository")
    out = tmp_path / "broken.yaml"
    replace_profile(out, EARLIER)
    before = out.read_bytes()

    async def run() -> None:
        async with launched_bench("broken", launch, launch.slots[0], state) as bench:
            await profile_model(bench, ProfileOptions(out, GridPlan(4, 1), QUICK), lambda _: None)

    with pytest.raises(ServerError, match=r"model broken answered INTERNAL: .*batches are beyond me.*\. Fix: see the server's log"):
        asyncio.run(run())
    assert out.read_bytes() == before
    assert resume_path(out).exists(), "single requests were measured"
    assert not owned_processes(state / "profile")


def test_a_type_that_cannot_be_made_up_is_measured_from_a_file(tmp_path: Path, state: Path) -> None:
    """The configuration is the one that `model_config_name` chooses; config.pbtxt has another type."""
    launch = replace(broken_launch(tmp_path / "repository"), model_config_name="half")
    folder = tmp_path / "repository" / "broken"
    (folder / "configs").mkdir()
    (folder / "configs" / "half.pbtxt").write_text(BROKEN_CONFIG.replace('X", data_type: TYPE_FP32', 'X", data_type: TYPE_BF16'))
    (folder / "1" / "model.py").write_text(BLIND)
    np.savez(tmp_path / "x.npz", X=np.ones(2, dtype=np.float32))

    async def run(inputs: InputOptions) -> None:
        async with launched_bench("broken", launch, launch.slots[0], state) as bench:
            await profile_model(bench, ProfileOptions(tmp_path / "half.yaml", GridPlan(1, 1), QUICK, inputs), lambda _: None)

    with pytest.raises(SettingsError, match=r"model broken: no values can be made up for input X of type BF16\. Fix: --data FILE\.npz"):
        asyncio.run(run(InputOptions()))
    assert not (tmp_path / "half.yaml").exists()
    asyncio.run(run(InputOptions(file=tmp_path / "x.npz")))
    assert read_profile(tmp_path / "half.yaml").measured is not None


PARTICULAR = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(request, "X").as_numpy() for request in requests]
        if any(array.shape[1:] != (7,) or not array.all() for array in arrays):
            raise ValueError("seven numbers, none of them zero")
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", array)]) for array in arrays]
"""
SETTINGS = """
state_directory: state
launch: {slots: [cpu:0], model_repository: repository, stop_timeout_s: 5}
models: {broken: {profile: profiles/broken.yaml, instances: [1, 1], max_batch: 1, inputs: {file: x.npz}}}
pipelines: {lone: {model: broken, slo_ms: 500}}
"""


def test_a_model_that_refuses_made_up_inputs_is_launched_and_profiled_with_those_of_the_settings(tmp_path: Path) -> None:
    broken_launch(tmp_path / "repository")
    folder = tmp_path / "repository" / "broken"
    (folder / "config.pbtxt").write_text(
        BROKEN_CONFIG.replace("dims: [2] }]\noutput", "dims: [-1] }]\noutput").replace("dims: [2]", "dims: [7]")
    )
    (folder / "1" / "model.py").write_text(PARTICULAR)
    np.savez(tmp_path / "x.npz", X=np.arange(1, 8, dtype=np.float32))
    settings, out = tmp_path / "themis.yaml", tmp_path / "profiles"
    settings.write_text(SETTINGS)
    flags = ProfileFlags("broken", out, None, None, 0.04, 40, QUICK, InputOptions())
    try:
        profile_command(flags, BenchFlags(config=settings), as_json=False)
        measured = read_profile(out / "broken.yaml").measured
        assert measured is not None
        assert measured.shapes == {"X": [7]}
        assert measured.drift_ratio is not None
        assert load_settings(settings).models["broken"].profile.origin is not None
        settings.write_text(SETTINGS.replace("inputs: {file: x.npz}", "inputs: {shapes: {X: [7]}}"))
        with pytest.raises(LaunchFailedError, match=r"warm-up of model broken failed: .*seven numbers, none of them zero"):
            profile_command(flags, BenchFlags(config=settings), as_json=False)
    finally:
        stop_everything(tmp_path / "state" / "profile", timeout_s=5.0)


def test_a_file_that_is_no_profile_is_said_before_anything_is_measured(tmp_path: Path, state: Path) -> None:
    out = tmp_path / "detector.yaml"
    out.write_text("notes: mine\n")

    async def run() -> None:
        async with launched_bench(MODEL, LAUNCH, LAUNCH.slots[0], state) as bench:
            await profile_model(bench, options(tmp_path), lambda _: pytest.fail("it was measured"))

    with pytest.raises(SettingsError, match=r"detector\.yaml: not a file of `themis profile`"):
        asyncio.run(run())
    assert out.read_text() == "notes: mine\n"


def test_more_instances_than_the_device_holds_are_an_error_with_the_remedy(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    monkeypatch.setenv("THEMIS_EMULATED_FAIL_INIT_FILE", str(full))

    def fill(step: Step) -> None:
        if step.point is not None:
            full.touch()

    async def run() -> None:
        async with launched_bench(MODEL, LAUNCH, LAUNCH.slots[0], state) as bench:
            await profile_model(bench, options(tmp_path, GridPlan(1, 3)), fill)

    with pytest.raises(ServerError, match=r"out of memory.*measure fewer with --max-instances"):
        asyncio.run(run())
    assert resume_path(tmp_path / "detector.yaml").exists()


def test_an_unknown_model_is_an_error_that_names_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with adopted_bench("nobody", adopted_server(Address("127.0.0.1", 9), "cpu:0", None), tmp_path):
            pytest.fail("it was opened")

    with pytest.raises(ServerError, match=r"model nobody on 127\.0\.0\.1:9"):
        asyncio.run(run())
