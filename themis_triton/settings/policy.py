"""Sections of the settings file that say how plans are made, generated from the configuration that holds their defaults and bounds."""

from __future__ import annotations

from dataclasses import fields, replace
from enum import Enum
from typing import Annotated, Any, TypeVar, cast, get_type_hints

from pydantic import Field, create_model, field_validator

from themis_triton.core.config import PlanningConfig, Prices
from themis_triton.core.options import SECTION
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.settings.kinds import Section, refusal

ConfigT = TypeVar("ConfigT")


def section_of(config: type) -> type[Section]:
    """The schema of a dataclass of options: same keys, defaults, bounds and descriptions."""
    hints = get_type_hints(config)
    keys: dict[str, Any] = {}
    for each in fields(config):
        words = each.metadata["description"]
        if SECTION in each.metadata:
            part = section_of(each.metadata[SECTION])
            keys[each.name] = (part, Field(default=part(), description=words))
            continue
        hint = hints[each.name]
        # YAML has strings where the configuration has enums; all else is validated strictly.
        kind = Annotated[hint, Field(strict=False)] if isinstance(hint, type) and issubclass(hint, Enum) else hint
        keys[each.name] = (kind, Field(default=each.default, description=words, **each.metadata["bounds"]))
    return cast(
        "type[Section]", create_model(config.__name__.replace("Config", "Settings"), __base__=Section, __doc__=config.__doc__, **keys)
    )


def with_settings(config: ConfigT, settings: Section) -> ConfigT:
    """The configuration with the values that a section of the settings file sets; the others stay."""
    values = {key: getattr(settings, key) for key in settings.model_fields_set}
    changed = {key: with_settings(getattr(config, key), value) if isinstance(value, Section) else value for key, value in values.items()}
    return cast("ConfigT", replace(cast("Any", config), **changed))


_Prices: Any = section_of(Prices)
_Policy: Any = section_of(PolicyConfig)
_Planning: Any = section_of(PlanningConfig)


class PriceSettings(_Prices):  # type: ignore[misc] # its base is generated
    """Prices of capacity and of changes, in one unit of your choice; only ratios matter."""


class PolicySettings(_Policy):  # type: ignore[misc]
    """The scaling policy and its parameters."""

    @field_validator("name", check_fields=False)
    @classmethod
    def _runs_live(cls, name: PolicyName) -> PolicyName:
        if not name.runs_live:
            allowed = ", ".join(policy.value for policy in PolicyName if policy.runs_live)
            fix = f"write one of these, or simulate it: `themis simulate --policies {name.value}`"
            raise refusal(f"{name.value} is for simulations only, because it knows the arrivals in advance", allowed, fix)
        return name


class PlanningSettings(_Planning):  # type: ignore[misc]
    """The rules of plans."""
