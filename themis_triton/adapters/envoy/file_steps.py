"""The order in which Envoy's files change, so that no route exists before its cluster."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from themis_triton.adapters.envoy.client_auth import FILTER_FILES
from themis_triton.adapters.envoy.clusters import EDS
from themis_triton.adapters.envoy.downstream_tls import SECRETS
from themis_triton.adapters.envoy.http_listener import routes_file
from themis_triton.adapters.envoy.names import Protocol, cluster_of, endpoints_file
from themis_triton.adapters.envoy.render import BOOTSTRAP, CLUSTERS, LISTENERS, discovery, version_of

Files = Mapping[str, str]

# Envoy reads a secret, and the filter that checks clients, when a listener names it.
_FRONT = (*SECRETS.values(), *FILTER_FILES.values(), LISTENERS, *(routes_file(protocol) for protocol in Protocol))

FILTERS = "extension_config_discovery.http_filter."
"""Prefix of the statistics of filters that have a file of their own."""
_PREFIXES = {
    LISTENERS: "listener_manager.lds",
    CLUSTERS: "cluster_manager.cds",
    **{file: f"sds.{name}" for name, file in SECRETS.items()},
    **{file: f"{FILTERS}{name}" for name, file in FILTER_FILES.items()},
}


def steps(desired: Files, present: Files) -> list[dict[str, str]]:
    """What to move into place, step by step; Envoy must have applied a step before the next begins. Empty: nothing differs.

    First endpoints of existing clusters, then clusters that are new or have their endpoints inside, then listeners and routes; obsolete
    clusters are removed last.
    """
    known = {endpoints_file(name) for name in _watched_clusters(present)}
    moved = _differing(desired, present, known | {BOOTSTRAP})
    kept = {**desired, CLUSTERS: _with_retained(desired[CLUSTERS], present.get(CLUSTERS))}
    # Within a step files are moved in this order: a new cluster finds its endpoints when it is read.
    added = _differing(kept, present, [name for name in desired if cluster_of(name) and name not in known] + [CLUSTERS])
    front = _differing(desired, present, _FRONT)
    trimmed = {CLUSTERS: desired[CLUSTERS]} if kept[CLUSTERS] != desired[CLUSTERS] else {}
    return [step for step in (moved, added, front, trimmed) if step]


def _differing(desired: Files, present: Files, names: Iterable[str]) -> dict[str, str]:
    return {name: desired[name] for name in names if name in desired and desired[name] != present.get(name)}


def _watched_clusters(files: Files) -> list[str]:
    text = files.get(CLUSTERS)
    return [each["name"] for each in json.loads(text)["resources"] if each["type"] == EDS] if text is not None else []


def _with_retained(desired: str, present: str | None) -> str:
    """The desired clusters, followed by those that are present and obsolete."""
    if present is None:
        return desired
    resources = json.loads(desired)["resources"]
    names = {each["name"] for each in resources}
    retained = [each for each in json.loads(present)["resources"] if each["name"] not in names]
    return discovery([*resources, *retained]) if retained else desired


def expected_versions(step: Files) -> dict[str, str]:
    """Prefix of the statistics of each file's subscription, and the version that Envoy reports there once it has applied the file."""
    return {statistics_prefix(name): version_of(text) for name, text in step.items() if name != BOOTSTRAP}


def statistics_prefix(name: str) -> str:
    """Prefix of the statistics of an xDS file's subscription."""
    cluster = cluster_of(name)
    if cluster is not None:
        return f"cluster.{cluster}"
    return _PREFIXES.get(name) or next(f"http.{each}.rds.{each}" for each in Protocol if routes_file(each) == name)
