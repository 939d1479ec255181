"""The options of a load run: one frozen value, which a child process gets as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from themis_triton.core.config import ModelInputs
from themis_triton.core.errors import SettingsError
from themis_triton.load.traces import TraceOptions


@dataclass(frozen=True, slots=True)
class PipelineLoad:
    """One pipeline: each request calls `stages` (model names) in order. `metadata`: what each call carries."""

    name: str
    stages: tuple[str, ...]
    slo_ms: float
    trace: TraceOptions = field(default_factory=TraceOptions)
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """A load run. `address` is `host:port` of a KServe-v2 gRPC service, or an `Address` with TLS as text.

    `request_timeout_s` counts from a request's intended send time, `drain_s` from the last one: what is unanswered then has failed.
    `shapes`: of inputs by `MODEL.INPUT`, with or without the batch dimension; else `inputs`, by model, has them.
    `out`: a `.npz` file for the rows of every request. `bearer_file`: a file with the API key or JSON Web Token that requests carry.
    """

    address: str
    pipelines: tuple[PipelineLoad, ...]
    seed: int = 0
    connect_timeout_s: float = 10.0
    request_timeout_s: float = 30.0
    drain_s: float = 30.0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: dict[str, ModelInputs] = field(default_factory=dict)
    out: Path | None = None
    bearer_file: Path | None = None


_ADAPTER = TypeAdapter(LoadOptions)


def to_json(options: LoadOptions) -> str:
    """The options as one line of JSON."""
    return _ADAPTER.dump_json(options).decode()


def from_json(text: str) -> LoadOptions:
    """The options from the line of `to_json`. Raises SettingsError with the invalid key."""
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(whole)"
        raise SettingsError(f"load options: {key}: {first['input']!r} is invalid: {first['msg']}") from error
