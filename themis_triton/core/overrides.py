"""What an operator has put in force for a time, over the settings: pins, bounds, drains, and another mode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from themis_triton.core.control import DrainState, Mode

if TYPE_CHECKING:
    from themis_triton.core.config import ThemisConfig

FROM_SETTINGS = "settings"
"""Instead of a mode: that of the settings again."""
MODE_NAMES = (*Mode, FROM_SETTINGS)
MODE_WORDS = f"{', '.join(Mode)} or {FROM_SETTINGS}"


class Counted(StrEnum):
    """What bounds count: a model's instances on each server (or device of one with several), or a pipeline's servers."""

    INSTANCES = "instances"
    SERVERS = "servers"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The fewest and the most that plans may use until `until_s`; by whom, and why. Equal ones are a pin.

    `name`: a model for instances, a pipeline for servers.
    """

    counted: Counted
    name: str
    min: int
    max: int
    until_s: float
    by: str = ""
    why: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What there is at most one of."""
        return self.counted.value, self.name


@dataclass(frozen=True, slots=True)
class Drain:
    """A server that gets no new requests, since an operator asked for it at `at_s`; by whom, and why.

    `force`: at once, whether or not the others carry the demand. `left`: it is out of the routes. `launched`: it is retired then.
    """

    server: str
    at_s: float
    launched: bool
    force: bool = False
    left: bool = False
    by: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class ModeOverride:
    """The mode in place of that of the settings; by whom, and why."""

    mode: Mode
    by: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Overrides:
    """All that is in force over the settings. Bounds and drains are in the order of their names."""

    bounds: tuple[Bounds, ...] = ()
    mode: ModeOverride | None = None
    drains: tuple[Drain, ...] = ()

    def bounded(self, bounds: Bounds) -> Overrides:
        """With these bounds, in place of earlier ones of the same."""
        others = (each for each in self.bounds if each.key != bounds.key)
        return replace(self, bounds=tuple(sorted((*others, bounds), key=lambda each: each.key)))

    def unbounded(self, name: str) -> Overrides:
        """Without the bounds of a model or pipeline, and of both where they have the same name."""
        return replace(self, bounds=tuple(each for each in self.bounds if each.name != name))

    def drained(self, drain: Drain) -> Overrides:
        """With one more drain, in place of an earlier one of its server."""
        return replace(self, drains=tuple(sorted((*self.undrained(drain.server).drains, drain), key=lambda each: each.server)))

    def undrained(self, server: str) -> Overrides:
        """Without the drain of a server."""
        return replace(self, drains=tuple(each for each in self.drains if each.server != server))

    @property
    def out_of_routes(self) -> frozenset[str]:
        """The drained servers that have left the routes."""
        return frozenset(each.server for each in self.drains if each.left)

    def at(self, now_s: float) -> Overrides:
        """Without the bounds whose time has ended."""
        return replace(self, bounds=tuple(each for each in self.bounds if each.until_s > now_s))


def overridden(config: ThemisConfig, overrides: Overrides) -> ThemisConfig:
    """The settings under the overrides, which plans and guards keep to.

    Bounds of models and pipelines that the settings do not have, or beyond a model's profile, change nothing.
    """
    models, pipelines = dict(config.models), {pipeline.name: pipeline for pipeline in config.pipelines}
    for each in overrides.bounds:
        if not 1 <= each.min <= each.max:
            continue
        if each.counted is Counted.SERVERS and each.name in pipelines:
            pipelines[each.name] = replace(pipelines[each.name], min_servers=each.min, max_servers=each.max)
        elif each.counted is Counted.INSTANCES and each.name in models and each.max <= largest_count(config, each.name):
            models[each.name] = replace(models[each.name], min_instances=each.min, max_instances=each.max)
    mode = overrides.mode.mode if overrides.mode is not None else config.mode
    drains = {each.server: _state(each) for each in overrides.drains}
    changed = replace(config, models=models, pipelines=tuple(pipelines.values()), mode=mode, drains=drains)
    return changed if changed != config else config


def largest_count(config: ThemisConfig, model: str) -> int:
    """The largest count of a model's instances that can be asked for: as far as its profile says how fast it is."""
    return config.models[model].profile.table.instances[-1]


def _state(drain: Drain) -> DrainState:
    return DrainState.LEFT if drain.left else DrainState.FORCED if drain.force else DrainState.WAITING


def bounds_words(bounds: Bounds) -> str:
    """Bounds as a sentence begins."""
    low, high = bounds.min, bounds.max
    counts, unit = f"{low}" if low == high else f"{low} to {high}", bounds.counted.value if high > 1 else bounds.counted.value[:-1]
    where = " a server" if bounds.counted is Counted.INSTANCES else ""
    return f"{bounds.name} is {'pinned at' if low == high else 'bounded to'} {counts} {unit}{where}{said(bounds.by, bounds.why)}"


def ended_words(bounds: Bounds) -> str:
    """The end of bounds as a sentence begins."""
    return f"{bounds.name} is no longer {'pinned' if bounds.min == bounds.max else 'bounded'} in its {bounds.counted.value}"


def drain_words(drain: Drain) -> str:
    """A drain as a sentence begins."""
    said_words = said(drain.by, drain.why)
    if not drain.left:
        return f"{drain.server} is to be drained{' at once' if drain.force else ''}{said_words}"
    return f"{drain.server} is drained{said_words} ({'it retires' if drain.launched else 'it runs on, and gets no new requests'})"


def said(by: str, why: str) -> str:
    """By whom and why, such as ` by alice: a test`."""
    return (f" by {by}" if by else "") + (f": {why}" if why else "")
