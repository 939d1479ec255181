"""The proposals of all pipelines, combined into what each server is to run: one target, whatever servers and models they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from themis_triton.core.decision import Clamp, ClampKind
from themis_triton.core.fleet import Models, ModelState, Phase, Place, Server, with_place
from themis_triton.core.observation import Snapshot
from themis_triton.core.replacing import replaced
from themis_triton.decide import leaving
from themis_triton.decide.devices import FreeDevices
from themis_triton.decide.proposal import PolicyResult
from themis_triton.decide.rules import Rules
from themis_triton.decide.view import PipelineView


@dataclass(frozen=True, slots=True)
class PipelineProposal:
    """One pipeline's view and the policy's result for it. `rests`: nothing happens there that its next counters are needed for."""

    view: PipelineView
    result: PolicyResult
    rests: bool = False

    @property
    def leaves_all(self) -> bool:
        """Whether it changes nothing, on servers that no other pipeline uses."""
        proposal = self.result.proposal
        return self.view.alone and proposal.servers is self.view.running and not proposal.retire

    @property
    def requested(self) -> int:
        """New places that the pipeline asks for."""
        return self.result.proposal.extend + sum(self.launches)

    @property
    def launches(self) -> tuple[int, ...]:
        """The servers that the pipeline asks for, a group; one with state between calls gets no second one."""
        launch, view = self.result.proposal.launch, self.view
        if not view.one_server:
            return launch
        return tuple(0 if ready + coming else min(1, count) for count, ready, coming in zip(launch, view.ready, view.coming, strict=True))


@dataclass(slots=True)
class CombinedTarget:
    """The proposals, combined one by one into what each server is to run.

    `changed`: servers with devices, see `PolicyState`. `wanted`: the pipelines' models by server and device, where they are to stay.
    `asked`: what the pipelines ask for so far at their ready places, by server, device and model. `housed`: (pipeline, group)
    pairs that share a launch;
    `hosts`: running servers into which others are loaded.
    """

    proposals: Sequence[PipelineProposal]
    snapshot: Snapshot
    devices: FreeDevices
    changed: frozenset[tuple[str, str]]
    servers: dict[str, Models] = field(init=False)
    launch: dict[str, Models] = field(default_factory=dict)
    retire: list[str] = field(default_factory=list)
    wanted: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    asked: dict[tuple[str, str, str], ModelState] = field(default_factory=dict)
    housed: set[tuple[str, int]] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Start from what the servers run."""
        self.servers = {server.name: dict(server.models) for server in self.snapshot.servers}

    def leave(self, pairs: leaving.Pairs, rules: Rules) -> None:
        """Keep the fewest instances of models where no requests go any more."""
        wholes = {server.name: Place(server, "", server.models) for server in self.snapshot.servers} if pairs else {}
        for server, model in pairs:
            state = self.servers[server][model]
            fewest = min(state.instances, rules.config.models[model].min_instances)
            self.servers[server] = with_place(self.servers[server], wholes[server], {model: state.at_home(fewest)})

    def resize(self, each: PipelineProposal) -> None:
        """Set the counts at the pipeline's ready places, and complete those that are being added to running servers.

        A model of several pipelines gets the most that one of them asks for, so that it shrinks only where all agree.
        """
        if each.leaves_all:
            return
        for group in each.view.groups:
            for place in group.ready:
                states = {
                    name: self._agreed(place, name, state)
                    for name, state in each.result.proposal.servers[place.name].items()
                    if name in group.names
                }
                self.servers[place.server.name] = with_place(self.servers[place.server.name], place, states)
            added: dict[str, list[str]] = {}
            for place in group.coming if len(each.view.groups) == 1 else ():
                if place.extra:
                    added.setdefault(place.server.name, []).append(place.device)
            for server, devices in added.items():
                self._add_places(server, devices, each)

    def _agreed(self, place: Place, model: str, state: ModelState) -> ModelState:
        key = (place.server.name, place.device, model)
        self.asked[key] = _larger(self.asked[key], state) if key in self.asked else state
        return self.asked[key]

    def _add_places(self, server: str, devices: Sequence[str], each: PipelineProposal) -> None:
        """Give a server's devices what they lack of the pipeline, with the batching that the server has."""
        now, (models,) = self.servers[server], each.result.proposal.launch_models
        counts: dict[str, dict[str, int]] = {}
        for device in devices:
            lacking = {name: state for name, state in models.items() if not now[name].on(device)}
            for name, state in self.devices.fitting(device, lacking).items():
                counts.setdefault(name, now[name].by_device)[device] = state.instances
            self.wanted.setdefault((server, device), set()).update(models)
        self.servers[server] = now | {name: now[name].with_counts(by_device) for name, by_device in counts.items()}
        self.changed |= {(server, device) for device in devices}

    def extend(self, each: PipelineProposal, count: int) -> None:
        """Add places to running servers."""
        for group in each.view.groups if count else ():
            for server, device in self.devices.extensions(group.ready, group.names, count):
                self._add_places(server.name, (device,), each)
                self.devices.take(device, server.name)

    def launch_all(self, granted: Sequence[tuple[int, ...]]) -> None:
        """Launch servers of each group on the next free slots that it may use; groups that may use the fewest choose first."""
        groups = [
            (count, models)
            for each, counts in zip(self.proposals, granted, strict=True)
            for count, models in zip(counts, each.result.proposal.launch_models, strict=True)
            if count
        ]
        for count, models in sorted(groups, key=lambda group: len(self.devices.slots_for(group[1]))):
            for slot in (next(iter(self.devices.slots_for(models)), None) for _ in range(count)):
                if slot is not None:
                    self.launch[slot] = models
                    self.devices.take_slot(slot)

    def share_launches(self, granted: Sequence[tuple[int, ...]]) -> list[Clamp]:
        """Groups without any server, whose launch was not granted, join the launch with the least work that has memory."""
        shared: list[Clamp] = []
        for each, group in self._left_without(granted):
            models = each.result.proposal.launch_models[group]
            slots = [slot for slot in self.launch if not self.devices.rests(slot, models) and self.devices.admits(slot, models)]
            for slot in sorted(slots, key=lambda slot: self._work(self.launch[slot], each)):
                both = {name: _larger(state, models[name]) for name, state in self.launch[slot].items() if name in models}
                together = self.devices.on_slot(slot, {**models, **self.launch[slot], **both})
                if together is not None:
                    self.launch[slot] = together
                    self.housed.add((each.view.pipeline.name, group))
                    sentence = (
                        f"{_group_name(each.view, group)} shares the server that is launched on {slot}: no slot is free for one of its own"
                    )
                    shared.append(Clamp(ClampKind.DEVICES, sentence))
                    break
        return shared

    def share_running(self, granted: Sequence[tuple[int, ...]]) -> list[Clamp]:
        """Groups that are still without any server are loaded into a launched one that runs and has memory.

        One that holds some of their models already comes first, then that with the least work. An ensemble follows once its members
        are there (`Repairs`). A server where a load of theirs has failed is left out until its back-off ends, so that another one gets
        them.
        """
        shared: list[Clamp] = []
        for each, group in self._left_without(granted):
            models, entry = each.result.proposal.launch_models[group], each.view.pipeline.entry
            hosts = sorted(self._hosts(), key=lambda host: (-len(models.keys() & host.models), self._work(self.servers[host.name], each)))
            for server in hosts:
                lacking = {name: state for name, state in models.items() if name not in self.servers[server.name]}
                if any(f"{server.name}/{name}" in self.snapshot.backing_off for name in (*lacking, entry)):
                    continue
                if not self.devices.admits(server.slot, models):
                    continue
                fitting = self.devices.beside(server, self.servers[server.name], lacking)
                if fitting is not None:
                    self.servers[server.name] |= {name: server.placed(state) for name, state in fitting.items()}
                    self.hosts.add(server.name)
                    sentence = f"{_group_name(each.view, group)} is loaded into {server.name}: no slot is free for a server of its own"
                    shared.append(Clamp(ClampKind.DEVICES, sentence))
                    break
        return shared

    def _left_without(self, granted: Sequence[tuple[int, ...]]) -> list[tuple[PipelineProposal, int]]:
        """The groups that ask for a first server and get none, those of the weightiest pipelines first."""
        without = [
            (each, group)
            for each, count in zip(self.proposals, granted, strict=True)
            for group, first in enumerate(each.view.lacking)
            if first and each.launches[group] and not count[group] and (each.view.pipeline.name, group) not in self.housed
        ]
        return sorted(without, key=lambda pair: -pair[0].view.pipeline.weight)

    def _hosts(self) -> list[Server]:
        """Servers that Themis launched, which serve and take changes now."""
        taken = self.snapshot.busy | set(self.snapshot.backing_off)
        return [s for s in self.snapshot.servers if s.launched and s.phase is Phase.SERVING and s.name not in taken]

    def _work(self, models: Models, each: PipelineProposal) -> tuple[int, float]:
        """What a server has to do: its instances, and how long a request of each takes."""
        profiles = each.view.rules.config.models
        times_ms = [profiles[name].profile.table.latency_ms[0][0] for name in models if name in profiles]
        return sum(state.instances for state in models.values()), sum(times_ms)

    def give_up(self, names: Sequence[tuple[str, ...]]) -> None:
        """Retire servers that no other pipeline keeps, and note where models are to stay; `names`: places by pipeline."""
        for each, given in zip(self.proposals, names, strict=True):
            for group in () if each.leaves_all and not given else each.view.groups:
                for place in group.ready:
                    key = (place.server.name, place.device)
                    if place.name not in given:
                        self.wanted.setdefault(key, set()).update(group.names)
                    elif place.extra:
                        self.changed |= {key}
                    elif place.name not in {*self.retire, *self.hosts} and not any(
                        place.name not in also and other.view is not each.view and _serves(other.view, place.name)
                        for other, also in zip(self.proposals, names, strict=True)
                    ):
                        self.retire.append(place.name)

    def remove_remains(self) -> None:
        """Remove models from extra devices where no pipeline is to keep them: a place is removed, or was never completed.

        Devices that the policy has not changed are left as their owner filled them.
        """
        for server in self.snapshot.servers:
            if not server.reach:
                continue
            changing = any(actuator.startswith(f"{server.name}/") for actuator in self.snapshot.busy)
            for device in server.reach if server.phase is Phase.SERVING else ():
                if server.launched or (server.name, device) in self.changed:
                    self._remove_remains(server, device, changing=changing)

    def _remove_remains(self, server: Server, device: str, *, changing: bool) -> None:
        ready = {p.device for each in self.proposals for group in each.view.groups for p in group.ready if p.server.name == server.name}
        if "" in ready or (changing and device not in ready):
            return  # what is there is needed there, or may be half of a change under way
        now, wanted = self.servers[server.name], self.wanted.get((server.name, device), set())
        stages = {stage for each in self.proposals for stage in each.view.pipeline.stages} - wanted
        gone = {name: state.at_home(0) for name, state in now.items() if name in stages and state.on(device)}
        self.servers[server.name] = with_place(now, Place(server, device, {}), gone)

    def present_changes(self) -> frozenset[tuple[str, str]]:
        """The changed places of servers that exist."""
        return frozenset(key for key in self.changed if key[0] in self.servers)


def _group_name(view: PipelineView, group: int) -> str:
    """The pipeline, or its stage where these are separate."""
    name = view.pipeline.name
    return name if len(view.groups) == 1 else f"{', '.join(view.groups[group].names)} of {name}"


def _larger(one: ModelState, other: ModelState) -> ModelState:
    """The larger counts and batches of two states of a model."""
    batch, delay_us = max(one.max_batch, other.max_batch), max(one.max_queue_delay_us, other.max_queue_delay_us)
    return replaced(max(one, other, key=lambda state: state.instances), max_batch=batch, max_queue_delay_us=delay_us)


def _serves(view: PipelineView, server: str) -> bool:
    """Whether a server serves the pipeline, or is to do so."""
    return any(place.server.name == server for group in view.groups for place in (*group.ready, *group.coming))
