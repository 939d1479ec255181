"""Guards in sequence: each takes a target and returns a target, with what it clamped and why."""

from __future__ import annotations

from collections.abc import Container

from themis_triton.core.config import ModelConfig, ThemisConfig
from themis_triton.core.decision import Clamp, ClampKind, Target
from themis_triton.core.fleet import ModelState, Phase, Server, first_added
from themis_triton.core.observation import Snapshot
from themis_triton.core.replacing import replaced
from themis_triton.decide.unlearnt import until_learnt

Guarded = tuple[Target, tuple[Clamp, ...]]


def guard(target: Target, snapshot: Snapshot, config: ThemisConfig) -> Guarded:
    """Apply every guard in order; returns the target that may be planned and all clamps."""
    known, unlearnt = until_learnt(target, snapshot, config)
    bounded, added = within_bounds(known, snapshot, config)
    kept, clamps = bounded, [*unlearnt, *added]
    for step in (only_probed_operations, within_memory, within_pace, not_in_backoff, behind_open_calls):
        kept, added = step(kept, snapshot, config)
        clamps.extend(added)
    for last in (_survivors_first, _answering_survivors):
        kept, added = last(bounded, kept, snapshot)
        clamps.extend(added)
    return kept, tuple(clamps)


def _survivors_first(desired: Target, kept: Target, snapshot: Snapshot) -> Guarded:
    """No server retires, and none gives up a device, while the others are not granted the instances that they need to carry its load."""
    short = [
        name
        for name, models in desired.servers.items()
        if kept.servers[name] is not models
        and name not in desired.retire
        and any(state.added(kept.servers[name][model]) for model, state in models.items())
    ]
    servers, left = dict(kept.servers), list(desired.retire)
    for server in snapshot.servers if short else ():
        models = kept.servers.get(server.name, {})
        whole = {name: _with_devices(state, server.models.get(name, state)) for name, state in models.items()}
        if whole != models:
            servers[server.name] = whole
            left.append(server.name)
    if not left or not short:
        return kept, ()
    stays = f"{', '.join(left)} stays as it is" if left != list(desired.retire) else f"{', '.join(left)} stays"
    sentence = f"{stays} until {', '.join(short)} may have the instances that its load needs"
    return replaced(kept, servers=servers, retire=()), (Clamp(ClampKind.SURVIVORS, sentence),)


def _answering_survivors(_: Target, kept: Target, snapshot: Snapshot) -> Guarded:
    """No server retires while one that would stay does not answer: it may be hung."""
    serving = {server.name for server in snapshot.servers if server.phase is Phase.SERVING} - set(kept.retire)
    silent = [reading.server for reading in snapshot.readings if reading.error is not None and reading.server in serving]
    if not kept.retire or not silent:
        return kept, ()
    sentence = f"{', '.join(kept.retire)} stays until the metrics of {', '.join(silent)} can be read"
    return replaced(kept, retire=()), (Clamp(ClampKind.SURVIVORS, sentence),)


def _with_devices(state: ModelState, now: ModelState) -> ModelState:
    """The state with the present counts on devices that it would leave."""
    if not now.spread:
        return state
    given_up = {device: count for device, count in now.by_device.items() if device and not state.on(device)}
    return state.plus(given_up) if given_up else state


def within_bounds(target: Target, _: Snapshot, config: ThemisConfig) -> Guarded:
    """Instance counts stay inside each model's bounds, on each device that has any."""
    clamps: list[Clamp] = []
    limits = {name: (model.min_instances, model.max_instances) for name, model in config.models.items()}

    def bounded(models: dict[str, ModelState], where: str) -> dict[str, ModelState]:
        if all([state.is_within(*limits[name]) for name, state in models.items()]):  # noqa: C419 - quicker than a generator
            return models  # the usual case
        kept = {}
        for name, state in models.items():
            bounds = config.models[name]
            if state.is_within(bounds.min_instances, bounds.max_instances):
                kept[name] = state
                continue
            counts = {device: min(max(n, bounds.min_instances), bounds.max_instances) for device, n in state.by_device.items()}
            kept[name] = state.with_counts(counts)
            if kept[name].instances != state.instances:
                outside = f"{name} on {where}: {state.instances} instances are outside its bounds, {kept[name].instances} kept"
                clamps.append(Clamp(ClampKind.BOUNDS, outside))
        return kept

    servers = {name: bounded(models, name) for name, models in target.servers.items()}
    launch = {slot: bounded(models, slot) for slot, models in target.launch.items()}
    return replaced(target, servers=servers, launch=launch), tuple(clamps)


def only_probed_operations(target: Target, snapshot: Snapshot, config: ThemisConfig) -> Guarded:
    """No operation that a probe added to lose requests, nor, with `require_probed_operations`, one that was not probed."""
    servers = dict(target.servers)
    clamps: list[Clamp] = []
    for server in snapshot.servers:
        for name, state in target.servers.get(server.name, {}).items():
            if state is server.models.get(name):
                continue  # most models stay as they are
            kept, refused = _safe_state(server.models.get(name, state), state, config.models[name])
            if refused is not None:
                servers[server.name] = servers[server.name] | {name: kept}
                clamps.append(Clamp(ClampKind.OPERATION, f"{name} on {server.name}: {refused}"))
    return replaced(target, servers=servers), tuple(clamps)


def _safe_state(now: ModelState, desired: ModelState, model: ModelConfig) -> tuple[ModelState, str | None]:
    """The state that safe operations reach towards the desired one, and why no more."""
    operation = _operation(now, desired)
    if operation is None or model.may(operation):
        return desired, None
    why = "loses requests, as probed" if operation in model.profile.operations else "was not probed: run `themis probe`"
    rest, words = _without(operation, now, desired, model)
    kept, also = _safe_state(now, rest, model)
    return kept, f"{operation} {why}; {words}" + (f", and {also}" if also is not None else "")


def _without(operation: str, now: ModelState, desired: ModelState, model: ModelConfig) -> tuple[ModelState, str]:
    """What remains of a change without an operation, in words too."""
    added = desired.added(now)
    match operation:
        case "rebatch" if now.batching == desired.batching:
            return now, "its instances stay in one group over several devices"
        case "rebatch":
            return now.with_counts(desired.by_device), "batching is unchanged"
        case "add_many" if model.may("add_one"):
            return now.plus(first_added(added, 1)), "one instance at a time instead"
        case "add_device":
            return now.plus({device: count for device, count in added.items() if now.on(device)}), "no further device"
        case "remove_device" if added:
            return now.plus(added), "no device is given up"
        case _:
            return now, "unchanged"


def _operation(now: ModelState, desired: ModelState) -> str | None:
    if desired.renews_all(now):
        return "rebatch"
    added, removed = desired.added(now), now.added(desired)
    if any(not now.on(device) for device in added):
        return "add_device"
    if any(not desired.on(device) for device in removed):
        return "remove_device"
    if not added:
        return "remove_one" if removed else None
    return "add_one" if sum(added.values()) == 1 else "add_many"


def within_memory(target: Target, snapshot: Snapshot, config: ThemisConfig) -> Guarded:
    """No more memory than NVML shows free less the margin; growth that does not fit is dropped."""
    free = {
        reading.device: reading.memory_free_bytes - config.policy.memory_margin_fraction * (reading.memory_total_bytes or 0)
        for reading in snapshot.devices
        if reading.memory_free_bytes is not None
    }
    for server in snapshot.servers:
        # A launching server may not have allocated its memory yet.
        if server.phase is Phase.LAUNCHING and server.device in free:
            free[server.device] -= _memory_bytes(server.models, config)
    clamps: list[Clamp] = []
    servers = dict(target.servers)
    for server in snapshot.servers if free else ():
        desired = target.servers.get(server.name)
        if desired is None or server.name in target.retire:
            continue
        extra = {device: count for device, count in _extra_bytes(server, desired, config).items() if device in free}
        short = {device: count for device, count in extra.items() if count > max(0.0, free[device]) and count > 0}
        for device, count in short.items():
            clamps.append(Clamp(ClampKind.MEMORY, f"{server.name} cannot grow: {count / 2**20:.0f} MiB are not free on {device}"))
        servers[server.name] = {
            name: _not_above(state, server.models.get(name), server, short, config.models[name])
            for name, state in desired.items()
            if name in server.models or not any((device or server.device) in short for device in state.by_device)
        }
        for device, count in extra.items():
            free[device] -= 0.0 if device in short else count
    launch, added = _launches_that_fit(target, free, config)
    return replaced(target, servers=servers, launch=launch), (*clamps, *added)


def within_pace(target: Target, snapshot: Snapshot, config: ThemisConfig) -> Guarded:
    """At most `max_added_instances` in one tick, one each in turn: starting instances slow those that serve on the same host.

    Growth of a model whose requests wait is not divided: the rest of it would wait until the queue was empty.
    """
    left = config.policy.scale_up.max_added_instances
    desired = {
        (s.name, model): sum(state.added(now).values())
        for s in snapshot.servers
        if s.name in target.servers and s.name not in target.retire
        for model, now in s.models.items()
        if (state := target.servers[s.name].get(model)) is not None and state is not now and f"{s.name}/{model}" not in snapshot.busy
    }
    growing = {actuator: count for actuator, count in desired.items() if count > 0}
    if not growing:
        return target, ()  # the usual case
    waiting = {(reading.server, model): c.pending for reading in snapshot.readings for model, c in reading.models.items()}
    servers = {name: dict(models) for name, models in target.servers.items()}
    now = {(s.name, model): state for s in snapshot.servers for model, state in s.models.items()}
    granted = {actuator: count if waiting.get(actuator, 0.0) >= now[actuator].instances else 0 for actuator, count in growing.items()}
    total, left = sum(growing.values()), left - sum(granted.values())
    if total - sum(granted.values()) <= max(0, left):
        return target, ()
    while left > 0:
        for actuator in [actuator for actuator, count in growing.items() if granted[actuator] < count][:left]:
            granted[actuator] += 1
            left -= 1
    for (name, model), count in granted.items():
        state, added = servers[name][model], servers[name][model].added(now[name, model])
        left_out = {device: given - added[device] for device, given in first_added(added, count).items()}
        servers[name][model] = state.plus(left_out)
    clamp = Clamp(ClampKind.PACE, f"{sum(granted.values())} of {total} instances are added now, the others in the next ticks")
    return replaced(target, servers=servers), (clamp,)


def not_in_backoff(target: Target, snapshot: Snapshot, _: ThemisConfig) -> Guarded:
    """Clamps that name the desired changes whose actuator is in back-off; the plan skips these."""
    clamps = []
    for actuator in sorted(snapshot.backing_off):
        server, model = (*actuator.split("/", 1), "")[:2]
        if actuator in target.launch or actuator in target.retire or model in target.servers.get(server, {}):
            clamps.append(Clamp(ClampKind.BACKOFF, snapshot.backoff_words(actuator)))
    return target, tuple(clamps)


def behind_open_calls(target: Target, snapshot: Snapshot, config: ThemisConfig) -> Guarded:
    """Clamps that name the changes whose call is open for longer than they take: under a backlog that is normal; the plan waits."""
    servers = {server.name: server.models for server in snapshot.servers}
    clamps = []
    for call in snapshot.open_calls:
        profile, age_s = config.models[call.model].profile, snapshot.at_s - call.since_s
        grows = call.grows
        if age_s <= config.policy.tick_s + (profile.instance_init_s if grows else profile.instance_stop_s):
            continue
        before, executing = call.before.instances, servers.get(call.server, {}).get(call.model, call.before).instances
        answering = "new instances answer" if executing > before else "new instances do not answer yet"
        state = answering if grows else "no instance is removed before"
        asked = f"{call.model} on {call.server} {before}→{call.after.instances}"
        clamps.append(Clamp(ClampKind.OPEN_CALL, f"{asked}: call open for {age_s:.0f} s: the queue has not been empty; {state}"))
    return target, tuple(clamps)


def _extra_bytes(server: Server, desired: dict[str, ModelState], config: ThemisConfig) -> dict[str, float]:
    """Memory of the instances to be added on each device; a change that makes all anew holds old and new ones at once."""
    total: dict[str, float] = {}
    for name, state in desired.items():
        now = server.models.get(name)
        added = state.by_device if now is None or _renews_all(state, now, config.models[name]) else state.added(now)
        for device, count in added.items():
            where = device or server.device
            total[where] = total.get(where, 0.0) + count * config.models[name].profile.instance_memory_bytes
    return total


def _memory_bytes(models: dict[str, ModelState], config: ThemisConfig) -> int:
    return sum(state.instances * config.models[name].profile.instance_memory_bytes for name, state in models.items())


def _renews_all(state: ModelState, now: ModelState, model: ModelConfig) -> bool:
    """Whether the change makes all instances anew beside the old ones, by its kind or as probed (device-blocking backends)."""
    return state.renews_all(now) or _operation(now, state) in model.profile.renewing


def _not_above(state: ModelState, now: ModelState | None, server: Server, devices: Container[str], model: ModelConfig) -> ModelState:
    """The state without growth on these devices of the server, and without a change that makes all instances there anew."""
    if now is None or not any((device or server.device) in devices for device in state.by_device):
        return state
    counts = {d: min(n, now.by_device.get(d, 0)) if (d or server.device) in devices else n for d, n in state.by_device.items()}
    kept = now.with_counts(counts)
    return now if _renews_all(kept, now, model) else kept


def _launches_that_fit(
    target: Target, free: dict[str, float], config: ThemisConfig
) -> tuple[dict[str, dict[str, ModelState]], tuple[Clamp, ...]]:
    slots = {slot.name: slot for slot in config.launch.slots} if config.launch is not None else {}
    kept: dict[str, dict[str, ModelState]] = {}
    clamps: list[Clamp] = []
    for name, models in target.launch.items():
        slot = slots[name]
        desired = _memory_bytes(models, config)
        limits = [limit for limit in (slot.memory_bytes, free.get(slot.device)) if limit is not None]
        if limits and desired > min(limits):
            clamps.append(Clamp(ClampKind.MEMORY, f"no server on {name}: {desired / 2**20:.0f} MiB are not free on {slot.device}"))
            continue
        kept[name] = models
        if slot.device in free:
            free[slot.device] -= desired
    return kept, tuple(clamps)
