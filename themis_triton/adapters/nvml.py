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

_HOST_MEMORY_EVERY_S = 1.0
_LOOK_FOR_NVML_EVERY_S = 30.0
_ABSENT = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)


class DeviceReader:
    """Reads devices; blocking calls run in a thread. No driver, no such device, no answer: a reading with an error, never an exception.

    Args:
        devices: `gpu:N`, N as NVML numbers them, `gpu:UUID` (of a GPU or a MIG device), and `cpu:N`.
        clock: stamps the readings.
        timeout_s: bound on the driver's answer. Its first call may take seconds, which matters to callers that read once.
    """

    def __init__(self, devices: Iterable[str], clock: Clock, *, timeout_s: float = 1.0) -> None:
        self._devices = tuple(dict.fromkeys(devices))
        self._clock = clock
        self._timeout_s = timeout_s
        self._reading: Future[tuple[DeviceReading, ...]] | None = None
        self._initialised = False
        self._memory: tuple[float, int, int] | None = None
        self._absence: tuple[float, pynvml.NVMLError] | None = None

    async def read_devices(self) -> tuple[DeviceReading, ...]:
        """Each device once, in the order given; when the driver does not answer in time the GPUs have an error.

        While a call hangs in the driver no other is made, and GPUs have an error at once.
        """
        if not any(device.startswith("gpu:") for device in self._devices):
            return tuple(map(self._read, self._devices))
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
        kind, _, name = device.partition(":")
        at_s = self._clock.now_s()
        if kind == "cpu":
            return DeviceReading(device, *self._host_memory(at_s))
        if kind != "gpu" or not (name.isdecimal() or name.startswith(("GPU-", "MIG-"))):
            return DeviceReading(device, at_s, error=f"device {device} is neither gpu:N, gpu:UUID nor cpu:N")
        try:
            return self._read_gpu(device, name, at_s)
        except pynvml.NVMLError as error:
            return DeviceReading(device, at_s, error=f"device {device}: NVML: {error}")

    def _host_memory(self, at_s: float) -> tuple[float, int, int]:
        """When it was read, total and available bytes; read again after a second."""
        if self._memory is None or at_s - self._memory[0] >= _HOST_MEMORY_EVERY_S:
            memory = psutil.virtual_memory()
            self._memory = (at_s, int(memory.total), int(memory.available))
        return self._memory

    def _initialise(self, at_s: float) -> None:
        """Load the driver's library; where there is none, look for it again only after a while."""
        if self._absence is not None and at_s - self._absence[0] < _LOOK_FOR_NVML_EVERY_S:
            raise self._absence[1]
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self._absence = (at_s, error) if error.value in _ABSENT else None
            raise
        self._initialised, self._absence = True, None

    def _read_gpu(self, device: str, name: str, at_s: float) -> DeviceReading:
        if not self._initialised:
            self._initialise(at_s)
        handle = gpu_handle(name)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return DeviceReading(device, at_s, int(memory.total), int(memory.free), _utilization(handle), _processes(handle))

    def close(self) -> None:
        """Shut the driver down, unless a call hangs in it."""
        if self._initialised and not self._hangs():
            pynvml.nvmlShutdown()
            self._initialised = False


def gpu_handle(name: str) -> object:
    """NVML's handle of a GPU's index, or of the UUID of a GPU or a MIG device. NVMLError if there is none."""
    return pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else pynvml.nvmlDeviceGetHandleByUUID(name)


def _utilization(handle: object) -> float | None:
    """Busy fraction of the last sample period, 0 to 1; None where the device does not report it (MIG)."""
    try:
        return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100.0
    except pynvml.NVMLError_NotSupported:
        return None


def _processes(handle: object) -> dict[int, int]:
    """Bytes by pid, of processes whose memory the driver reports."""
    running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return {int(process.pid): int(process.usedGpuMemory) for process in running if process.usedGpuMemory is not None}
