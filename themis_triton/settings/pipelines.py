"""The sections of pipelines: stages, SLO and overload."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator, model_validator

from themis_triton.core.config import Overload, PipelineConfig, StageCalls
from themis_triton.settings.kinds import Allowed, Section, one_of, refusal

_PIPELINE = PipelineConfig("", (), 1.0)
_CALLS = StageCalls()
MAX_CALLS = 1000.0


def _stage(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


class StageSettings(Section):
    """One stage of a pipeline."""

    model: str = Field(description="the model")
    per_request: float = Field(
        default=_CALLS.per_request,
        gt=0,
        le=MAX_CALLS,
        description="requests of this stage per request of the pipeline, in the mean; a running sidecar measures them",
    )
    max_per_request: float | None = Field(
        default=_CALLS.max_per_request,
        gt=0,
        le=MAX_CALLS,
        description="where the number differs between requests: the largest that must still meet the SLO; by default `per_request`",
    )
    sequential: bool = Field(
        default=_CALLS.sequential,
        description="true: clients make these requests one after the other; false: all at once",
    )

    @property
    def calls(self) -> StageCalls:
        """The stage without its name."""
        return StageCalls(self.per_request, self.sequential, self.max_per_request)

    @model_validator(mode="after")
    def _not_below_the_mean(self) -> StageSettings:
        if self.max_per_request is not None and self.max_per_request < self.per_request:
            fault = f"`max_per_request` is {self.max_per_request:g}, below `per_request`"
            raise refusal(fault, f"at least {self.per_request:g}", "raise `max_per_request`, or lower `per_request`, which is the mean")
        return self


Stage = Annotated[
    StageSettings,
    BeforeValidator(_stage, json_schema_input_type=StageSettings | str),
    Allowed("a model, or a mapping with `model`, `per_request`, `max_per_request`, `sequential`"),
]


Callees = Annotated[list[Stage], Field(min_length=1), Allowed("a list of models")]


class ClassSettings(Section):
    """Classes of requests, told apart by a header. Clients choose them, so trust them or have a proxy set the header."""

    header: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$"), Allowed("a header's name in lower case")] = Field(
        default="x-priority", description="the request header, or gRPC metadata key"
    )
    values: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(
        min_length=1, max_length=8, description="its values, the highest class first; requests with none of them are the lowest class"
    )

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: list[str]) -> list[str]:
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise refusal(f"{twice} is named twice", "each class once", f"remove the second {twice}")
        return values


class PipelineSettings(Section):
    """A chain of models with one end-to-end SLO, or a single model, which may be an ensemble or call others."""

    model_config = one_of("stages", "model")

    stages: list[Stage] | None = Field(default=None, min_length=1, description="the models in the order in which a request passes them")
    model: str | None = Field(
        default=None, description="instead of `stages`: a single model, an ensemble, or a model that calls others (`calls`)"
    )
    slo_ms: float = Field(gt=0, description="end-to-end latency SLO")
    percentile: float = Field(default=_PIPELINE.percentile, ge=50, lt=100, description="percentage of requests that must meet the SLO")
    weight: float = Field(default=_PIPELINE.weight, gt=0, description="priority relative to other pipelines when not all SLOs can be met")
    overload: Annotated[Overload | None, Field(strict=False)] = Field(
        default=None,
        description="what happens while the servers cannot carry the demand inside the SLO; queue: requests wait in turn (the default); "
        "shed: Envoy refuses those beyond what is carried inside the SLO (HTTP 429, RESOURCE_EXHAUSTED); deprioritize: launched servers "
        "serve requests that waited too long after all others",
    )

    classes: ClassSettings | None = Field(
        default=None, description="with `overload: shed`: classes of requests, of which the lower ones are refused first"
    )

    @model_validator(mode="after")
    def _classes_of_shed(self) -> PipelineSettings:
        if self.classes is not None and self.overload is not Overload.SHED:
            raise refusal("`classes` is set without `overload: shed`", "both or neither", "set `overload: shed`, or remove `classes`")
        return self

    @model_validator(mode="after")
    def _one_of(self) -> PipelineSettings:
        if (self.stages is None) == (self.model is None):
            fault = "neither `stages` nor `model` is set" if self.stages is None else "both `stages` and `model` are set"
            fix = "write `stages: [first, second]`, or `model: name` for a single model, an ensemble, or a model that calls others"
            raise refusal(fault, "one of `stages` and `model`", fix)
        return self

    @property
    def chain(self) -> tuple[str, ...]:
        """The stages; a single model is a chain of one."""
        return tuple(stage.model for stage in self.stages) if self.stages else (self.model,) if self.model else ()
