"""What a running server holds, as a settings file can be started from it."""

from __future__ import annotations

from dataclasses import dataclass

from themis_triton.core.address import Address
from themis_triton.core.observation import BatchCounters


@dataclass(frozen=True, slots=True)
class HeldModel:
    """One READY model: its largest batch, the models that it calls as an ensemble, and its executed batches so far.

    `min_instances`, `max_instances`: the fewest and the most on one of its devices.
    `steps` has a model once for each of the steps. `devices`: those of its instance groups, empty where the server chooses.
    `may_call`: its backend lets it call other models by itself (BLS).
    """

    name: str
    min_instances: int
    max_instances: int
    max_batch: int
    stateful: bool = False
    steps: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    batches: tuple[BatchCounters, ...] = ()
    may_call: bool = False

    @property
    def executions(self) -> float:
        """Executed batches of any size."""
        return sum(batch.executions for batch in self.batches)


@dataclass(frozen=True, slots=True)
class Inventory:
    """A server's addresses and its READY models, by name."""

    grpc_address: Address
    http_address: Address
    metrics_address: Address
    models: tuple[HeldModel, ...]
    model_control_key: str | None = None

    @property
    def inner(self) -> frozenset[str]:
        """The models that an ensemble calls."""
        return frozenset(step for model in self.models for step in model.steps)
