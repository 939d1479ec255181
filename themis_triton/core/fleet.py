"""Servers: identity, life cycle, models, and the devices that they run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from themis_triton.core.address import Address
from themis_triton.core.construction import quick_init


class Phase(StrEnum):
    """Life cycle of a server. In the routes are SERVING ones, and UNREACHABLE ones: their metrics cannot be read.

    UNRESPONSIVE ones answer neither metrics nor health checks, while other servers do: they are out of the routes.
    """

    LAUNCHING = "launching"
    WARMING = "warming"
    SERVING = "serving"
    UNREACHABLE = "unreachable"
    UNRESPONSIVE = "unresponsive"
    DRAINING = "draining"
    STOPPING = "stopping"


ROUTED = frozenset({Phase.SERVING, Phase.UNREACHABLE})


@quick_init
@dataclass(frozen=True, slots=True)
class ModelState:
    """The state of one model on one server: its instances in all, maximum batch size and the batcher's queue delay.

    `spread`: on a server that may use several devices, the instances on each that has any, by the devices' names; else empty.
    `joint`: as read from such a server, its instances are in one group over several devices; see `renews_all`.
    """

    instances: int
    max_batch: int
    max_queue_delay_us: int = 0
    spread: tuple[tuple[str, int], ...] = ()
    joint: bool = field(default=False, compare=False)

    @property
    def batching(self) -> tuple[int, int]:
        """What only a reload changes."""
        return self.max_batch, self.max_queue_delay_us

    def batched_as(self, other: ModelState) -> ModelState:
        """The same with the batching of another state."""
        if self.batching == other.batching:
            return self
        return ModelState(self.instances, *other.batching, self.spread, joint=self.joint)

    def renews_all(self, before: ModelState) -> bool:
        """Whether the change from another state makes all instances anew beside the old ones: double memory, the price of a reload.

        So does other batching, and so does the first other spread of instances that are in one group over several devices.
        """
        return self.batching != before.batching or (before.joint and self.spread != before.spread)

    def on(self, device: str) -> int:
        """The instances on one device; on a server with one device, all of them."""
        if not self.spread:
            return self.instances
        for name, count in self.spread:
            if name == device:
                return count
        return 0

    def spread_over(self, counts: Mapping[str, int]) -> ModelState:
        """The same with these instances by device."""
        spread = tuple([entry for entry in sorted(counts.items()) if entry[1] > 0])
        return ModelState(sum([count for _, count in spread]), *self.batching, spread, joint=self.joint)

    @property
    def by_device(self) -> dict[str, int]:
        """The instances on each device; the device of a server that has just one is ""."""
        return dict(self.spread) if self.spread else {"": self.instances}

    def is_within(self, fewest: int, most: int) -> bool:
        """Whether its instances on each device that has any are so many."""
        for _, count in self.spread:
            if not fewest <= count <= most:
                return False
        return bool(self.spread) or fewest <= self.instances <= most

    def grows_from(self, before: ModelState) -> bool:
        """Whether it has more instances than another state on any device."""
        if not self.spread or not before.spread:
            return bool(self.added(before))
        old = dict(before.spread)
        return any([count > old.get(device, 0) for device, count in self.spread])  # noqa: C419 - quicker than a generator

    def added(self, before: ModelState) -> dict[str, int]:
        """Instances beyond those of another state, by device."""
        if not self.spread and not before.spread:  # most servers have one device
            return {"": self.instances - before.instances} if self.instances > before.instances else {}
        if self.spread == before.spread:
            return {}
        old, added = before.by_device, dict[str, int]()
        for device, count in self.spread or (("", self.instances),):
            more = count - old.get(device, 0)
            if more > 0:
                added[device] = more
        return added

    def with_counts(self, counts: Mapping[str, int]) -> ModelState:
        """The same with these instances by device, as `by_device` names them."""
        if "" not in counts:
            return self.spread_over(counts)
        return self.at_home(counts[""])

    def at_home(self, instances: int) -> ModelState:
        """The same with so many instances, which are not spread."""
        return ModelState(instances, self.max_batch, self.max_queue_delay_us, joint=self.joint)

    def plus(self, added: Mapping[str, int]) -> ModelState:
        """The same with so many more (or fewer) instances on each device."""
        now = self.by_device
        return self.with_counts(now | {device: now.get(device, 0) + count for device, count in added.items()})


def first_added(added: Mapping[str, int], count: int) -> dict[str, int]:
    """The first `count` of the added instances, a device at a time in turn."""
    granted = dict.fromkeys(added, 0)
    for _ in range(min(max(0, count), sum(added.values()))):
        device = min((device for device in added if granted[device] < added[device]), key=lambda device: granted[device])
        granted[device] += 1
    return granted


Models = dict[str, ModelState]
"""What one server runs: the state of each model by its name."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process is known by its pid AND its start time, so that a reused pid is never signalled.

    The start time is the kernel's, in clock ticks since boot: seconds since the epoch would change whenever the clock is set.
    """

    pid: int
    start_ticks: int


@quick_init
@dataclass(frozen=True, slots=True)
class Server:
    """One Triton server. `launched` servers were started by Themis and may be stopped by it; adopted ones never are.

    `device`: where a server runs its first instances; `reach`: further devices that it may use.
    `process`: its process on this machine; None elsewhere. `incarnation`: what its launcher knows this very run of it by, such as a pod's
    uid, so that a later server of the same name is not taken for it. `node`: the machine that it runs on, as its launcher names it;
    None: this one, or not known. `zone`: that of the machine, if known.
    `log_file`: the file here with its output; that of a server elsewhere is written when it is stopped.
    `model_repository`: where its models' own files can be read here, if anywhere; `further_repositories`: where those lie that it lacks.
    `model_config_name`: that of `--model-config-name`, if the server has it.
    `models`: the models of the settings that are READY there. `ready_models`: the names of all models that are READY there by its
    repository index, these included, in order; None while the index is unknown.
    `unread_devices`: devices that an adopted server may hold, while it has not answered yet what it runs.
    `stateful`: ready models that keep state between the calls of a sequence. `pinned`: those of them whose calls all come to this server.
    """

    name: str
    device: str
    grpc_address: Address
    http_address: Address
    metrics_address: Address
    phase: Phase
    launched: bool
    slot: str | None = None
    process: ProcessId | None = None
    model_control_key: str | None = None
    log_file: str | None = None
    model_repository: str | None = None
    model_config_name: str | None = None
    models: Models = field(default_factory=dict)
    ready_models: tuple[str, ...] | None = None
    reach: tuple[str, ...] = ()
    unread_devices: tuple[str, ...] = ()
    stateful: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    further_repositories: tuple[str, ...] = ()
    incarnation: str | None = None
    node: str | None = None
    zone: str | None = None

    def __post_init__(self) -> None:
        """A state says on which devices its instances are exactly where the server may use several."""
        if any(bool(state.spread) != bool(self.reach and state.instances) for state in self.models.values()):
            object.__setattr__(self, "models", {name: self.placed(state) for name, state in self.models.items()})

    def takes_calls(self, model: str) -> bool:
        """Whether calls of a model that it holds come here: not those of sequences that are pinned to another server."""
        return model not in self.stateful or model in self.pinned

    def placed(self, state: ModelState) -> ModelState:
        """A state as this server can have it: without a spread all instances are at home, and only a server with a reach has one."""
        if not self.reach:
            return state.at_home(state.instances) if state.spread else state
        return state if state.spread else state.spread_over({self.device: state.instances})

    @property
    def devices(self) -> tuple[str, ...]:
        """All devices that it may use."""
        return (self.device, *self.reach)

    @property
    def held_devices(self) -> set[str]:
        """The devices on which it has instances, is to have its first ones, or may have some that could not be read yet."""
        held = {self.device, *self.unread_devices}
        for state in self.models.values():
            held.update([device for device, _ in state.spread])
        return held

    def runs_on(self, device: str) -> bool:
        """Whether it holds a device."""
        return device in self.held_devices


def with_pins(servers: Sequence[Server]) -> tuple[Server, ...]:
    """The servers, with each stateful model pinned to one of those in the routes that hold it.

    A pin stays while its server serves, so that servers that come and go move no open sequence. A new one prefers servers that answer,
    then those with the most stateful models, so that all stages of a pipeline find one server, then adopted ones.
    """
    pinned: dict[str, list[str]] = {server.name: [] for server in servers}
    for model in sorted({model for server in servers for model in server.stateful}):
        holders = [server for server in servers if server.phase in ROUTED and model in server.stateful]
        if holders:
            pinned[min(holders, key=lambda server: _pin_order(server, model)).name].append(model)
    return tuple(
        server if server.pinned == tuple(pinned[server.name]) else replace(server, pinned=tuple(pinned[server.name])) for server in servers
    )


def _pin_order(server: Server, model: str) -> tuple[bool, bool, int, bool, str]:
    return (server.phase is not Phase.SERVING, model not in server.pinned, -len(server.stateful), server.launched, server.name)


@quick_init
@dataclass(frozen=True, slots=True)
class Place:
    """One device of a server, with counts, memory and contention of its own. Queue, endpoint, batching and fate are the server's.

    `device` "" stands for a whole server: it has just one device, or spreads its models over several that hold different ones.
    `models`: the server's models with the instances there. `extra`: not the server's first place.
    """

    server: Server
    device: str
    models: Models
    extra: bool = False

    @property
    def name(self) -> str:
        """The server's name; an extra place's has its device too."""
        return f"{self.server.name}@{self.device}" if self.extra else self.server.name

    @property
    def removable(self) -> bool:
        """Whether it may be given up: its server runs on without it, or Themis started the server."""
        return self.extra or self.server.launched

    @property
    def instances(self) -> int:
        """Instances of all models."""
        return sum(state.instances for state in self.models.values())


ModelsOn = Callable[[Server, str], Models]
"""A server's models with the instances on one of its devices."""


def models_on(server: Server, device: str) -> Models:
    """What a server runs on one of its devices."""
    return {name: state.at_home(state.on(device)) for name, state in server.models.items()}


def places_of(server: Server, models: Sequence[str], on: ModelsOn = models_on) -> tuple[Place, ...]:
    """The devices on which a server runs all of these models, or the whole server where there are none; its own device first."""
    devices = [device for device in server.devices if all(server.models[name].on(device) for name in models)] if server.reach else []
    if not devices:
        return (Place(server, "", server.models),)
    return tuple(Place(server, device, on(server, device), extra=device != devices[0]) for device in devices)


def with_place(models: Models, place: Place, states: Models) -> Models:
    """A server's models with other states at one of its places; the batching of a state is then that of the whole server."""
    changed = dict(models)
    for name, state in states.items():
        now = models[name]
        if not place.device and not now.spread:  # most servers have one device
            if (state.instances, state.batching) != (now.instances, now.batching):
                changed[name] = ModelState(state.instances, *state.batching, joint=now.joint)
            continue
        counts = now.by_device
        if not place.device:  # what changes of a whole server does so where it has the most instances
            most = max(counts, key=lambda device: counts[device])
            counts[most] = max(0, counts[most] + state.instances - now.instances)
        elif now.spread and (now.on(place.device), now.batching) == (state.instances, state.batching):
            continue
        else:
            counts[place.device] = state.instances
        changed[name] = now.batched_as(state).with_counts(counts)
    return changed
