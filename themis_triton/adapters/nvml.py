"""Devices: NVIDIA's through NVML, and `cpu:N` slots by this machine's memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable

import psutil
import pynvml

from themis_triton.core.observation import DeviceReading
from themis_triton.ports import Clock


class DeviceReader:
    """Reads devices; blocking calls run in a thread. No driver, no such device: a reading with an error, never an exception.

    Args:
        devices: `gpu:N`, N as NVML numbers them, and `cpu:N`.
        clock: stamps the readings.
    """

    def __init__(self, devices: Iterable[str], clock: Clock) -> None:
        self._devices = tuple(dict.fromkeys(devices))
        self._clock = clock
        self._lock = threading.Lock()
        self._initialised = False

    async def read_devices(self) -> tuple[DeviceReading, ...]:
        """Each device once, in the order given."""
        return await asyncio.to_thread(self._read_all)

    def _read_all(self) -> tuple[DeviceReading, ...]:
        with self._lock:  # A reading that hangs in the driver must not be joined by the next one.
            return tuple(self._read(device) for device in self._devices)

    def _read(self, device: str) -> DeviceReading:
        kind, _, index = device.partition(":")
        at_s = self._clock.now_s()
        if kind == "cpu":
            memory = psutil.virtual_memory()
            return DeviceReading(device, at_s, memory.total, memory.available)
        if kind != "gpu" or not index.isdecimal():
            return DeviceReading(device, at_s, error=f"device {device} is neither gpu:N nor cpu:N")
        try:
            return self._read_gpu(device, int(index), at_s)
        except pynvml.NVMLError as error:
            return DeviceReading(device, at_s, error=f"device {device}: NVML: {error}")

    def _read_gpu(self, device: str, index: int, at_s: float) -> DeviceReading:
        if not self._initialised:
            pynvml.nvmlInit()
            self._initialised = True
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return DeviceReading(device, at_s, int(memory.total), int(memory.free), _utilization(handle), _processes(handle))

    def close(self) -> None:
        """Let go of the driver."""
        with self._lock:
            if self._initialised:
                pynvml.nvmlShutdown()
                self._initialised = False


def _utilization(handle: object) -> float | None:
    """Busy fraction of the last sample period, 0 to 1; None where the device does not tell (MIG)."""
    try:
        return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100.0
    except pynvml.NVMLError_NotSupported:
        return None


def _processes(handle: object) -> dict[int, int]:
    """Bytes by pid, of those whose memory the driver tells."""
    running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return {int(process.pid): int(process.usedGpuMemory) for process in running if process.usedGpuMemory is not None}
