"""Servers: identity, life cycle and models."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from themis_triton.core.address import Address


class Phase(StrEnum):
    """Life cycle of a server. SERVING ones are in the routes, and UNREACHABLE ones: adopted servers whose metrics cannot be read."""

    LAUNCHING = "launching"
    WARMING = "warming"
    SERVING = "serving"
    UNREACHABLE = "unreachable"
    DRAINING = "draining"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class ModelState:
    """The state of one model on one server: instances, maximum batch size and the batcher's queue delay."""

    instances: int
    max_batch: int
    max_queue_delay_us: int = 0


Models = dict[str, ModelState]
"""What one server runs: the state of each model by its name."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process is known by its pid AND its start time, so that a reused pid is never signalled.

    The start time is the kernel's, in clock ticks since boot: seconds since the epoch would change whenever the clock is set.
    """

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Server:
    """One Triton server. `launched` servers were started by Themis and may be stopped by it; adopted ones never are.

    `process`: its process on this machine; None elsewhere. `model_repository`: where its models' own files can be read here, if anywhere.
    `models`: the models of the settings that are READY there. `ready_models`: the names of all models that are READY there by its
    repository index, these included, in order; None while the index is unknown.
    """

    name: str
    device: str
    grpc_address: Address
    http_address: Address
    metrics_address: Address
    phase: Phase
    launched: bool
    slot: str | None = None
    process: ProcessId | None = None
    model_control_key: str | None = None
    log_file: str | None = None
    model_repository: str | None = None
    models: Models = field(default_factory=dict)
    ready_models: tuple[str, ...] | None = None
