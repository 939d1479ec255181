"""A model's profile, as written in a settings file or in a profile file, and its latency table."""

from __future__ import annotations

import math
from collections.abc import Sized
from enum import StrEnum
from itertools import pairwise
from statistics import median
from typing import Annotated

from pydantic import Field, model_validator

from themis_triton.core.config import LatencyTable, ModelProfile
from themis_triton.core.service_times import ServiceTimes
from themis_triton.settings.kinds import Count, Seconds, Section, Size, one_of, refusal
from themis_triton.settings.measured import MeasuredSettings, OperationsSettings

DEFAULT_PROFILE = ModelProfile(LatencyTable((1,), (1,), ((1.0,),)))


FORM_WORDS = "contention: c busy instances on one device; cores: c cores; paper: c cores, as published, in whole ms"


class SurfaceForm(StrEnum):
    """The closed form of a latency surface `l(b, c)`."""

    CONTENTION = "contention"
    CORES = "cores"
    PAPER = "paper"


class SurfaceSettings(Section):
    """A fitted surface: `alpha·b·c + beta·b + gamma·c + zeta` (contention) or `alpha·b/c + beta·b + gamma/c + zeta` (cores).

    paper: `⌈m·(alpha·b/c + m_b·beta·b + gamma/c + ⌈zeta'⌉)⌉` with `zeta' = zeta + (alpha + beta + gamma + zeta)/10`.
    """

    form: Annotated[SurfaceForm, Field(strict=False)] = Field(description=FORM_WORDS)
    alpha_ms: float = Field(description="per request of the batch, times the busy instances (or divided by the cores)")
    beta_ms: float = Field(description="per request of the batch")
    gamma_ms: float = Field(description="per busy instance (or divided by the cores)")
    zeta_ms: float = Field(description="per batch")
    m: Annotated[float, Field(gt=0)] = Field(default=1.0, description="form paper: factor of the whole expression")
    m_b: Annotated[float, Field(gt=0)] = Field(default=1.0, description="form paper: factor of `beta_ms`")

    @model_validator(mode="after")
    def _factors(self) -> SurfaceSettings:
        if self.form is not SurfaceForm.PAPER and (self.m, self.m_b) != (1.0, 1.0):
            raise refusal(
                f"form {self.form.value} has no m or m_b", "m and m_b with form paper only", "multiply the constants by them instead"
            )
        return self

    def at(self, batch: int, instances: int) -> float:
        """Service time in ms."""
        if self.form is SurfaceForm.PAPER:
            constants = (self.alpha_ms, self.beta_ms, self.gamma_ms, self.zeta_ms)
            from themis_triton.solver.surface import paper_latency_ms  # noqa: PLC0415 - the base install has no numpy

            return float(paper_latency_ms(*constants, m=self.m, m_b=self.m_b, batch=batch, cores=instances))
        scale = float(instances) if self.form is SurfaceForm.CONTENTION else 1.0 / instances
        return (self.alpha_ms * batch + self.gamma_ms) * scale + self.beta_ms * batch + self.zeta_ms


def _count(items: Sized, noun: str) -> str:
    return f"1 {noun}" if len(items) == 1 else f"{len(items)} {noun}s"


class TableSettings(Section):
    """Measured service times: one row per batch size, one column per number of busy instances on the device."""

    batches: list[Count] = Field(min_length=1, description="measured batch sizes, in ascending order from 1")
    instances: list[Count] = Field(min_length=1, description="numbers of busy instances on the device, in ascending order from 1")
    latency_ms: list[list[Annotated[float, Field(gt=0)]]] = Field(
        description="one row per batch size, one number per instance count: service time at the SLO's percentile"
    )

    @model_validator(mode="after")
    def _shaped(self) -> TableSettings:
        for name, axis in (("batches", self.batches), ("instances", self.instances)):
            if axis[0] != 1 or any(a >= b for a, b in pairwise(axis)):
                raise refusal(f"{name} {axis} is invalid", f"{name} in ascending order from 1", "sort them, and measure 1 too")
        shape = f"{len(self.batches)} rows (batches) of {len(self.instances)} numbers (instances)"
        if len(self.latency_ms) != len(self.batches):
            raise refusal(f"latency_ms has {_count(self.latency_ms, 'row')}", shape, "write one row per batch size")
        for row, batch in zip(self.latency_ms, self.batches, strict=True):
            if len(row) != len(self.instances):
                raise refusal(f"latency_ms has {_count(row, 'number')} for batch {batch}", shape, "write one number per instance count")
        return self


class ProfileSettings(Section):
    """A model's latency, as a table or a surface, and the costs of its changes."""

    model_config = one_of("table", "surface", flag="learn")

    table: TableSettings | None = Field(default=None, description="measured service times; either this or `surface`")
    surface: SurfaceSettings | None = Field(default=None, description="a fitted surface; either this or `table`")
    learn: bool = Field(
        default=False,
        description="true, instead of `table` and `surface`: a running sidecar learns the service times from Triton's counters, and "
        "changes nothing for the pipelines of this model before it knows them",
    )
    instance_init_s: Seconds = Field(default=DEFAULT_PROFILE.instance_init_s, description="time until one more instance serves")
    instance_stop_s: Seconds = Field(default=DEFAULT_PROFILE.instance_stop_s, description="time to remove an instance")
    server_launch_s: Seconds = Field(
        default=DEFAULT_PROFILE.server_launch_s, description="time from a server's start to its first response, without the instances"
    )
    instance_memory: Size = Field(default=0, validate_default=True, description="device memory of one instance")
    about: str | None = Field(default=None, description="free text on the origin of the numbers")
    measured: MeasuredSettings | None = Field(
        default=None, description="written by `themis profile`: samples, fits and the conditions of the measurement"
    )
    operations: OperationsSettings | None = Field(
        default=None, description="written by `themis probe`: cost of each operation, and whether it is safe"
    )

    @model_validator(mode="after")
    def _one_of(self) -> ProfileSettings:
        known = [f"`{name}`" for name in ("table", "surface") if getattr(self, name) is not None]
        if self.learn and known:
            raise refusal(
                f"`learn` and {known[0]} are set", "one of `table`, `surface` and `learn`", f"remove `learn`: {known[0]} is known"
            )
        if not self.learn and len(known) != 1:
            fault = "neither `table` nor `surface` is set" if not known else "both `table` and `surface` are set"
            fix = "measure it with `themis profile`, or set `learn: true`" if not known else "keep the measured one"
            raise refusal(fault, "one of `table` and `surface`, or `learn: true`", fix)
        return self

    def fastest_ms(self, max_instances: int) -> float:
        """The minimum service time of one request in ms, over the allowed numbers of instances (or cores); 0 where it is to be learnt."""
        if self.learn:
            return 0.0
        if self.table is not None:
            return min(self.table.latency_ms[0])
        return min(self._surface().at(1, 1), self._surface().at(1, max_instances))

    def latency_table(self, max_batch: int, max_busy: int) -> LatencyTable:
        """The measured table, or the surface at batches of 1 to `max_batch` and 1 to `max_busy` busy instances, rounded to 1 ns."""
        if self.table is not None:
            table = self.table
            return LatencyTable(tuple(table.batches), tuple(table.instances), tuple(tuple(row) for row in table.latency_ms))
        batches, instances = tuple(range(1, max_batch + 1)), tuple(range(1, max_busy + 1))
        if self.learn:
            return LatencyTable(batches, instances, tuple((ServiceTimes().of(b),) * len(instances) for b in batches))
        surface = self._surface()
        return LatencyTable(batches, instances, tuple(tuple(round(surface.at(b, c), 6) for c in instances) for b in batches))

    def mean_table(self) -> LatencyTable | None:
        """Mean service times at the points of `table`, from Triton's statistics; None without a measured profile.

        At a point that was not measured: the percentile times the median ratio of mean to percentile.
        """
        if self.table is None or self.measured is None or not self.measured.points:
            return None
        means = {(point.batch, point.instances): point.statistics_ms for point in self.measured.points}
        share = median(point.statistics_ms / point.service_ms for point in self.measured.points)
        rows = zip(self.table.batches, self.table.latency_ms, strict=True)
        values = tuple(
            tuple(means.get((batch, count), share * value) for count, value in zip(self.table.instances, row, strict=True))
            for batch, row in rows
        )
        return LatencyTable(tuple(self.table.batches), tuple(self.table.instances), values)

    def to_core(self, max_batch: int, max_busy: int) -> ModelProfile:
        """The profile as a core value."""
        return ModelProfile(
            self.latency_table(max_batch, max_busy),
            self.instance_init_s,
            self.instance_stop_s,
            self.server_launch_s,
            int(self.instance_memory),
            None if self.measured is None else self.measured.origin,
            {} if self.operations is None else self.operations.proven,
            self.mean_table(),
            frozenset() if self.operations is None else self.operations.renewing,
            0.0 if self.learn else None,
        )

    def first_not_positive(self, max_batch: int, max_busy: int) -> str | None:
        """A description of a surface corner at or below 0 ms, or None. The forms are monotone in each argument, so the corners suffice."""
        if self.surface is None:
            return None
        for batch in (1, max_batch):
            for instances in (1, max_busy):
                value = self.surface.at(batch, instances)
                if value <= 0 or not math.isfinite(value):
                    return f"l({batch}, {instances}) = {value:g} ms"
        return None

    def _surface(self) -> SurfaceSettings:
        if self.surface is None:
            raise ValueError("a profile without a table must have a surface")
        return self.surface
