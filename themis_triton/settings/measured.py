"""What `themis profile` and `themis probe` add to a profile file: where the numbers come from, each point's samples, fits and levers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from themis_triton.core.config import ProfileOrigin
from themis_triton.settings.kinds import Count, Seconds, Section, Size

PROFILE_VERSION = 1
PROVING_REQUESTS = 5
"""Fewer on their way while a lever is pulled prove nothing."""
Share = Annotated[float, Field(ge=0)]


class TimeSource(StrEnum):
    """Where service times come from."""

    TRACE = "trace"
    CLIENT = "client"


class PointSettings(Section):
    """One measured point: service times in ms, with the 95 % interval of the percentile where there are enough samples for it."""

    batch: Count = Field(description="requests in each batch")
    instances: Count = Field(description="instances busy all the time")
    samples: Count = Field(description="batches measured")
    service_ms: Annotated[float, Field(gt=0)] = Field(description="the percentile of the service time")
    low_ms: float | None = Field(default=None, description="lower end of its 95 % interval")
    high_ms: float | None = Field(default=None, description="upper end of its 95 % interval")
    mean_ms: float = Field(description="mean service time, by Triton's trace or the client")
    median_ms: float = Field(description="median service time")
    statistics_ms: float = Field(description="mean compute time (input, inference, output) by Triton's statistics")
    queue_ms: float = Field(description="mean queue time by Triton's statistics")
    client_ms: float = Field(description="the percentile of the time from send to answer at the client")
    outliers: int = Field(ge=0, description="samples far outside the quartiles; they are kept")
    fit_error: float | None = Field(default=None, description="(fitted − measured) / measured, of the better fit")


class FitSettings(Section):
    """A fitted form."""

    form: str = Field(description="contention or cores, see `surface.form`")
    alpha_ms: float = Field(description="for each request of the batch, times the busy instances (or divided by the cores)")
    beta_ms: float = Field(description="for each request of the batch")
    gamma_ms: float = Field(description="for each busy instance (or divided by the cores)")
    zeta_ms: float = Field(description="for each batch")
    cross_error: Share = Field(description="mean relative error at points left out of the fit")
    kept: bool = Field(description="whether it fills what was not measured")


class LaunchSettingsMeasured(Section):
    """A server's launch by phase."""

    process_s: Seconds = Field(description="from the process's start to the model's load")
    load_s: Seconds = Field(description="the model's load")
    ready_s: Seconds = Field(description="from loaded to ready")
    warm_up_s: Seconds = Field(description="warm-up requests")


class MeasuredSettings(Section):
    """Where a profile's numbers come from; written by `themis profile`, never by hand."""

    version: Annotated[int, Field(ge=PROFILE_VERSION, le=PROFILE_VERSION)] = Field(description="of this section's format")
    model: str = Field(description="the model's name")
    model_version: str = Field(description="the version that served")
    config_hash: str = Field(description="of config.pbtxt without counts and batching")
    model_hash: str = Field(description="of the model's other files; empty where they could not be read")
    triton_version: str = Field(description="of the server")
    machine: str = Field(description="the machine's name")
    device: str = Field(description="the device's kind and name")
    at: str = Field(description="when, in UTC")
    percentile: float = Field(description="of the service times in `table`")
    source: Annotated[TimeSource, Field(strict=False)] = Field(description="trace: Triton's time stamps; client: less the mean overhead")
    points: list[PointSettings] = Field(description="what was measured")
    fits: list[FitSettings] = Field(default=[], description="the two forms")
    memory: Size | None = Field(default=None, description="memory of a server with one instance")
    launch: LaunchSettingsMeasured | None = Field(default=None, description="a server's launch by phase; absent where one was adopted")

    @property
    def origin(self) -> ProfileOrigin:
        """What tells whether the profile is stale."""
        return ProfileOrigin(self.config_hash, self.model_hash, self.device, self.percentile)


class OperationSettings(Section):
    """One lever as measured under load."""

    in_place: bool = Field(description="true: only instances came or went; false: the whole model was loaded anew")
    duration_s: Seconds = Field(description="how long the call took")
    requests: int = Field(ge=0, description="requests answered while it was pulled")
    errors: int = Field(ge=0, description="of these, answered with an error or wrongly; above 0 the lever loses requests")
    latency_added_ms: float = Field(description="largest latency while it was pulled less the largest before")
    memory_peak: Size = Field(description="most memory of the server meanwhile")
    refused: str | None = Field(default=None, description="the server's words where it refused")


class OperationsSettings(Section):
    """The levers of a model; one that is absent was not probed."""

    add_one: OperationSettings | None = Field(default=None, description="one more instance")
    remove_one: OperationSettings | None = Field(default=None, description="one fewer")
    add_many: OperationSettings | None = Field(default=None, description="several more at once")
    rebatch: OperationSettings | None = Field(default=None, description="another largest batch")
    load_failure: OperationSettings | None = Field(default=None, description="a change that cannot succeed")

    @property
    def proven(self) -> dict[str, bool]:
        """By name of each lever probed, whether it lost no request; a change that was refused proves nothing.

        Nor does one without errors under which too few requests were on their way: it counts as not probed.
        """
        probed = {name: getattr(self, name) for name in ("add_one", "remove_one", "add_many", "rebatch")}
        return {
            name: lever.errors == 0 and lever.refused is None
            for name, lever in probed.items()
            if lever is not None and (lever.errors > 0 or lever.refused is not None or lever.requests >= PROVING_REQUESTS)
        }
