"""The ports: the stages' interfaces to the world. Adapters implement them live, `sim/` implements them over a virtual cluster."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from themis_triton.core.action import Outcome
from themis_triton.core.fleet import Models, ModelState, Server
from themis_triton.core.incident import BrokenRequest
from themis_triton.core.lease import LeaseRecord, StoredLease
from themis_triton.core.model_config import ModelInputs
from themis_triton.core.nodes import Node
from themis_triton.core.observation import Readings
from themis_triton.core.record import TickRecord
from themis_triton.core.routes import RouteTable


class CrashWitness(Protocol):
    """What was under way on a server when it ended."""

    async def broken_requests(self, server: Server) -> tuple[BrokenRequest, ...]:
        """The requests that were lost on the server in the last seconds, or were sent to another one then; never raises."""


class Clock(Protocol):
    """Time; the only source of it above the ground floor."""

    def now_s(self) -> float:
        """Seconds since the epoch, monotone within a process."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class Observer(Protocol):
    """Reads the world. A part that does not answer is a reading with an error, never an exception."""

    async def read(self, servers: Sequence[Server], resting: Collection[str] = ()) -> Readings:
        """The metrics of each server, the proxy's statistics of each model and each device's memory, in one call.

        Of many servers, those that are `resting` may have their previous metrics, of the last few seconds.
        """
        ...


class ModelControl(Protocol):
    """The vertical actuator."""

    async def read_models(self, server: Server, models: Sequence[str]) -> dict[str, ModelState]:
        """What the server runs now, per model that is READY there; a model that is not is absent. ServerError if unreachable."""
        ...

    async def read_refusal(self, server: Server) -> str | None:
        """Why the server refuses all changes of its models, with the remedy; None where it takes them. ServerError if unreachable."""
        ...

    async def list_ready(self, server: Server) -> tuple[str, ...] | None:
        """The names of all models that are READY there, in order; None where the server refuses to list them.

        ServerError if unreachable.
        """
        ...

    async def list_stateful(self, server: Server, models: Sequence[str]) -> tuple[str, ...]:
        """Those of the models READY there that keep state between the calls of a sequence, in order. ServerError if unreachable."""
        ...

    async def answers(self, server: Server) -> bool:
        """Whether the server answers a health check in time; any answer counts, a refusal too."""
        ...

    async def change(self, server: Server, model: str, state: ModelState) -> ModelState:
        """Load the model with the given counts and batching; returns the verified state.

        Raises ChangeRefusedError when the server refuses (the old state serves on), ServerError when it does not answer.
        """
        ...

    async def reload(self, server: Server, model: str, state: ModelState) -> ModelState:
        """Unload the model if it is there, and load it with the given counts and batching; returns the verified state.

        Raises as `change` does; the model then does not serve.
        """
        ...

    async def load(self, server: Server, model: str) -> None:
        """Load a model, an ensemble, as the server's repository has it. ChangeRefusedError, ServerError."""
        ...

    async def forget(self, server: Server) -> None:
        """Drop the connections and locks of a server that is gone."""
        ...


class ServerLauncher(Protocol):
    """The horizontal actuator. Its servers are those with its mark (the state directory, or a label), launched by any daemon.

    They may run on other machines: where they run, and at which addresses, is known once `wait_ready` has returned. Where the engine that
    runs them does not answer, nothing is given up: `is_alive` keeps its last answer, and the other calls raise ServerError.
    """

    async def discover(self) -> tuple[Server, ...]:
        """Every launched server that runs now, by name, in phase LAUNCHING, with the model states that it was launched with."""
        ...

    async def launch(self, name: str, slot: str, models: dict[str, ModelState]) -> Server:
        """Start a server on the slot, or ask for a place for it, and return at once, in phase LAUNCHING. LaunchFailedError if refused.

        An address that is not known yet is UNKNOWN_ADDRESS.
        """
        ...

    async def add_model(self, server: Server, model: str, state: ModelState) -> None:
        """Make a model loadable on a running server, as a launch would have done. LaunchFailedError if it does not exist."""
        ...

    def ensembles_of(self, models: Collection[str]) -> tuple[str, ...]:
        """The ensembles that a launched server with these models has."""
        ...

    async def add_ensembles(self, server: Server) -> None:
        """Put the ensembles that a running server's models suffice for into its repository. LaunchFailedError, ThemisError."""
        ...

    async def wait_ready(self, server: Server) -> Server:
        """Wait, bounded, until it has a place, is ready and holds its models; returns it in phase WARMING.

        Its addresses, device and node are those that it has now. LaunchFailedError otherwise, with why it has no place, or with the
        log's name and last lines; what is left of the server is the caller's to `stop`.
        """
        ...

    async def warm_up(self, server: Server) -> None:
        """Send real inference requests at every planned batch size and check that they are answered."""
        ...

    def use_inputs(self, inputs: Mapping[str, ModelInputs]) -> None:
        """Warm up with these inputs from now on."""
        ...

    async def read_files_versions(self, models: Collection[str]) -> dict[str, str]:
        """By model, what identifies the files from which it is launched and warmed up; another one after any change of them."""
        ...

    async def is_alive(self, server: Server) -> bool:
        """Whether the very server that was launched still runs, or still waits for its place.

        False also once its node is lost, or takes it away.
        """
        ...

    async def resize(self, server: Server, models: Models) -> None:
        """Give a running server the processor time and the memory for these states of its models; in place.

        Called before models grow and after they shrink. Does nothing where servers are not confined. ChangeRefusedError where its node
        lacks the room: it keeps what it has.
        """
        ...

    async def read_log(self, server: Server, lines: int) -> str:
        """The last lines of its output, also shortly after its end; empty where there are none."""
        ...

    async def wait_idle(self, server: Server) -> bool:
        """Wait, bounded, until nothing is pending or in flight; False when the time-out came first."""
        ...

    async def read_memory(self, server: Server) -> int:
        """Bytes that the server holds on its device; 0 where that is unknown."""
        ...

    async def stop(self, server: Server) -> None:
        """Stop the server, by force after a bounded wait; returns when nothing of it is left. ServerError for an adopted server."""
        ...

    async def kill(self, server: Server) -> None:
        """End a server that does not answer, by force; returns when nothing of it is left. ServerError for an adopted server."""
        ...

    async def list_nodes(self) -> tuple[Node, ...]:
        """All nodes of the engine, also those that take no server now. ServerError where it does not answer, or refuses."""
        ...

    async def stop_all(self) -> tuple[str, ...]:
        """Stop every launched server and what was started beside them; returns what was stopped, and nothing when repeated."""
        ...

    async def close(self) -> None:
        """Close the connections to the engine. The servers run on."""
        ...


class LeaseStore(Protocol):
    """One record in the engine that runs the servers, which two sidecars cannot both replace."""

    async def read(self) -> StoredLease | None:
        """The record; None where there is none yet. ServerError when the engine does not answer."""
        ...

    async def write(self, record: LeaseRecord, after: StoredLease | None) -> StoredLease | None:
        """Put the record in the place of `after` (None: of none); None when another one was written first.

        ServerError when the engine does not answer; whether the record was written is not known then.
        """
        ...

    async def close(self) -> None:
        """Close the connections that it opened."""
        ...


class Inventory(Protocol):
    """Lists the nodes of an engine by a connection of its own, for commands; a sidecar asks its launcher."""

    async def __call__(self, launch: Any, /) -> tuple[Node, ...]:  # noqa: ANN401 - the kind's own configuration
        """All nodes, also those that take no server now. ServerError where the engine does not answer, or refuses."""
        ...


class RouteWriter(Protocol):
    """The proxy's routes."""

    async def write(self, table: RouteTable) -> None:
        """Put the table into place, atomically; returns once the proxy has taken it up. ServerError when it refuses."""
        ...


class Recorder(Protocol):
    """The journal: servers, decisions and outcomes."""

    def record_tick(self, record: TickRecord) -> None:
        """Append a tick (decisions that change something are kept longer than quiet ones)."""
        ...

    def record_outcome(self, outcome: Outcome) -> None:
        """Append an action's outcome."""
        ...

    def save_server(self, server: Server) -> None:
        """Record a launched server, so that a new daemon can adopt it."""
        ...

    def forget_server(self, name: str) -> None:
        """Forget a removed server."""
        ...

    def load_servers(self) -> tuple[Server, ...]:
        """Launched servers that were recorded and not removed."""
        ...
