"""The OpenAPI description of the status API, from the types of its values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import themis_triton
from themis_triton.core.day_report import REPORT_PATH, DayReport
from themis_triton.core.history import DECISION_PATH, HISTORY_PATH, DecisionDetail, History
from themis_triton.core.json_schema import schema_of
from themis_triton.core.overrides import Overrides
from themis_triton.core.status import STATUS_PATH, Status
from themis_triton.daemon.control_paths import (
    BOUNDS_PATH,
    DRAIN_PATH,
    MODE_PATH,
    PAUSE_PATH,
    PIN_PATH,
    RELOAD_PATH,
    RESUME_PATH,
    UNDRAIN_PATH,
    UNPIN_PATH,
)
from themis_triton.planning import RatePlan

PLAN_PATH = "/v1/plan"
EVENTS_PATH = "/v1/events"
OPENAPI_PATH = "/v1/openapi.json"
_PREFIX = "#/components/schemas/"


@dataclass(frozen=True, slots=True)
class PlanAnswer:
    """What would run at these rates, with the SLO that was asked for: one plan a rate, in the same order."""

    pipeline: str
    slo_ms: float
    percentile: float
    plans: tuple[RatePlan, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call was refused or failed."""

    error: str


@dataclass(frozen=True, slots=True)
class PauseAnswer:
    """Whether the sidecar is paused from its next tick on, and whether it was."""

    paused: bool
    was_paused: bool


@dataclass(frozen=True, slots=True)
class ReloadAnswer:
    """The settings are read again; the outcome is an event of the status."""

    reloading: bool


@dataclass(frozen=True, slots=True)
class PinRequest:
    """Either a model and its instances on each server, or a pipeline and its servers, for so many seconds; by whom, and why."""

    for_s: float
    model: str = ""
    instances: int = 0
    pipeline: str = ""
    servers: int = 0
    by: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class BoundsRequest:
    """The bounds of either a model's instances on each server, or a pipeline's servers, for so many seconds; by whom, and why."""

    min: int
    max: int
    for_s: float
    model: str = ""
    pipeline: str = ""
    by: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class UnpinRequest:
    """The model or pipeline whose pins and bounds end; by whom, and why."""

    name: str
    by: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class DrainRequest:
    """The server; `force`: at once, also where the others do not carry its load; by whom, and why."""

    server: str
    force: bool = False
    by: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class UndrainRequest:
    """The server that shall have requests again; by whom, and why."""

    server: str
    by: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class ModeRequest:
    """`active`, `advisory`, or `settings` for that of the settings; by whom, and why."""

    mode: str
    by: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a call."""

    name: str
    description: str
    schema: dict[str, Any]
    required: bool = False
    place: str = "query"


@dataclass(frozen=True, slots=True)
class Operation:
    """One call: what it is for, what it takes, and what it answers."""

    path: str
    summary: str
    answer: type[Any] | None
    parameters: tuple[Parameter, ...] = ()
    method: str = "get"
    status: int = 200
    body: type[Any] | None = None
    content_type: str = "application/json"
    errors: tuple[int, ...] = ()


_NUMBER = {"type": "number"}
_NAMES = {"type": "array", "items": {"type": "string"}}
OPERATIONS: Sequence[Operation] = (
    Operation(STATUS_PATH, "The last tick: measurements, decision, actions, totals and newest events", Status),
    Operation(
        HISTORY_PATH,
        "Series of each pipeline, decisions and actions of a range of time, in a bounded number of steps",
        History,
        (
            Parameter("range_s", "length of the range, at most 8 days", _NUMBER | {"default": 3600}),
            Parameter("until_s", "its end in seconds since the epoch; by default now", _NUMBER),
            Parameter("points", "the largest number of steps", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 300}),
            Parameter("pipeline", "names of pipelines; by default all", _NAMES),
        ),
        errors=(400, 503),
    ),
    Operation(
        DECISION_PATH,
        "One decision whole: evidence, runner-up, limits, steps with outcomes, what was predicted and what came of it",
        DecisionDetail,
        (Parameter("id", "the id of a decision or of another change", {"type": "string"}, required=True, place="path"),),
        errors=(404, 503),
    ),
    Operation(
        PLAN_PATH,
        "What would run at another rate or SLO",
        PlanAnswer,
        (
            Parameter("rate_rps", "requests/s; up to 100 values", {"type": "array", "items": _NUMBER}, required=True),
            Parameter("pipeline", "by default the first of the settings", {"type": "string"}),
            Parameter("slo_ms", "by default that of the settings", _NUMBER),
        ),
        errors=(400, 503),
    ),
    Operation(
        REPORT_PATH,
        "A day's late requests and cost, and what Themis would have had under the same arrivals, by the simulator",
        DayReport,
        (Parameter("day", "a local day, YYYY-MM-DD; by default yesterday", {"type": "string"}),),
        errors=(404, 503),
    ),
    Operation(
        EVENTS_PATH,
        "Server-sent events of type `status`, the whole status once a tick; a client that reads too slowly is disconnected",
        Status,
        content_type="text/event-stream",
        errors=(503,),
    ),
    Operation(PAUSE_PATH, "Change nothing from the next tick on, and only show what would be done", PauseAnswer, method="post"),
    Operation(RESUME_PATH, "Carry decisions out again", PauseAnswer, method="post"),
    Operation(RELOAD_PATH, "Read the settings again", ReloadAnswer, method="post", status=202),
    *(
        Operation(path, summary, Overrides, method="post", body=body, errors=(400,))
        for path, summary, body in (
            (PIN_PATH, "Pin a model's instances or a pipeline's servers for a time", PinRequest),
            (BOUNDS_PATH, "Bound a model's instances or a pipeline's servers for a time", BoundsRequest),
            (UNPIN_PATH, "End pins and bounds", UnpinRequest),
            (DRAIN_PATH, "Route no new requests to a server, once others carry its load", DrainRequest),
            (UNDRAIN_PATH, "Route requests to a drained server again", UndrainRequest),
            (MODE_PATH, "Put another mode in force", ModeRequest),
        )
    ),
    Operation("/metrics", "Metrics in Prometheus text", None, content_type="text/plain"),
    Operation("/healthz", "200 while ticks succeed, else 503", None, content_type="text/plain", errors=(503,)),
)
TOKEN_ERRORS = {401: "a token is needed", 403: "the token is wrong", 415: "the body is not JSON"}
ERRORS = {400: "a parameter is wrong", 404: "there is none", 503: "not available now"}


@cache
def openapi_text() -> str:
    """The OpenAPI 3.1 document, indented."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, schemas)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Themis for Triton: status API",
            "version": themis_triton.__version__,
            "description": "Calls that change something need the token; so do all others where `status.address` is no loopback address.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "the content of `status.token_file`"}},
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _operation(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    content = {"schema": schema_of(operation.answer, schemas, _PREFIX) if operation.answer is not None else {"type": "string"}}
    failure = {"application/json": {"schema": schema_of(Failure, schemas, _PREFIX)}}
    changes = operation.method == "post"
    errors = {code: ERRORS[code] for code in operation.errors} | (TOKEN_ERRORS if changes else {})
    answers: dict[str, Any] = {str(operation.status): {"description": "done", "content": {operation.content_type: content}}}
    answers |= {str(code): {"description": words, "content": failure} for code, words in errors.items()}
    described: dict[str, Any] = {"summary": operation.summary, "responses": answers}
    if operation.parameters:
        described["parameters"] = [
            {"name": each.name, "in": each.place, "description": each.description, "required": each.required, "schema": each.schema}
            for each in operation.parameters
        ]
    if changes:
        described["security"] = [{"token": []}]
        schema = schema_of(operation.body, schemas, _PREFIX) if operation.body is not None else {"type": "object"}
        described["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return described
