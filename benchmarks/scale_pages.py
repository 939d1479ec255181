"""Pages as Triton and Envoy answer them, for models of any number; sizes and names are those of the real ones."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from themis_triton.adapters.envoy.stats import _names

COUNTERS = (
    "request_success",
    "request_failure",
    "count",
    "exec_count",
    "request_duration_us",
    "queue_duration_us",
    "compute_input_duration_us",
    "compute_infer_duration_us",
    "compute_output_duration_us",
    "pending_request_count",
)
BINS = 60
"""Bins of a model's latency histogram that have requests."""


def metrics_page(models: Sequence[str]) -> str:
    """Triton's metrics of a server with these models."""
    lines = []
    for name in COUNTERS:
        family = f"nv_inference_{name}"
        lines += [f"# HELP {family} Cumulative figure of all inference requests", f"# TYPE {family} counter"]
        reasons = (
            ('reason="CANCELED",', 'reason="REJECTED",', 'reason="OTHER",', 'reason="BACKEND",') if name == "request_failure" else ("",)
        )
        lines += [f'{family}{{model="{model}",{reason}version="1"}} 1234567' for model in models for reason in reasons]
    lines += ["# HELP nv_cpu_utilization CPU utilization rate [0.0 - 1.0]", "# TYPE nv_cpu_utilization gauge", "nv_cpu_utilization 0.25"]
    return "\n".join(lines) + "\n"


def statistics_page(models: Sequence[str]) -> str:
    """Triton's statistics extension of the same server."""

    def duration() -> dict[str, int]:
        return {"count": 123_456, "ns": 123_456_789_012}

    kinds = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    batch = ("compute_input", "compute_infer", "compute_output")
    stats = [
        {
            "name": model,
            "version": "1",
            "last_inference": 1_700_000_000_000,
            "inference_count": 123_456,
            "execution_count": 30_864,
            "inference_stats": {kind: duration() for kind in kinds},
            "batch_stats": [{"batch_size": size, **{kind: duration() for kind in batch}} for size in range(1, 9)],
            "memory_usage": [],
            "response_stats": {},
        }
        for model in models
    ]
    return json.dumps({"model_stats": stats})


def proxy_page(models: Sequence[str], bounds_ms: Sequence[float]) -> str:
    """Envoy's statistics of these models, as the reader of routes asks for them."""
    entries: list[dict[str, Any]] = []
    details = []
    bins = [{"lower_bound": bounds_ms[n], "width": 1, "count": 1000} for n in range(BINS)]
    for model in models:
        names = _names(model)
        counters = dict.fromkeys((*names.arrivals, *names.in_flight, *names.failures, *names.refused))
        entries += [{"name": name, "value": 123_456} for name in counters if "http" not in name.split(".")[1]]
        details.append({"name": names.latency[0], "totals": bins, "intervals": []})
    return json.dumps({"stats": [*entries, {"histograms": {"supported_percentiles": [50, 99], "details": details}}]})


def proxy_answer(page: str, pattern: str) -> str:
    """What of a page Envoy answers where it is asked for the statistics that match an expression."""
    asked = re.compile(pattern)
    *entries, last = json.loads(page)["stats"]
    details = [each for each in last["histograms"]["details"] if asked.search(each["name"])]
    kept = [entry for entry in entries if asked.search(entry["name"])]
    return json.dumps({"stats": [*kept, {"histograms": {**last["histograms"], "details": details}}]})
