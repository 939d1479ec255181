"""The sections of models: bounds, inputs and prices."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from themis_triton.core.config import ModelConfig
from themis_triton.settings.kinds import Allowed, Count, FilePath, Name, Section, refusal
from themis_triton.settings.profile import DEFAULT_PROFILE, ProfileSettings

_MODEL = ModelConfig("", DEFAULT_PROFILE)
MAX_INSTANCES = 64
MAX_BATCH = 512


class InstanceBounds(Section):
    """How many instances of a model one server may run."""

    min: Count = Field(default=_MODEL.min_instances, description="minimum on a server that holds the model")
    max: int = Field(default=_MODEL.max_instances, ge=1, le=MAX_INSTANCES, description="maximum on one server")

    @model_validator(mode="after")
    def _ordered(self) -> InstanceBounds:
        if self.min > self.max:
            raise refusal(f"min {self.min} > max {self.max}", "min ≤ max", f"write [{self.max}, {self.min}]")
        return self


def _bounds(value: object) -> object:
    if isinstance(value, list):
        if len(value) != 2:
            raise refusal(f"a list of {len(value)} is invalid", BOUNDS_WORDS, "write [min, max]")
        return {"min": value[0], "max": value[1]}
    return value


Pair = Annotated[list[int], Field(min_length=2, max_length=2)]
BOUNDS_WORDS = f"[min, max] of 1 to {MAX_INSTANCES}, or a mapping with `min` and `max`"


Bounds = Annotated[InstanceBounds, BeforeValidator(_bounds, json_schema_input_type=InstanceBounds | Pair), Allowed(BOUNDS_WORDS)]


class InputSettings(Section):
    """Inputs of the requests that Themis itself sends to a model: warm-up, profile, probe, load."""

    shapes: dict[str, list[Count]] = Field(
        default={}, description="sizes of an input, by its name, without the batch dimension: {INPUT_IDS: [128]}"
    )
    file: FilePath | None = Field(
        default=None, description="instead of `shapes`: an .npz file with one array per input, without the batch dimension"
    )

    @model_validator(mode="after")
    def _one_of(self) -> InputSettings:
        if self.shapes and self.file is not None:
            raise refusal("both `shapes` and `file` are set", "one of `shapes` and `file`", "remove `shapes`; the arrays have shapes")
        return self


class ModelSettings(Section):
    """A model's profile, its bounds on one server, and its prices."""

    profile: ProfileSettings = Field(
        default=ProfileSettings(learn=True),
        description="the model's latency and costs: a mapping, or the path of a profile file; by default the latency is learnt",
    )
    instances: Bounds = Field(default=InstanceBounds(), description="instances on one server")
    max_batch: int = Field(
        default=_MODEL.max_batch,
        ge=1,
        le=MAX_BATCH,
        description="maximum batch size of plans; at most the `max_batch_size` of the model's config.pbtxt",
    )
    rows_per_request: float = Field(
        default=_MODEL.rows_per_request,
        ge=1,
        le=MAX_BATCH,
        description="rows of a batch in a request where clients send several at once, until they are measured; the mean where they differ",
    )
    max_queue_delay_us: int = Field(
        default=_MODEL.max_queue_delay_us, ge=0, description="maximum time that Triton's batcher waits for a batch to fill"
    )
    require_probed_operations: bool = Field(
        default=_MODEL.require_probed_operations,
        description="change instances or batching of a running server only by operations that lost no request in `themis probe`",
    )
    inputs: InputSettings = Field(
        default=InputSettings(),
        description="inputs of the requests that Themis sends to the model; by default made up: zeros, and 1 or 32 for free dimensions",
    )
    warmup: FilePath | None = Field(
        default=None,
        description="an .npz file with the inputs of warm-up requests, one array per input without the batch dimension, as for "
        "`themis profile --data`; by default those of `inputs`; data of the model's own `model_warmup` take precedence",
    )
    node_types: list[Name] | None = Field(
        default=None,
        min_length=1,
        description="node types that servers with this model may be launched on, of `launch.node_types` or `launch.slots`; by default all",
    )
    server_price: float | None = Field(
        default=None, ge=0, description="placement separate: price of one server of this model; by default `prices.server`"
    )
    instance_price: float | None = Field(
        default=None, ge=0, description="price of one instance of this model; by default `prices.instance`"
    )
