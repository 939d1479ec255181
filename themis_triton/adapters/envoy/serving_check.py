"""Whether a running Envoy serves: its listeners are probed, and a silence is told apart from load."""

from __future__ import annotations

import asyncio

from themis_triton.adapters.envoy.probe import Answer, probe_listeners, refuses
from themis_triton.adapters.process_identity import state_of
from themis_triton.adapters.processor_wait import ProcessorWait
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.fleet import ProcessId

PROBE_TIMEOUT_S, PATIENT_TIMEOUT_S = 1.0, 2.0
"""Of the first probe, and of those after a silent one: an answer that is late is an answer."""
SILENT_S = 10.0
"""A running process whose listeners are silent for so long does not come back; a shorter silence may be load.

The time in which it waited for a processor does not count: on a machine that is too busy a new Envoy would need far longer to answer.
"""
STOPPED_S = 0.1
_STOPPED = "T"
MAX_STEP_S = 3.0
"""The most that one silent probe adds to a silence."""


class ServingCheck:
    """Probes the listeners of one Envoy, and remembers for how long they have been silent."""

    def __init__(self) -> None:
        self._silent_s: float | None = None
        self._wait: ProcessorWait | None = None
        self._probed_at_s = 0.0
        self._listeners: tuple[Address, ...] = ()

    def reset(self) -> None:
        """Forget the silence: another process serves now."""
        self._silent_s = self._wait = None

    async def find_fault(self, config: EnvoyConfig, identity: ProcessId | None) -> str | None:
        """Why it does not serve, None while it does. `config`: with IP addresses.

        A connection that is refused, and a process that is stopped, leave no doubt. A silent listener may be one that is busy.
        """
        self._listeners = (config.grpc_listen, config.http_listen)
        if await _stays_stopped(identity):
            return "its process is stopped"
        answer = await probe_listeners(config, PROBE_TIMEOUT_S if self._silent_s is None else PATIENT_TIMEOUT_S)
        self._note(answer, identity)
        if answer is Answer.REFUSED and await probe_listeners(config, PROBE_TIMEOUT_S) is Answer.REFUSED:
            return "a listener refuses connections"
        if self._silent_s is None:
            return None
        return f"its listeners have not answered for {self._silent_s:.0f} s" if self._silent_s >= SILENT_S else None

    def _note(self, answer: Answer, identity: ProcessId | None) -> None:
        now_s = asyncio.get_running_loop().time()
        # After a longer step this process or the machine stood still, and Envoy may have done so too.
        step_s, self._probed_at_s = min(MAX_STEP_S, now_s - self._probed_at_s), now_s
        if answer is not Answer.SILENT:
            self._silent_s = self._wait = None
        elif self._silent_s is None or self._wait is None:
            self._silent_s, self._wait = PROBE_TIMEOUT_S, ProcessorWait(identity)
        else:
            self._silent_s += max(0.0, step_s - self._wait.since_last_s())

    def is_suspect(self, identity: ProcessId) -> bool:
        """Whether `find_fault` should look at once: the process is stopped or refuses connections. Takes a fraction of a millisecond."""
        return _is_stopped(identity) or any(map(refuses, self._listeners))


async def find_hang(config: EnvoyConfig, identity: ProcessId) -> str | None:
    """Why an Envoy hangs that is stopped or accepts clients without an answer for long; returns at its first answer or refusal, with None.

    Refused connections are no hang: the addresses may be new. `config`: with IP addresses.
    """
    silent_s, wait = 0.0, ProcessorWait(identity)
    while True:
        state = state_of(identity)
        if state == _STOPPED:
            return "its process is stopped"
        if state is None or await probe_listeners(config, PROBE_TIMEOUT_S) is not Answer.SILENT:
            return None
        if silent_s >= SILENT_S:
            return f"its listeners have not answered for {silent_s:.0f} s"
        silent_s += max(0.0, PROBE_TIMEOUT_S - wait.since_last_s())


async def _stays_stopped(identity: ProcessId | None) -> bool:
    """Whether it is stopped for longer than a debugger or a profiler that looks at it takes."""
    if identity is None or not _is_stopped(identity):
        return False
    await asyncio.sleep(STOPPED_S)
    return _is_stopped(identity)


def _is_stopped(identity: ProcessId) -> bool:
    return state_of(identity) == _STOPPED
