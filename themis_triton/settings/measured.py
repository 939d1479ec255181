"""Sections that `themis profile` and `themis probe` write into a profile file: conditions, points, fits, operations."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from themis_triton.core.config import ProfileOrigin
from themis_triton.settings.kinds import Count, Seconds, Section, Size

PROFILE_VERSION = 1
PROVING_REQUESTS = 5
"""Minimum number of requests during an operation; with fewer, the operation counts as not probed."""
Share = Annotated[float, Field(ge=0)]


class TimeSource(StrEnum):
    """The source of service times."""

    TRACE = "trace"
    CLIENT = "client"


class PointSettings(Section):
    """One measured point: service times in ms, with the 95 % interval of the percentile where there are enough samples for it."""

    batch: Count = Field(description="requests in each batch")
    instances: Count = Field(description="continuously busy instances")
    samples: Count = Field(description="batches measured")
    service_ms: Annotated[float, Field(gt=0)] = Field(description="the percentile of the service time")
    low_ms: float | None = Field(default=None, description="lower end of its 95 % interval")
    high_ms: float | None = Field(default=None, description="upper end of its 95 % interval")
    mean_ms: float = Field(description="mean service time, by Triton's trace or the client")
    median_ms: float = Field(description="median service time")
    statistics_ms: float = Field(description="mean compute time (input, inference, output) by Triton's statistics")
    queue_ms: float = Field(description="mean queue time by Triton's statistics; with `source: trace` one request per instance waits")
    client_ms: float = Field(description="the percentile of the time from send to response at the client, with the queue time")
    outliers: int = Field(ge=0, description="samples far outside the quartiles; they are included")
    fit_error: float | None = Field(default=None, description="(fitted − measured) / measured, of the better fit")


class FitSettings(Section):
    """A fitted form."""

    form: str = Field(description="contention or cores, see `surface.form`")
    alpha_ms: float = Field(description="per request of the batch, times the busy instances (or divided by the cores)")
    beta_ms: float = Field(description="per request of the batch")
    gamma_ms: float = Field(description="per busy instance (or divided by the cores)")
    zeta_ms: float = Field(description="per batch")
    cross_error: Share = Field(description="mean relative error at points excluded from the fit")
    kept: bool = Field(description="whether it supplies the points that were not measured")


class LaunchSettingsMeasured(Section):
    """Durations of the phases of a server's launch."""

    process_s: Seconds = Field(description="from the process start to the start of the model's load")
    load_s: Seconds = Field(description="the model's load")
    ready_s: Seconds = Field(description="from loaded to ready")
    warm_up_s: Seconds = Field(description="warm-up requests")


class MeasuredSettings(Section):
    """The conditions of a measurement; written by `themis profile`, not by hand."""

    version: Annotated[int, Field(ge=PROFILE_VERSION, le=PROFILE_VERSION)] = Field(description="version of this section's format")
    model: str = Field(description="the model's name")
    model_version: str = Field(description="the model version")
    config_hash: str = Field(description="hash of config.pbtxt without instance counts and batching")
    model_hash: str = Field(description="hash of the model's other files; empty if they could not be read")
    triton_version: str = Field(description="version of the server")
    machine: str = Field(description="host name")
    device: str = Field(description="the device's kind and name")
    at: str = Field(description="time of the measurement, in UTC")
    percentile: float = Field(description="percentile of the service times in `table`")
    source: Annotated[TimeSource, Field(strict=False)] = Field(
        description="trace: Triton's trace timestamps; client: client times minus the mean overhead"
    )
    shapes: dict[str, list[int]] = Field(default={}, description="shapes of the inputs, by name, without the batch dimension")
    drift_ratio: float | None = Field(
        default=None, description="the first point measured again at the end, divided by its first measurement; 1 on a steady device"
    )
    points: list[PointSettings] = Field(description="the measured points")
    fits: list[FitSettings] = Field(default=[], description="fits of the two forms")
    memory: Size | None = Field(default=None, description="memory of a server with one instance")
    launch: LaunchSettingsMeasured | None = Field(default=None, description="durations of a server's launch; absent for an adopted server")

    @property
    def origin(self) -> ProfileOrigin:
        """The values that show whether the profile is stale."""
        return ProfileOrigin(self.config_hash, self.model_hash, self.device, self.percentile)


class OperationSettings(Section):
    """One operation, measured under load."""

    in_place: bool = Field(description="true: only instances were added or removed; false: the whole model was reloaded")
    duration_s: Seconds = Field(description="duration of the call")
    requests: int = Field(ge=0, description="requests that ended during the operation")
    errors: int = Field(ge=0, description="of these, requests with an error or a wrong response; if above 0, the operation loses requests")
    latency_added_ms: float = Field(description="maximum latency during the operation minus the maximum before it")
    memory_peak: Size = Field(description="peak memory of the server during the operation")
    refused: str | None = Field(default=None, description="the server's error message if it refused")


CHANGES = ("add_one", "remove_one", "add_many", "add_device", "remove_device", "rebatch")
"""The operations that Themis uses."""


class OperationsSettings(Section):
    """The operations of a model; an absent one was not probed."""

    add_one: OperationSettings | None = Field(default=None, description="add one instance")
    remove_one: OperationSettings | None = Field(default=None, description="remove one instance")
    add_many: OperationSettings | None = Field(default=None, description="add several instances at once")
    add_device: OperationSettings | None = Field(default=None, description="add an instance on a further device of the server")
    remove_device: OperationSettings | None = Field(default=None, description="remove the last instance from a device")
    rebatch: OperationSettings | None = Field(default=None, description="change the maximum batch size")
    load_failure: OperationSettings | None = Field(default=None, description="a load that cannot succeed")

    @property
    def proven(self) -> dict[str, bool]:
        """By name of each probed operation, whether it lost no request; False if the server refused it.

        An operation without errors but with fewer than `PROVING_REQUESTS` requests counts as not probed.
        """
        probed = {name: getattr(self, name) for name in CHANGES}
        return {
            name: operation.errors == 0 and operation.refused is None
            for name, operation in probed.items()
            if operation is not None and (operation.errors > 0 or operation.refused is not None or operation.requests >= PROVING_REQUESTS)
        }

    @property
    def renewing(self) -> frozenset[str]:
        """The probed operations that made all instances anew beside the old ones, with their memory twice for that time."""
        probed = {name: getattr(self, name) for name in CHANGES}
        return frozenset(name for name, operation in probed.items() if operation is not None and not operation.in_place)
