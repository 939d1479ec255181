"""The usage, cost and actions of a run of the daemon."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from themis_triton.core.action import OutcomeKind
from themis_triton.core.config import ThemisConfig
from themis_triton.core.fleet import Server
from themis_triton.core.observation import Snapshot
from themis_triton.core.price import running_price
from themis_triton.core.record import TickRecord
from themis_triton.core.server_kind import kind_of, kind_seconds


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """Totals since the daemon started. A server costs from its launch until it is removed; seconds are integrated tick by tick."""

    at_s: float | None = None
    server_seconds: float = 0.0
    instance_seconds: float = 0.0
    cost: float = 0.0
    max_servers: int = 0
    max_instances: int = 0
    actions: dict[str, int] = field(default_factory=dict)
    failed_actions: dict[str, int] = field(default_factory=dict)
    server_seconds_by_kind: dict[str, float] = field(default_factory=dict)

    def add(self, record: TickRecord, config: ThemisConfig) -> UsageTotals:
        """The totals with one more tick."""
        now_s = record.snapshot.at_s
        elapsed_s = max(0.0, now_s - self.at_s) if self.at_s is not None else 0.0
        running = _with_removed(record.snapshot)
        servers, instances = counts(running)
        done = Counter(o.action.kind.value for o in record.outcomes if o.kind is OutcomeKind.DONE)
        failed = Counter(o.action.kind.value for o in record.outcomes if o.kind not in (OutcomeKind.DONE, OutcomeKind.SKIPPED))
        return UsageTotals(
            at_s=now_s,
            server_seconds=self.server_seconds + elapsed_s * servers,
            instance_seconds=self.instance_seconds + elapsed_s * instances,
            cost=self.cost + elapsed_s * running_price((server.models for server in running), config),
            max_servers=max(self.max_servers, servers),
            max_instances=max(self.max_instances, instances),
            actions=dict(Counter(self.actions) + done),
            failed_actions=dict(Counter(self.failed_actions) + failed),
            server_seconds_by_kind=self._by_kind(record.snapshot.servers, elapsed_s),
        )

    def _by_kind(self, servers: tuple[Server, ...], elapsed_s: float) -> dict[str, float]:
        added = kind_seconds([(map(kind_of, servers), elapsed_s)])
        return {kind: self.server_seconds_by_kind.get(kind, 0.0) + seconds for kind, seconds in added.items()}


def _with_removed(snapshot: Snapshot) -> tuple[Server, ...]:
    """The servers with the instances that are being removed: they have a price until they are gone."""
    before = {(call.server, call.model): call.before for call in snapshot.open_calls if not call.grows}
    if not before:
        return snapshot.servers
    return tuple(
        replace(server, models={name: before.get((server.name, name), state) for name, state in server.models.items()})
        for server in snapshot.servers
    )


def counts(servers: tuple[Server, ...]) -> tuple[int, int]:
    """The numbers of servers and of model instances."""
    return len(servers), sum(state.instances for server in servers for state in server.models.values())
