"""The usage, cost and actions of a run of the daemon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from themis_triton.core.action import OutcomeKind
from themis_triton.core.config import ThemisConfig
from themis_triton.core.fleet import Server
from themis_triton.core.observation import Snapshot
from themis_triton.core.price import running_price
from themis_triton.core.record import TickRecord
from themis_triton.core.server_kind import kind_of, kind_seconds
from themis_triton.core.status import UsageStatus


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """Totals since the daemon started. A server costs from its launch until it is removed; seconds are integrated tick by tick."""

    at_s: float | None = None
    status: UsageStatus = field(default_factory=UsageStatus)

    def add(self, record: TickRecord, config: ThemisConfig) -> UsageTotals:
        """The totals with one more tick."""
        now_s = record.snapshot.at_s
        elapsed_s = max(0.0, now_s - self.at_s) if self.at_s is not None else 0.0
        running = _with_removed(record.snapshot)
        servers, instances = counts(running)
        done = Counter(o.action.kind.value for o in record.outcomes if o.kind is OutcomeKind.DONE)
        failed = Counter(o.action.kind.value for o in record.outcomes if o.kind not in (OutcomeKind.DONE, OutcomeKind.SKIPPED))
        before = self.status
        status = UsageStatus(
            server_seconds=before.server_seconds + elapsed_s * servers,
            instance_seconds=before.instance_seconds + elapsed_s * instances,
            cost=before.cost + elapsed_s * running_price((server.models for server in running), config),
            max_servers=max(before.max_servers, servers),
            max_instances=max(before.max_instances, instances),
            actions=dict(Counter(before.actions) + done),
            failed_actions=dict(Counter(before.failed_actions) + failed),
            server_seconds_by_kind=_by_kind(before.server_seconds_by_kind, record.snapshot.servers, elapsed_s),
        )
        return UsageTotals(now_s, status)


def _by_kind(before: Mapping[str, float], servers: tuple[Server, ...], elapsed_s: float) -> dict[str, float]:
    added = kind_seconds([(map(kind_of, servers), elapsed_s)])
    return {kind: before.get(kind, 0.0) + seconds for kind, seconds in added.items()}


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
