"""What an operator has put in force for a time, over the settings: pinned instance counts, and another mode."""

from __future__ import annotations

from dataclasses import dataclass, replace

from themis_triton.core.config import Mode, ThemisConfig

FROM_SETTINGS = "settings"
"""Instead of a mode: that of the settings again."""
MODE_NAMES = (*Mode, FROM_SETTINGS)
MODE_WORDS = f"{', '.join(Mode)} or {FROM_SETTINGS}"


@dataclass(frozen=True, slots=True)
class Pin:
    """A model's instances on each server, or on each device of one that uses several, until `until_s`; by whom, and why."""

    model: str
    instances: int
    until_s: float
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
    """All that is in force over the settings. Pins are in the order of their models, one a model."""

    pins: tuple[Pin, ...] = ()
    mode: ModeOverride | None = None

    def pinned(self, pin: Pin) -> Overrides:
        """With one more pin, in place of an earlier one of its model."""
        return replace(self, pins=tuple(sorted((*self.unpinned(pin.model).pins, pin), key=lambda each: each.model)))

    def unpinned(self, model: str) -> Overrides:
        """Without the pin of a model."""
        return replace(self, pins=tuple(pin for pin in self.pins if pin.model != model))

    def at(self, now_s: float) -> Overrides:
        """Without the pins whose time has ended."""
        return replace(self, pins=tuple(pin for pin in self.pins if pin.until_s > now_s))


def overridden(config: ThemisConfig, overrides: Overrides) -> ThemisConfig:
    """The settings under the overrides: a pin is both bounds of its model, which plans and the guard of bounds keep to.

    Pins of models that the settings do not have, or whose profile does not reach so far, change nothing.
    """
    models = dict(config.models)
    for pin in overrides.pins:
        if pin.model in models and 1 <= pin.instances <= largest_pin(config, pin.model):
            models[pin.model] = replace(models[pin.model], min_instances=pin.instances, max_instances=pin.instances)
    mode = overrides.mode.mode if overrides.mode is not None else config.mode
    return replace(config, models=models, mode=mode) if models != config.models or mode is not config.mode else config


def largest_pin(config: ThemisConfig, model: str) -> int:
    """The largest count that a model can be pinned at: as far as its profile says how fast it is."""
    return config.models[model].profile.table.instances[-1]


def pin_words(pin: Pin) -> str:
    """A pin as a sentence begins."""
    return f"{pin.model} is pinned at {pin.instances} instance{'' if pin.instances == 1 else 's'} a server{said(pin.by, pin.why)}"


def said(by: str, why: str) -> str:
    """By whom and why, such as ` by alice: a test`."""
    return (f" by {by}" if by else "") + (f": {why}" if why else "")
