"""A simulated world beside the settings: where batches form, how devices are shared, and the duration of each change."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from themis_triton.core.config import ThemisConfig, ThroughputRule


class Dispatcher(StrEnum):
    """PER_SERVER: least-request routing to a queue on each server, as the proxy and Triton. CENTRAL: one queue a model, as in the paper."""

    PER_SERVER = "per_server"
    CENTRAL = "central"


class Sharing(StrEnum):
    """The meaning of `k` in `l(b, k)`. CONTENTION: running batches on the device, one an instance. CORES: one worker with k cores."""

    CONTENTION = "contention"
    CORES = "cores"


class ServiceNoise(StrEnum):
    """A factor of a batch's service time with mean 1. EXPONENTIAL gives queues with known theory."""

    NONE = "none"
    LOGNORMAL = "lognormal"
    EXPONENTIAL = "exponential"


@dataclass(frozen=True, slots=True)
class SimWorld:
    """One world. Times that are None come from each model's profile.

    `hop_s`: client to proxy to server, once per stage, counted before the proxy sees the request. `central_delay_s`: time that the
    central queue waits for a full batch. `cold_start_s`: from the launch to the routes. `grow_s`: one in-place growth.
    `init_work_s`: processor time that a starting instance takes from the `host_cores` of a host, so that many at once start later.
    `start_slowdown`: fraction by which each instance that starts lengthens the service times of all batches on the host; for models that
    do not compute on the CPU, 0.002 to 0.008 was measured.
    `shrink_s`: one instance fewer, or with CORES a resize to fewer. `control_s`: extra duration of any change. `drain_quiet_s`: how
    long a server that left the routes must have been idle before it is stopped. `refuse_share`: share of changes that are refused.
    `service_factor`: true service times over those of the profiles. `lag_s`: age of the observed readings, in whole ticks.
    """

    dispatcher: Dispatcher = Dispatcher.PER_SERVER
    sharing: Sharing = Sharing.CONTENTION
    hop_s: float = 0.002
    central_delay_s: float = 0.05
    noise: ServiceNoise = ServiceNoise.NONE
    noise_cv: float = 0.0
    cold_start_s: float | None = None
    grow_s: float | None = None
    init_work_s: float = 0.0
    host_cores: int = 1
    start_slowdown: float = 0.0
    shrink_s: float | None = None
    reload_s: float | None = None
    control_s: float = 0.1
    route_s: float = 0.05
    drain_quiet_s: float = 0.3
    stop_s: float = 2.0
    refuse_share: float = 0.0
    service_factor: float = 1.0
    lag_s: float = 0.0


def triton_world() -> SimWorld:
    """Triton behind the proxy: dynamic batchers, contending instances, durations of changes from the profiles.

    `hop_s`: with 5 ms a stage (client, proxy, gRPC, Triton's Python backend) the p99 of 32 measured steady states is met within 5 % in
    the mean (`benchmarks/sim_states.py`). `stop_s`: from SIGTERM to the end of the process, 2.0 to 4.2 s measured.
    `init_work_s`: three instances of the Python backend at once were 0.1 s later than one, six 0.2 s, on two cores.
    """
    return SimWorld(hop_s=0.005, stop_s=3.0, init_work_s=0.08, host_cores=2)


def paper_world(cold_start_s: float = 5.0) -> SimWorld:
    """The paper's: a central queue a stage that waits 50 ms for a full batch (with `central_delay_s` 0 for none), cores, 0.1 s a resize."""
    return SimWorld(
        dispatcher=Dispatcher.CENTRAL,
        sharing=Sharing.CORES,
        hop_s=0.0,
        cold_start_s=cold_start_s,
        grow_s=0.1,
        shrink_s=0.1,
        reload_s=0.1,
        control_s=0.0,
        route_s=0.0,
        drain_quiet_s=0.0,
        stop_s=0.0,
    )


def world_for(config: ThemisConfig) -> SimWorld:
    """The paper's world where servers have cores, else Triton's."""
    return paper_world() if config.planning.throughput is ThroughputRule.CORES else triton_world()
