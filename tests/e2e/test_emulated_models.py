"""Emulated models on a real Triton: service times follow the surfaces, answers are exact, waiting costs next to nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from google.protobuf import json_format, text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from tests.e2e.rounds import measured_again_if_disturbed
from tests.e2e.triton_process import REPOSITORY, TritonProcess, running_triton
from themis_triton.emulation.device import DeviceSeat, table_path
from themis_triton.emulation.parameters import read_parameters

pytestmark = [pytest.mark.e2e, pytest.mark.timed]

MODELS = (
    "video-detector",
    "video-classifier",
    "sentiment-audio-to-text",
    "sentiment-analysis",
    "nlp-language-identification",
    "nlp-translation",
    "nlp-sentiment-analysis",
)
DETECTOR, CLASSIFIER = MODELS[:2]
TOLERANCE = 0.05
LIMIT_S = 10.0
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the tables really are

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Bench:
    server: TritonProcess
    client: triton.InferenceServerClient
    scale_file: Path
    fail_file: Path
    table: Path

    def set_count(self, model: str, count: int) -> None:
        config = shipped(model)
        config.instance_group[0].count = count
        self.client.load_model(model, config=json_format.MessageToJson(config))

    def count(self, model: str) -> int:
        return sum(group.count for group in self.client.get_model_config(model).config.instance_group)

    def grow(self, model: str, count: int) -> None:
        """At least so many; idle instances do not contend, and taking them away takes a second each."""
        if self.count(model) < count:
            self.set_count(model, count)

    def stubs(self, model: str) -> list[psutil.Process]:
        """The live instance processes of a model."""
        children = psutil.Process(self.server.pid).children()
        return [child for child in children if child.status() != psutil.STATUS_ZOMBIE and f"/{model}/" in " ".join(child.cmdline())]

    def set_scale(self, factors: Mapping[str, float]) -> None:
        new = self.scale_file.with_suffix(".new")
        new.write_text(json.dumps(factors))
        new.replace(self.scale_file)


@contextmanager
def running_bench(folder: Path, models: Sequence[str], slot: str, exit_timeout_s: int = 30) -> Iterator[Bench]:
    """A server on a slot of its own, with the switches that slow its models down or fail their initialisation."""
    scale_file, fail_file = folder / "scale.json", folder / "fail"
    environment = {
        "THEMIS_EMULATED_DEVICE": slot,
        "THEMIS_EMULATED_SCALE_FILE": str(scale_file),
        "THEMIS_EMULATED_FAIL_INIT_FILE": str(fail_file),
    }
    with (
        running_triton(folder, models, environment, exit_timeout_s=exit_timeout_s) as server,
        triton.InferenceServerClient(server.grpc_address) as client,
    ):
        yield Bench(server, client, scale_file, fail_file, table_path(slot, SHARED_MEMORY))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with running_bench(tmp_path_factory.mktemp("emulated"), MODELS, f"cpu:0@test-{os.getpid()}") as started:
        yield started
    assert not started.table.exists(), "a stopped server leaves nothing in shared memory"


def shipped(model: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse((REPOSITORY / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def expected_ms(model: str, batch: int, busy: int) -> float:
    config = json_format.MessageToDict(shipped(model), preserving_proto_field_name=True)
    return read_parameters(model, config).surface.service_ms(batch, busy)


def infer(client: triton.InferenceServerClient, model: str, array: Floats) -> Floats:
    tensor = triton.InferInput("INPUT", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    return np.asarray(client.infer(model, [tensor]).as_numpy("OUTPUT"))


def keep_busy(server: TritonProcess, model: str, batch: int, until: threading.Event) -> int:
    """One request of `batch` after the other; how many were answered."""
    answered = 0
    with triton.InferenceServerClient(server.grpc_address) as client:
        while not until.is_set():
            infer(client, model, np.zeros((batch, 2), dtype=np.float32))
            answered += 1
    return answered


@contextmanager
def streams_running(server: TritonProcess, streams: Mapping[tuple[str, int], int]) -> Iterator[list[Future[int]]]:
    """So many closed-loop streams of each (model, batch) meanwhile; each tells in the end how many of its requests were answered."""
    done = threading.Event()
    with ThreadPoolExecutor(sum(streams.values())) as pool:
        running = [pool.submit(keep_busy, server, model, batch, done) for (model, batch), count in streams.items() for _ in range(count)]
        try:
            yield running
        finally:
            done.set()
        wait(running, LIMIT_S)


def run_for(server: TritonProcess, streams: Mapping[tuple[str, int], int], seconds: float) -> int:
    """The streams for a while; how many requests were answered."""
    with streams_running(server, streams) as running:
        wait(running, seconds)
    return sum(stream.result() for stream in running)


def executed(client: triton.InferenceServerClient, model: str, batch: int) -> tuple[int, int]:
    """Executions of this batch size so far, and the nanoseconds that they took."""
    for part in client.get_inference_statistics(model).model_stats[0].batch_stats:
        if part.batch_size == batch:
            return part.compute_infer.count, part.compute_infer.ns
    return 0, 0


def mean_ms(bench: Bench, streams: Mapping[tuple[str, int], int], seconds: float = 1.5) -> dict[str, float]:
    """Mean service time by model as Triton measures it, while all streams run: neither before the last has begun nor once one ends."""
    fresh = {key: executed(bench.client, *key)[0] for key in streams}
    deadline_s = time.monotonic() + LIMIT_S
    with streams_running(bench.server, streams) as running:
        while any(executed(bench.client, *key)[0] < fresh[key] + 2 * count for key, count in streams.items()):
            assert time.monotonic() < deadline_s, "no stream gets an answer"
            wait(running, 0.01)
        before = {key: executed(bench.client, *key) for key in streams}
        wait(running, seconds)
        after = {key: executed(bench.client, *key) for key in streams}
    return {key[0]: (after[key][1] - before[key][1]) / (after[key][0] - before[key][0]) / 1e6 for key in streams}


@pytest.mark.parametrize("model", MODELS)
def test_answers_are_exact(bench: Bench, model: str) -> None:
    offset = float(shipped(model).parameters["offset"].string_value)
    generator = np.random.default_rng(7)
    arrays = [generator.normal(size=(batch, 5)).astype(np.float32) for batch in (1, 3, 8, 2, 1, 1)]
    with ThreadPoolExecutor(len(arrays)) as pool:
        outputs = list(pool.map(lambda array: infer(bench.client, model, array), arrays))
    for array, output in zip(arrays, outputs, strict=True):
        np.testing.assert_array_equal(output, array * np.float32(2) + np.float32(offset))


def test_a_request_of_eight_million_numbers_is_answered(bench: Bench) -> None:
    array = np.arange(8 * 2**20, dtype=np.float32).reshape(1, -1)
    np.testing.assert_array_equal(infer(bench.client, CLASSIFIER, array), array * 2 + 2)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", [1, 8])
@measured_again_if_disturbed
def test_alone_on_the_device(bench: Bench, model: str, batch: int) -> None:
    seconds = max(0.6, 6 * expected_ms(model, batch, 1) / 1000)
    # The Python backend itself adds some tenths of a millisecond, whatever the service time.
    assert mean_ms(bench, {(model, batch): 1}, seconds)[model] == pytest.approx(expected_ms(model, batch, 1), rel=TOLERANCE, abs=1.0)


@pytest.mark.parametrize(("batch", "busy"), [(1, 3), (4, 3), (8, 6)])
@measured_again_if_disturbed
def test_instances_of_a_model_contend(bench: Bench, batch: int, busy: int) -> None:
    bench.grow(DETECTOR, busy)
    assert mean_ms(bench, {(DETECTOR, batch): busy})[DETECTOR] == pytest.approx(expected_ms(DETECTOR, batch, busy), rel=TOLERANCE)


@pytest.mark.parametrize("batch", [2, 8])
@measured_again_if_disturbed
def test_models_on_one_slot_contend(bench: Bench, batch: int) -> None:
    for model in (DETECTOR, CLASSIFIER):
        bench.grow(model, 2)
    measured = mean_ms(bench, {(DETECTOR, batch): 2, (CLASSIFIER, batch): 2}, 2.0)
    for model in (DETECTOR, CLASSIFIER):
        assert measured[model] == pytest.approx(expected_ms(model, batch, 4), rel=TOLERANCE)


def test_another_slot_does_not_contend(bench: Bench, tmp_path: Path) -> None:
    @measured_again_if_disturbed
    def measure() -> None:
        with streams_running(neighbour, {(DETECTOR, 8): 1}) as (stream,):
            measured = mean_ms(bench, {(DETECTOR, 4): 1})[DETECTOR]
        assert stream.result(LIMIT_S) > 1
        assert measured == pytest.approx(expected_ms(DETECTOR, 4, 1), rel=TOLERANCE)

    with running_triton(tmp_path, [DETECTOR], exit_timeout_s=2) as neighbour:
        measure()


@measured_again_if_disturbed
def test_service_slows_down_while_it_runs(bench: Bench) -> None:
    bench.set_scale({DETECTOR: 1.4})
    try:
        infer(bench.client, DETECTOR, np.zeros((8, 2), dtype=np.float32))
        infer(bench.client, CLASSIFIER, np.zeros((8, 2), dtype=np.float32))
        assert mean_ms(bench, {(DETECTOR, 4): 1})[DETECTOR] == pytest.approx(1.4 * expected_ms(DETECTOR, 4, 1), rel=TOLERANCE)
        assert mean_ms(bench, {(CLASSIFIER, 4): 1})[CLASSIFIER] == pytest.approx(expected_ms(CLASSIFIER, 4, 1), rel=TOLERANCE)
    finally:
        bench.scale_file.unlink()


def test_a_failed_grow_leaves_the_old_count_serving(bench: Bench) -> None:
    count = bench.count(DETECTOR)
    bench.fail_file.write_text(f"{DETECTOR}\n")
    done = threading.Event()
    try:
        with ThreadPoolExecutor(1) as pool:
            stream = pool.submit(keep_busy, bench.server, DETECTOR, 1, done)
            try:
                with pytest.raises(InferenceServerException, match=f"out of memory: {DETECTOR} could not be placed on cpu:0@test-"):
                    bench.set_count(DETECTOR, count + 2)
            finally:
                done.set()
            assert stream.result(LIMIT_S) > 0
        assert bench.count(DETECTOR) == count
        bench.set_count(CLASSIFIER, bench.count(CLASSIFIER) + 1)
    finally:
        bench.fail_file.unlink()
    bench.set_count(DETECTOR, count + 2)
    assert bench.count(DETECTOR) == count + 2


def test_an_instance_killed_while_busy_stops_contending(tmp_path: Path) -> None:
    # This Triton cannot unload a model whose instance was killed, so its stop ends with the time-out and is no clean one.
    with running_bench(tmp_path, (DETECTOR, CLASSIFIER), f"cpu:1@test-{os.getpid()}", exit_timeout_s=2) as bench:
        bench.set_scale({CLASSIFIER: 500})
        (stub,) = bench.stubs(CLASSIFIER)
        with ThreadPoolExecutor(1) as pool:
            victim = pool.submit(infer, bench.client, CLASSIFIER, np.zeros((8, 2), dtype=np.float32))
            assert settles(bench, expected_ms(DETECTOR, 8, 2)), "the classifier's long batch contends"
            assert not victim.done()
            os.kill(stub.pid, signal.SIGKILL)
            assert settles(bench, expected_ms(DETECTOR, 8, 1)), "the dead instance is forgotten"
            with pytest.raises(InferenceServerException, match=r"[Ss]tub"):
                victim.result(LIMIT_S)
    seat = DeviceSeat(f"cpu:2@test-{os.getpid()}", SHARED_MEMORY)
    assert not bench.table.exists(), "whoever comes next removes what a killed server left"
    seat.close()


def settles(bench: Bench, service_ms: float) -> bool:
    """Whether a batch of eight comes to take this long, within the limit."""
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        started_s = time.monotonic()
        infer(bench.client, DETECTOR, np.zeros((8, 2), dtype=np.float32))
        if 1000 * (time.monotonic() - started_s) == pytest.approx(service_ms, rel=TOLERANCE):
            return True
    return False


@measured_again_if_disturbed
def test_waiting_costs_little(bench: Bench) -> None:
    bench.set_count(DETECTOR, 12)
    stubs = bench.stubs(DETECTOR)
    assert len(stubs) == 12
    before_s = [sum(process.cpu_times()[:2]) for process in stubs]
    started_s = time.monotonic()
    assert run_for(bench.server, {(DETECTOR, 8): 12}, 3.0) >= 48
    wall_s = time.monotonic() - started_s
    cores = sum(sum(process.cpu_times()[:2]) - before for process, before in zip(stubs, before_s, strict=True)) / wall_s
    assert cores < 0.3, f"12 busy instances took {cores:.2f} of a core"
