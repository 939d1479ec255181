"""Names that a model gets in Envoy: safe in cluster names, statistics, file names and paths, whatever the model is called."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from functools import lru_cache

_PLAIN = re.compile(r"[A-Za-z0-9_-]")
_LONGEST = 120

ANY, UNLISTED, INDEX = "any", "unlisted", "index"
"""Prefixes of the clusters that belong to no model."""


class Protocol(StrEnum):
    """The two ways in."""

    GRPC = "grpc"
    HTTP = "http"


@lru_cache(4096)
def safe_name(model: str) -> str:
    """The model's name with every byte outside `[A-Za-z0-9_-]` as `~` and two hex digits: one to one, readable when it can be.

    A name that would grow past 120 characters ends in its SHA-256 instead, because it must fit into a file name.
    """
    text = "".join(c if _PLAIN.fullmatch(c) else "".join(f"~{byte:02x}" for byte in c.encode()) for c in model)
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - 66].rstrip('~')}~~{hashlib.sha256(model.encode()).hexdigest()}"


def model_cluster(protocol: Protocol, model: str) -> str:
    """Name of the cluster with the servers that hold the model."""
    return f"model_{protocol}_{safe_name(model)}"


def any_cluster(protocol: Protocol) -> str:
    """Name of the cluster with every serving server."""
    return f"{ANY}_{protocol}"


def unlisted_cluster(protocol: Protocol) -> str:
    """Name of the cluster for models that no server's index lists."""
    return f"{UNLISTED}_{protocol}"


def index_cluster(protocol: Protocol) -> str:
    """Name of the cluster that answers the repository index."""
    return f"{INDEX}_{protocol}"


def inference_stat(model: str) -> str:
    """Statistics prefix of the routes on which the model's single inference requests come in."""
    return f"infer_{safe_name(model)}"


def late_stat(model: str) -> str:
    """Name of the counter of the model's gRPC calls that are refused for their deadline."""
    return f"late_{safe_name(model)}"


def stream_stat(model: str) -> str:
    """Statistics prefix of the route on which the model's gRPC streams come in."""
    return f"stream_{safe_name(model)}"


def refusal_stat(protocol: Protocol, model: str) -> str:
    """Statistics prefix of the limit on the model's single inference requests."""
    return f"limit_{protocol}_{safe_name(model)}"


def endpoints_file(cluster: str) -> str:
    """The cluster's EDS file, relative to Envoy's directory."""
    return f"eds/{cluster}.json"


def cluster_of(file_name: str) -> str | None:
    """The cluster whose EDS file this is; None for other files."""
    return file_name[len("eds/") : -len(".json")] if file_name.startswith("eds/") and file_name.endswith(".json") else None
