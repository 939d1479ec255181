"""`themis plan --from live`: the running servers and their demand."""

from __future__ import annotations

import math

from themis_triton.commands.plan_migrations import LIVE, Fleet
from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.core.fleet import Phase, places_of
from themis_triton.core.status import Status
from themis_triton.plan.steps import by_retirement
from themis_triton.solver.fleet import assignment_of


def live_demand(status: Status, pipeline: PipelineConfig) -> float:
    """The demand of the pipeline in whole requests/s, as the newest decision planned its instances for; 0 before the first one."""
    evidence = next((each.evidence for each in status.pipelines if each.name == pipeline.name), None)
    return float(math.ceil(evidence.demand_fast_rps)) if evidence is not None else 0.0


def live_fleet(status: Status, pipeline: PipelineConfig, config: ThemisConfig) -> Fleet:
    """The servers that serve the pipeline according to the status, with their counts. SettingsError if there is none."""
    drained = {drain.server for drain in status.overrides.drains}
    serving = [
        server
        for server in status.servers
        if server.phase is Phase.SERVING and server.name not in drained and all(stage in server.models for stage in pipeline.stages)
    ]
    running = (place for server in serving for place in places_of(server, pipeline.stages))
    places = by_retirement(running, config.launch)
    assignments = tuple(assignment_of(place, pipeline.stages, config) for place in places)
    if not assignments:
        raise SettingsError(
            f"--from {LIVE}: no server serves {pipeline.name} now; expected at least one. Fix: name the servers, such as --from 1:1,1"
        )
    return Fleet(assignments, adopted=sum(not place.removable for place in places))
