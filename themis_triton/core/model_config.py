"""A model's profile, its bounds on one server, and its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Service time at the SLO's percentile, in ms: `latency_ms[i][k]` for `batches[i]` and `instances[k]` busy on the device.

    With the throughput rule CORES, `instances[k]` are the cores of one replica.
    """

    batches: tuple[int, ...]
    instances: tuple[int, ...]
    latency_ms: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class ProfileOrigin:
    """The conditions of a measured profile: hashes of the model's configuration and files (empty: unknown), device kind and name.

    `percentile`: the percentile of its service times.
    """

    config_hash: str
    model_hash: str
    device: str
    percentile: float


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """A model's service times, memory and start times. `operations`: by name, whether a probe under load showed that it loses no request.

    `mean_table`: mean service times at the points of `table`, where they were measured. `renewing`: operations that, as probed, make all
    instances anew beside the old ones. `learnt_from`: the executions from which the service times were learnt; None: they were given.
    `learnt_at`: the numbers of busy instances with which they were. `raised_to_calls`: `table` is an estimate that was below the time of
    the calls that the model makes by itself, and was raised to it.
    """

    table: LatencyTable
    instance_init_s: float = 1.0
    instance_stop_s: float = 1.2
    server_launch_s: float = 5.0
    instance_memory_bytes: int = 0
    origin: ProfileOrigin | None = None
    operations: dict[str, bool] = field(default_factory=dict)
    mean_table: LatencyTable | None = None
    renewing: frozenset[str] = frozenset()
    learnt_from: float | None = None
    learnt_at: frozenset[int] = frozenset()
    raised_to_calls: bool = False

    @property
    def is_guess(self) -> bool:
        """Whether the service times are to be learnt and are not known yet."""
        return self.learnt_from == 0.0


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """Inputs of the requests that Themis itself sends to a model (warm-up, profile, probe, load).

    `shapes`: by input, without the batch dimension. `file`: an `.npz` file with one array per input, named `INPUT` or `MODEL.INPUT`.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Bounds of one model on one server, and its profile; `max_batch` bounds what a plan may choose.

    `instance_price` and, with placement SEPARATE, `server_price` replace those of `Prices` for this model.
    `stateful`: by its config.pbtxt it keeps state between the calls of a sequence. `rows_per_request`: of a batch, until they are measured.
    `node_types`: those that servers with it may be launched on; empty: any.
    """

    name: str
    profile: ModelProfile
    min_instances: int = 1
    max_instances: int = 8
    max_batch: int = 8
    max_queue_delay_us: int = 0
    server_price: float | None = None
    instance_price: float | None = None
    require_probed_operations: bool = False
    inputs: ModelInputs = ModelInputs()
    stateful: bool = False
    rows_per_request: float = 1.0
    node_types: tuple[str, ...] = ()

    def may(self, operation: str) -> bool:
        """Whether a running server may be changed by an operation: a probe lost no request, or the settings ask for none."""
        return self.profile.operations.get(operation, not self.require_probed_operations)
