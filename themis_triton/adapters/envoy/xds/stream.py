"""One Envoy's incremental subscription to resources, as a value that changes with what it asks and is sent; no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from themis_triton.adapters.envoy.xds.messages import message_class
from themis_triton.adapters.envoy.xds.resources import CLUSTER, ENDPOINTS, LISTENER, ORDER, URL, Resource, Resources

_ALL = "*"
_ABSENT = ""
"""The version of a resource that was asked for and does not exist."""
_NONE: Mapping[str, Resource] = {}


@dataclass(slots=True)
class Subscription:
    """What an Envoy wants of one type, and what it has of it: `versions` by name as they were sent; `due` are sent whatever it has.

    `pending`: the responses that it has not answered yet. `refused`: the names of the newest response that it refused, and why.
    """

    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    versions: dict[str, str] = field(default_factory=dict)
    due: set[str] = field(default_factory=set)
    pending: dict[str, frozenset[str]] = field(default_factory=dict)
    refused: tuple[frozenset[str], str] | None = None
    answered: bool = False

    def differing(self, wanted: Mapping[str, Resource]) -> tuple[list[str], list[str]]:
        """The names of those to send, and of those to take away."""
        asked = wanted.keys() if self.wildcard else [name for name in sorted(self.names) if name in wanted]
        changed = [name for name in asked if name in self.due or self.versions.get(name) != wanted[name].version]
        known = set(self.versions) | (self.names if not self.wildcard else set())
        gone = [name for name in sorted(known) if name not in wanted and (name in self.due or self.versions.get(name) != _ABSENT)]
        return changed, gone


class EnvoyStream:
    """Takes the requests of one stream, and makes the responses that bring its Envoy to a target; an absent resource is said to be."""

    def __init__(self) -> None:
        self._types: dict[str, Subscription] = {}
        self._nonces = count(1)
        self.refusals = 0
        self.sent_bytes = 0

    @property
    def refused(self) -> str | None:
        """Why it refused what it was sent last, of any type; None when it has taken all."""
        return next((each.refused[1] for each in self._types.values() if each.refused is not None), None)

    def receive(self, request: Any) -> None:  # noqa: ANN401 - protobuf has no types
        """Take in a request: subscriptions, and whether a response was taken or refused."""
        kind = request.type_url.removeprefix(URL)
        first = kind not in self._types
        known = self._types.setdefault(kind, Subscription())
        if first:
            known.versions |= dict(request.initial_resource_versions)
            known.wildcard = kind in (CLUSTER, LISTENER) and not request.resource_names_subscribe
        names = known.pending.pop(request.response_nonce, None)
        if names is not None and request.HasField("error_detail"):
            known.refused = (names, " ".join(request.error_detail.message.split()))
            self.refusals += 1
        elif names is not None and known.refused is not None and not known.pending:
            known.refused = None
        for name in request.resource_names_subscribe:
            known.wildcard |= name == _ALL
            known.names.add(name)
            known.due.add(name)
        for name in request.resource_names_unsubscribe:
            known.names.discard(name)
            known.versions.pop(name, None)
        for each in (known.names, known.due):
            each.discard(_ALL)

    def responses(self, target: Resources) -> Iterator[Any]:
        """What is to be sent now, in the order in which Envoy can use it."""
        for kind in ORDER:
            known = self._types.get(kind)
            if known is None:
                continue
            wanted = target.get(kind, _NONE)
            changed, gone = known.differing(wanted)
            if changed or gone or not known.answered:
                yield self._response(kind, known, {name: wanted[name] for name in changed}, gone)
                if kind == CLUSTER:
                    self._renew_endpoints(changed)

    def _response(self, kind: str, known: Subscription, changed: Mapping[str, Resource], gone: list[str]) -> Any:  # noqa: ANN401 - as above
        nonce = str(next(self._nonces))
        response = message_class("envoy.service.discovery.v3.DeltaDiscoveryResponse")(type_url=URL + kind, nonce=nonce)
        for name, resource in changed.items():
            added = response.resources.add(name=name, version=resource.version)
            added.resource.type_url, added.resource.value = URL + kind, resource.body
            known.versions[name] = resource.version
        for name in gone:
            response.removed_resources.append(name)
            known.versions.pop(name, None)
            if name in known.names:
                known.versions[name] = _ABSENT
        known.due -= {*changed, *gone}
        known.pending[nonce] = frozenset((*changed, *gone))
        known.answered = True
        self.sent_bytes += response.ByteSize()
        return response

    def _renew_endpoints(self, clusters: list[str]) -> None:
        """A cluster that is made anew waits for its endpoints, and does not always ask for them again."""
        endpoints = self._types.get(ENDPOINTS)
        if endpoints is not None:
            endpoints.due |= endpoints.names.intersection(clusters)

    def is_in_step(self, target: Resources) -> bool:
        """Whether Envoy has answered for all that it was sent, nothing is left to send, and it has asked for what its clusters need."""
        needed = {name for name in target.get(ENDPOINTS, _NONE) if name in target.get(CLUSTER, _NONE)}
        endpoints = self._types.get(ENDPOINTS)
        if CLUSTER in self._types and needed and (endpoints is None or not needed <= endpoints.names):
            return False
        return not any(known.pending or any(known.differing(target.get(kind, _NONE))) for kind, known in self._types.items())
