"""Models whose service times are not known yet stay as they are."""

from __future__ import annotations

from dataclasses import replace

from themis_triton.core.config import ThemisConfig
from themis_triton.core.decision import Clamp, ClampKind, Target
from themis_triton.core.fleet import Phase
from themis_triton.core.observation import Snapshot
from themis_triton.decide.state import COMING


def until_learnt(target: Target, snapshot: Snapshot, config: ThemisConfig) -> tuple[Target, tuple[Clamp, ...]]:
    """No count of such a model changes, and no server with one comes or goes.

    A first one may come, so that there is something to learn, and one for each server that was lost.
    """
    unknown = {name for name, model in config.models.items() if model.profile.is_guess}
    if not unknown:
        return target, ()
    held = {model for server in snapshot.servers if server.phase in {Phase.SERVING, *COMING} for model in server.models}
    lost = snapshot.recently_crashed - sum(server.launched and server.phase in COMING for server in snapshot.servers)
    now = {server.name: server.models for server in snapshot.servers}
    servers = {
        name: {model: now.get(name, models).get(model, state) if model in unknown else state for model, state in models.items()}
        for name, models in target.servers.items()
    }
    more = [slot for slot, models in target.launch.items() if unknown.intersection(models) & held]
    refused = frozenset(more[max(0, lost) :])
    launch = {slot: models for slot, models in target.launch.items() if slot not in refused}
    retire = tuple(name for name in target.retire if not unknown.intersection(now.get(name, ())))
    kept = replace(target, servers=servers, launch=launch, retire=retire)
    if kept == target:
        return target, ()
    sentence = f"the service times of {', '.join(sorted(unknown))} are not known yet; what it needs stays as it is until they are"
    return kept, (Clamp(ClampKind.LEARNING, sentence),)
