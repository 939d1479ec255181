"""Device readings on whatever machine the tests run on, and with a driver's answers."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from tests.unit.fakes import FakeClock
from tests.unit.samples import config as make_config
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.findings import Severity
from themis_triton.adapters.local.check import check_devices
from themis_triton.adapters.nvml import DeviceReader
from themis_triton.core.config import DeviceSlot, LaunchConfig
from themis_triton.core.observation import DeviceReading


def read(*devices: str) -> tuple[DeviceReading, ...]:
    reader = DeviceReader(devices, SystemClock())
    try:
        return asyncio.run(reader.read_devices())
    finally:
        reader.close()


def test_a_cpu_slot_shows_the_machines_memory() -> None:
    (reading,) = read("cpu:3", "cpu:3")
    assert reading.device == "cpu:3"
    assert reading.memory_total_bytes == psutil.virtual_memory().total
    assert reading.memory_free_bytes is not None
    assert 0 < reading.memory_free_bytes <= reading.memory_total_bytes
    assert reading.error is None


def test_no_driver_is_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    gpu, cpu = read("gpu:0", "cpu:0")
    assert gpu.error is not None
    assert gpu.error.startswith("device gpu:0: NVML: ")
    assert gpu.memory_free_bytes is None
    assert cpu.error is None


def test_an_absent_driver_is_looked_for_seldom_and_found_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    clock = FakeClock()

    def absent() -> None:
        looks.append(clock.at_s)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    async def scenario() -> None:
        reader = DeviceReader(["gpu:0"], clock)
        start_s = clock.at_s
        for offset_s in (0.0, 1.0, 29.0, 31.0):
            clock.at_s = start_s + offset_s
            (reading,) = await reader.read_devices()
            assert "NVML" in (reading.error or "")
            assert reading.at_s == clock.at_s
        assert looks == [start_s, start_s + 31.0]

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    asyncio.run(scenario())


def test_the_hosts_memory_is_read_once_a_second_and_says_when() -> None:
    async def scenario() -> None:
        clock = FakeClock()
        reader = DeviceReader(["cpu:0", "cpu:1"], clock)
        start_s = clock.at_s
        taken_at_s = []
        for offset_s in (0.0, 0.9, 1.1):
            clock.at_s = start_s + offset_s
            readings = await reader.read_devices()
            assert [reading.device for reading in readings] == ["cpu:0", "cpu:1"]
            taken_at_s.append(readings[1].at_s)
        assert taken_at_s == [start_s, start_s, start_s + 1.1]

    asyncio.run(scenario())


def test_a_name_that_is_no_device() -> None:
    (reading,) = read("tpu:0")
    assert reading.error == "device tpu:0 is neither gpu:N, gpu:UUID nor cpu:N"


def test_a_gpu_as_the_driver_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(handle: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    processes = [SimpleNamespace(pid=7, usedGpuMemory=2048), SimpleNamespace(pid=8, usedGpuMemory=None)]
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(total=100 + handle, free=60))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda _: processes)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda _: SimpleNamespace(gpu=25))
    (reading,) = read("gpu:2")
    assert (reading.memory_total_bytes, reading.memory_free_bytes, reading.utilization) == (102, 60, 0.25)
    assert reading.process_memory_bytes == {7: 2048}
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", unsupported)
    assert read("gpu:2")[0].utilization is None


def test_a_mig_device_is_read_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", {"MIG-41b3": 40, "GPU-7": 7}.__getitem__)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(total=100 + handle, free=60))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda _: [])
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda _: SimpleNamespace(gpu=25))
    mig, gpu = read("gpu:MIG-41b3", "gpu:GPU-7")
    assert [(reading.device, reading.memory_total_bytes) for reading in (mig, gpu)] == [("gpu:MIG-41b3", 140), ("gpu:GPU-7", 107)]


def test_the_devices_that_servers_may_use_are_checked_and_may_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    launch = LaunchConfig(
        slots=(DeviceSlot("left", "gpu:0"), DeviceSlot("right", "gpu:1")), model_repository=Path("/models"), reach=("gpu:1", "gpu:2")
    )
    findings = asyncio.run(check_devices(replace(make_config(), servers=(), launch=launch)))
    assert [finding.what for finding in findings] == ["launch.slots: left", "launch.slots: right, launch.reach", "launch.reach"]
    assert all(finding.exit_code for finding in findings)


def test_a_driver_that_hangs_is_left_alone_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, go = [], threading.Event()

    def hang() -> None:
        calls.append(1)
        go.wait(10)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    async def scenario() -> None:
        reader = DeviceReader(["gpu:0", "cpu:0"], SystemClock(), timeout_s=0.05)
        for _ in range(2):
            gpu, cpu = await reader.read_devices()
            assert gpu.error == "device gpu:0: NVML has not answered for more than 0.05 s"
            assert cpu.error is None
        reader.close()
        assert len(calls) == 1
        go.set()
        for _ in range(500):
            gpu, _cpu = await reader.read_devices()
            if len(calls) == 2:
                break
            await asyncio.sleep(0.01)
        assert "GPU is lost" in str(gpu.error)

    monkeypatch.setattr(pynvml, "nvmlInit", hang)
    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_a_gpu_that_two_servers_share_is_warned_of() -> None:
    slots = (DeviceSlot("left", "gpu:7"), DeviceSlot("right", "gpu:7"), DeviceSlot("near", "cpu:0"), DeviceSlot("far", "cpu:0"))
    config = replace(make_config(), launch=LaunchConfig(slots=slots, model_repository=Path("/models")))
    warned = [finding for finding in asyncio.run(check_devices(config)) if finding.severity is Severity.WARNING]
    assert [(finding.what, finding.found) for finding in warned] == [
        ("launch.slots: left, launch.slots: right", "gpu:7 is named 2 times: servers there share one GPU")
    ]
