"""The lease of sidecars on a Ray cluster, in its control store."""

from __future__ import annotations

from themis_triton.adapters.lease_values import record_of, record_text
from themis_triton.adapters.ray.cluster import RayCluster
from themis_triton.core.lease import LeaseRecord, StoredLease

_WHERE = "the lease in Ray's control store"
_CALL_TIMEOUT_S = 5.0


class RayLease:
    """Implements `LeaseStore`.

    Args:
        cluster: the launcher's connection, which tells nodes the epoch of the last record that was written here.
    """

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster

    async def read(self) -> StoredLease | None:
        """The record."""
        stored = await self._cluster.call("read_lease", _CALL_TIMEOUT_S)
        return StoredLease(record_of(stored[1], _WHERE), str(stored[0])) if stored is not None else None

    async def write(self, record: LeaseRecord, after: StoredLease | None) -> StoredLease | None:
        """Put the record in the place of another one."""
        last = int(after.version) if after is not None else 0
        version = await self._cluster.call("write_lease", _CALL_TIMEOUT_S, after=last, text=record_text(record))
        if version is None:
            return None
        self._cluster.epoch = record.epoch
        return StoredLease(record, str(version))

    async def close(self) -> None:
        """Does nothing: the connection is the launcher's."""
