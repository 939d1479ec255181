"""Metrics of what runs beside what may run: cost, instances wanted and allowed, slots, and the ages of what was read."""

from __future__ import annotations

from collections import Counter

from prometheus_client import CollectorRegistry, Gauge

from themis_triton.core.config import ThemisConfig
from themis_triton.core.decision import Target
from themis_triton.core.estimate import PROXY
from themis_triton.core.observation import Snapshot
from themis_triton.core.price import hourly_prices, running_price
from themis_triton.core.record import TickRecord


class UsageMetrics:
    """Gauges that need the settings, set from the newest tick."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._cost = Gauge("themis_cost_per_second", "Cost of what runs, by the prices of the settings", registry=registry)
        self._price = Gauge(
            "themis_price_per_hour", "Price of the slots on which launched servers run or start", ["node_type"], registry=registry
        )
        self._wanted = Gauge(
            "themis_wanted_instances", "Instances that the newest decision wants on all servers", ["model"], registry=registry
        )
        self._most = Gauge("themis_max_instances", "Most instances of a model on a device, as bounded", ["model"], registry=registry)
        self._places = Gauge(
            "themis_free_places", "How many more servers find a node, as the engine last said", ["node_type"], registry=registry
        )
        self._slots = Gauge("themis_slots", "Slots for launched servers, used and free", ["state"], registry=registry)
        self._age = Gauge(
            "themis_source_age_seconds", "Age of the last good reading of Envoy and of a server", ["source"], registry=registry
        )
        self._read_at_s: dict[str, float] = {}

    def take(self, snapshot: Snapshot) -> None:
        """Note what a tick could read."""
        good = {reading.server: reading.at_s for reading in snapshot.readings if reading.error is None}
        if snapshot.routes_error is None and snapshot.routes:
            good[PROXY] = snapshot.routes[0].at_s
        known = {PROXY, *(server.name for server in snapshot.servers)}
        self._read_at_s = {name: at_s for name, at_s in (self._read_at_s | good).items() if name in known}

    def show(self, record: TickRecord, config: ThemisConfig) -> None:
        """Set all gauges."""
        servers = record.snapshot.servers
        self._cost.set(running_price((server.models for server in servers), config))
        for node_type, price in (hourly_prices(servers, config) or {}).items():
            self._price.labels(node_type).set(price)
        self._places.clear()
        for node_type, places in record.snapshot.free_places.items():
            self._places.labels(node_type).set(places)
        wanted = _instances(record.snapshot) if record.decision.target is None else _wanted(record.decision.target)
        for name, model in config.models.items():
            self._wanted.labels(name).set(wanted[name])
            self._most.labels(name).set(model.max_instances)
        slots = {slot.name for slot in config.launch.slots} if config.launch is not None else set()
        used = {server.slot for server in servers if server.launched} & slots
        self._slots.labels("used").set(len(used))
        self._slots.labels("free").set(len(slots) - len(used))
        self._age.clear()
        for name, at_s in self._read_at_s.items():
            self._age.labels(name).set(max(0.0, record.snapshot.at_s - at_s))


def _wanted(target: Target) -> Counter[str]:
    counts = Counter[str]()
    staying = [models for name, models in target.servers.items() if name not in target.retire]
    for models in (*staying, *target.launch.values()):
        counts.update({name: state.instances for name, state in models.items()})
    return counts


def _instances(snapshot: Snapshot) -> Counter[str]:
    counts = Counter[str]()
    for server in snapshot.servers:
        counts.update({name: state.instances for name, state in server.models.items()})
    return counts
