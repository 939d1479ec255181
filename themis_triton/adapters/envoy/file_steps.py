"""In which order Envoy's files change, so that no request meets a route without its cluster."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from themis_triton.adapters.envoy.http_listener import routes_file
from themis_triton.adapters.envoy.names import Protocol, cluster_of, endpoints_file
from themis_triton.adapters.envoy.render import BOOTSTRAP, CLUSTERS, LISTENERS, discovery, version_of

Files = Mapping[str, str]

_FRONT = (LISTENERS, *(routes_file(protocol) for protocol in Protocol))


def steps(wanted: Files, present: Files) -> list[dict[str, str]]:
    """What to move into place, step by step; each step is to be taken up before the next begins. Empty: nothing differs.

    Endpoints of clusters that exist, then new clusters (those that go are kept), then listeners and routes, then without those that go.
    """
    known = {endpoints_file(name) for name in _clusters(present)}
    moved = _differing(wanted, present, known | {BOOTSTRAP})
    kept = {**wanted, CLUSTERS: _with_retained(wanted[CLUSTERS], present.get(CLUSTERS))}
    # Within a step files are moved in this order: a new cluster finds its endpoints when it is read.
    added = _differing(kept, present, [name for name in wanted if cluster_of(name) and name not in known] + [CLUSTERS])
    front = _differing(wanted, present, _FRONT)
    trimmed = {CLUSTERS: wanted[CLUSTERS]} if kept[CLUSTERS] != wanted[CLUSTERS] else {}
    return [step for step in (moved, added, front, trimmed) if step]


def _differing(wanted: Files, present: Files, names: Iterable[str]) -> dict[str, str]:
    return {name: wanted[name] for name in names if name in wanted and wanted[name] != present.get(name)}


def _clusters(files: Files) -> list[str]:
    text = files.get(CLUSTERS)
    return [each["name"] for each in json.loads(text)["resources"]] if text is not None else []


def _with_retained(wanted: str, present: str | None) -> str:
    """The wanted clusters, and behind them those that are present and not wanted."""
    if present is None:
        return wanted
    resources = json.loads(wanted)["resources"]
    names = {each["name"] for each in resources}
    retained = [each for each in json.loads(present)["resources"] if each["name"] not in names]
    return discovery([*resources, *retained]) if retained else wanted


def expected_versions(step: Files) -> dict[str, str]:
    """Prefix of the statistics of each file's subscription, and the version that Envoy tells there once it has taken the file up."""
    return {statistics_prefix(name): version_of(text) for name, text in step.items() if name != BOOTSTRAP}


def statistics_prefix(name: str) -> str:
    """Prefix of the statistics of an xDS file's subscription."""
    cluster = cluster_of(name)
    if cluster is not None:
        return f"cluster.{cluster}"
    fixed = {LISTENERS: "listener_manager.lds", CLUSTERS: "cluster_manager.cds"}
    return fixed.get(name) or next(f"http.{each}.rds.{each}" for each in Protocol if routes_file(each) == name)
