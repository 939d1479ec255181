"""The executor's record of the servers: the only mutable state of the fleet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from themis_triton.core.fleet import ModelState, Phase, Server, with_pins
from themis_triton.ports import Recorder


class Fleet:
    """Servers by name. The recorder saves each change of a launched server at once, so that a new daemon can adopt it."""

    def __init__(self, recorder: Recorder) -> None:
        self._servers: dict[str, Server] = {}
        self._in_order: tuple[Server, ...] = ()
        self._recorder = recorder

    def put(self, server: Server) -> Server:
        """Add or replace a server."""
        self._servers[server.name] = server
        self._pin()
        server = self._servers[server.name]
        if server.launched:
            self._recorder.save_server(server)
        return server

    def put_all(self, servers: Iterable[Server]) -> None:
        """Add servers at once, so that their pins are weighed together."""
        added = {server.name: server for server in servers}
        self._servers |= added
        self._pin()
        for server in map(self.get, added):
            if server.launched:
                self._recorder.save_server(server)

    def get(self, name: str) -> Server:
        """The server of that name; KeyError when there is none."""
        return self._servers[name]

    def move(self, name: str, phase: Phase) -> Server:
        """Put a server into another phase."""
        return self.put(replace(self._servers[name], phase=phase))

    def set_model(self, name: str, model: str, state: ModelState) -> Server:
        """Set what a server runs for a model."""
        server = self._servers[name]
        return self.put(replace(server, models={**server.models, model: state}))

    def remove(self, name: str) -> None:
        """Remove a server; a name that is not there is no error."""
        server = self._servers.pop(name, None)
        if server is not None and server.launched:
            self._recorder.forget_server(name)
        self._pin()

    def _pin(self) -> None:
        """Stateful models keep their server, or get another one where it is gone."""
        self._in_order = tuple(with_pins(tuple(self._servers[name] for name in sorted(self._servers))))
        self._servers = {server.name: server for server in self._in_order}

    def all(self) -> tuple[Server, ...]:
        """All servers, in the order of names."""
        return self._in_order

    def __contains__(self, name: str) -> bool:
        """Whether a server of that name exists."""
        return name in self._servers
