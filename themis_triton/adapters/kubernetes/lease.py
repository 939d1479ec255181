"""The lease of sidecars on Kubernetes: an object of kind Lease, as other programs of a cluster use them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from themis_triton.adapters.clock import time_of_day_s
from themis_triton.adapters.kubernetes.api import ApiError, PodApi
from themis_triton.adapters.kubernetes.template import Json
from themis_triton.adapters.lease_values import handover_of, handover_text
from themis_triton.core.config import KubernetesLaunchConfig
from themis_triton.core.errors import ServerError
from themis_triton.core.lease import LeaseRecord, StoredLease

_HANDOVER = "themis-triton/handover"
_NOT_FOUND, _CONFLICT = 404, 409


class KubernetesLease:
    """Implements `LeaseStore`. Use it from one event loop, and `close` it there. The Lease has the name of `launch.kubernetes.sidecar`."""

    def __init__(self, config: KubernetesLaunchConfig) -> None:
        self._config = config
        self._api = PodApi(config)

    async def read(self) -> StoredLease | None:
        """The record."""
        try:
            return _stored(await self._api.read_lease(self._config.sidecar))
        except ApiError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def write(self, record: LeaseRecord, after: StoredLease | None) -> StoredLease | None:
        """Create the Lease, or update the very version that was read."""
        metadata: Json = {"name": self._config.sidecar, "namespace": self._config.namespace}
        metadata["annotations"] = {_HANDOVER: handover_text(record.handover)}
        if after is not None:
            metadata["resourceVersion"] = after.version
        spec: Json = {
            "holderIdentity": record.holder,
            "leaseDurationSeconds": math.ceil(record.lease_s),
            "acquireTime": _moment(record.since_s),
            "renewTime": _moment(time_of_day_s()),
            "leaseTransitions": record.epoch,
        }
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        try:
            return _stored(await self._api.write_lease(lease))
        except ApiError as error:
            if error.status in (_CONFLICT, _NOT_FOUND):
                return None
            raise

    async def close(self) -> None:
        """Close the connection."""
        await self._api.close()


def _stored(lease: Json) -> StoredLease:
    spec, metadata = lease.get("spec") or {}, lease["metadata"]
    try:
        since_s = datetime.fromisoformat(spec["acquireTime"]).timestamp() if spec.get("acquireTime") else 0.0
    except ValueError as error:
        raise ServerError(f"Kubernetes: lease {metadata.get('name')}: spec.acquireTime: {error}. Fix: delete the Lease") from error
    record = LeaseRecord(
        str(spec.get("holderIdentity") or ""),
        int(spec.get("leaseTransitions") or 0),
        since_s,
        float(spec.get("leaseDurationSeconds") or 0),
        handover_of((metadata.get("annotations") or {}).get(_HANDOVER, "{}")),
    )
    return StoredLease(record, str(metadata["resourceVersion"]))


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
