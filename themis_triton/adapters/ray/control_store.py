"""The lease in the key-value part of Ray's control store (GCS), for the driver and the nodes.

Ray has no public compare-and-set. Its store can put a key that must not exist yet, atomically, so each version of the lease is a key of its
own, and of two sidecars that put the same next version one fails. Old versions are removed; a late write of one of these is seen by the
newer ones. The functions of Ray that are used here are its internal ones; Themis pins the version of Ray.
"""

from __future__ import annotations

import json
from typing import Any

from ray.experimental.internal_kv import internal_kv_get_gcs_client

_PREFIX = b"themis-lease:"
_KEPT = 8
_TIMEOUT_S = 2.0


def read_lease(namespace: str) -> tuple[int, str] | None:
    """The newest version of the lease and its text; None where there is none. Blocking; raises what Ray does."""
    for _ in range(_KEPT):
        versions = _versions(namespace)
        if not versions:
            return None
        value = _client().internal_kv_get(_key(versions[-1]), _space(namespace), _TIMEOUT_S)
        if value is not None:
            return versions[-1], value.decode()
    raise TimeoutError("the lease changes faster than it can be read")


def write_lease(namespace: str, after: int, text: str) -> int | None:
    """Put the text as the version after one; the new version, or None where another one was put first. Blocking.

    The text must be one that no other process writes as this version, because an answer that was lost is asked for again.
    """
    version, value, space = after + 1, text.encode(), _space(namespace)
    added = _client().internal_kv_put(_key(version), value, False, space, _TIMEOUT_S)
    if not added and _client().internal_kv_get(_key(version), space, _TIMEOUT_S) != value:
        return None
    versions = _versions(namespace)
    for old in versions[:-_KEPT]:
        _client().internal_kv_del(_key(old), False, space, _TIMEOUT_S)
    return version if versions[-1:] == [version] else None


def superseded(namespace: str, epoch: int | None) -> str | None:
    """Why a command of a leader with this epoch is refused; None where it still leads, or where leaders have no epochs. Blocking."""
    if epoch is None:
        return None
    stored = read_lease(namespace)
    current = int(json.loads(stored[1])["epoch"]) if stored is not None else 0
    return f"refused: the sidecar of epoch {epoch} does not lead any more, the lease is at epoch {current}" if current != epoch else None


def _client() -> Any:  # noqa: ANN401 - Ray's
    return internal_kv_get_gcs_client()


def _versions(namespace: str) -> list[int]:
    return sorted(int(key[len(_PREFIX) :]) for key in _client().internal_kv_keys(_PREFIX, _space(namespace), _TIMEOUT_S))


def _key(version: int) -> bytes:
    return _PREFIX + b"%d" % version


def _space(namespace: str) -> bytes:
    """Ray ends a space's name at its first colon."""
    return f"themis-{namespace.encode().hex()}".encode()
