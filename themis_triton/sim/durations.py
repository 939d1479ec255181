"""The virtual durations of launches and changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from themis_triton.core.config import ModelConfig, ThemisConfig
from themis_triton.core.estimate import RequestSize
from themis_triton.core.fleet import Models, ModelState
from themis_triton.sim.world import SimWorld
from themis_triton.solver.surface import FloatArray

PROCESS_S = 0.05
"""Time to write a new server's files and to start its process."""


@dataclass(frozen=True, slots=True)
class Durations:
    """The profiles' times, or the world's. `service_s`: service times by model, batch and busy instances."""

    config: ThemisConfig
    world: SimWorld
    service_s: FloatArray

    def grow_s(self, model: str) -> float:
        """Duration of a growth: new instances initialise at the same time."""
        return self.config.models[model].profile.instance_init_s if self.world.grow_s is None else self.world.grow_s

    def stop_s(self, model: str) -> float:
        """Duration of the removal of one instance."""
        return self.config.models[model].profile.instance_stop_s if self.world.shrink_s is None else self.world.shrink_s

    def reload_s(self, model: str) -> float:
        """Duration of a reload: all instances of the new version initialise, then the versions swap."""
        return self.grow_s(model) if self.world.reload_s is None else self.world.reload_s

    def launch_s(self, models: Iterable[str]) -> float:
        """Duration from the launch until the models are loaded: that of the slowest, its instances included."""
        if self.world.cold_start_s is not None:
            return max(0.0, self.world.cold_start_s - PROCESS_S)
        profiles = [self.config.models[model].profile for model in models]
        return max(profile.server_launch_s + profile.instance_init_s for profile in profiles)

    def warm_up_s(self, models: Models) -> float:
        """Duration of the warm-up: rounds at batch sizes 1, 2, 4 … on all instances at once, for all models in parallel."""
        if self.world.cold_start_s is not None or self.config.launch is None:
            return 0.0
        rounds = self.config.launch.warmup_requests
        return rounds * max((self._rounds_s(self.config.models[name], state) for name, state in models.items()), default=0.0)

    def _rounds_s(self, model: ModelConfig, state: ModelState) -> float:
        service_s = self.service_s[list(self.config.models).index(model.name)]
        largest = RequestSize(model.rows_per_request).fitting(state.max_batch)
        batches = {*(2**exponent for exponent in range(largest.bit_length())), largest}
        column = min(state.instances, service_s.shape[1]) - 1
        return sum(float(service_s[batch - 1, column]) for batch in batches if batch <= largest)
