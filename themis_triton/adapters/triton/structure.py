"""What a model's configuration says of its calls: whether they form sequences, and which models an ensemble calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from themis_triton.adapters.triton.model_config import Config


@dataclass(frozen=True, slots=True)
class Structure:
    """`stateful`: the calls of a sequence must reach one instance. `steps`: the models that it calls inside the server, each once."""

    stateful: bool = False
    steps: tuple[str, ...] = ()

    def calling(self, callees: tuple[str, ...]) -> Structure:
        """The structure with further models that it calls."""
        return replace(self, steps=(*self.steps, *callees)) if callees else self


def structure_of(config: Config) -> Structure:
    """The structure of one model."""
    steps = dict.fromkeys(step.model_name for step in config.ensemble_scheduling.step)
    return Structure(config.HasField("sequence_batching"), tuple(steps))


def stateful_models(structures: Mapping[str, Structure]) -> tuple[str, ...]:
    """The names of stateful models and of those that call one, through others too, in order."""
    stateful = {name for name, structure in structures.items() if structure.stateful}
    while added := {name for name, each in structures.items() if name not in stateful and stateful.intersection(each.steps)}:
        stateful |= added
    return tuple(sorted(stateful))
