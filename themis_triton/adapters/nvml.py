"""Devices: NVIDIA's through NVML, and `cpu:N` slots by this machine's memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from concurrent.futures import Future

import psutil
import pynvml

from themis_triton.core.observation import DeviceReading
from themis_triton.ports import Clock


class DeviceReader:
    """Reads devices; blocking calls run in a thread. No driver, no such device, no answer: a reading with an error, never an exception.

    Args:
        devices: `gpu:N`, N as NVML numbers them, and `cpu:N`.
        clock: stamps the readings.
        timeout_s: how long the driver is waited for. Its very first call may take seconds, which matters to who reads only once.
    """

    def __init__(self, devices: Iterable[str], clock: Clock, *, timeout_s: float = 1.0) -> None:
        self._devices = tuple(dict.fromkeys(devices))
        self._clock = clock
        self._timeout_s = timeout_s
        self._reading: Future[tuple[DeviceReading, ...]] | None = None
        self._initialised = False

    async def read_devices(self) -> tuple[DeviceReading, ...]:
        """Each device once, in the order given; when the driver does not answer in time the GPUs have an error.

        While a call hangs in the driver no other is made, and GPUs have an error at once.
        """
        if self._hangs():
            return self._without_driver()
        self._reading = Future()
        # The thread is a daemon's: neither the event loop's end nor the interpreter's may wait for a driver that hangs.
        threading.Thread(target=self._read_all, args=(self._reading,), daemon=True).start()
        done, _ = await asyncio.wait([asyncio.wrap_future(self._reading)], timeout=self._timeout_s)
        return done.pop().result() if done else self._without_driver()

    def _hangs(self) -> bool:
        return self._reading is not None and not self._reading.done()

    def _without_driver(self) -> tuple[DeviceReading, ...]:
        return tuple(self._silent(device) if device.startswith("gpu:") else self._read(device) for device in self._devices)

    def _silent(self, device: str) -> DeviceReading:
        return DeviceReading(
            device, self._clock.now_s(), error=f"device {device}: NVML has not answered for more than {self._timeout_s:g} s"
        )

    def _read_all(self, reading: Future[tuple[DeviceReading, ...]]) -> None:
        try:
            reading.set_result(tuple(self._read(device) for device in self._devices))
        except BaseException as error:  # noqa: BLE001 - raised again where the reading is awaited
            reading.set_exception(error)

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
        """Let go of the driver, unless a call hangs in it."""
        if self._initialised and not self._hangs():
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
