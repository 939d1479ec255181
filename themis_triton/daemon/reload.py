"""Settings that were edited while the sidecar runs: what of them takes effect at once, and what waits for a restart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from themis_triton.core.config import ThemisConfig
from themis_triton.core.model_config import ModelInputs
from themis_triton.core.pipeline_config import PipelineConfig

LIVE = ("models", "pipelines", "prices", "policy", "policies", "planning", "mode", "allow_stale_profiles", "retention")
"""Sections that the ticks read, or that are handed on."""
RESTART = ("state_directory", "servers", "envoy", "launch", "status", "callees", "standby")
"""Sections from which adapters were built; the inputs that a launch has belong to `models`."""
KEYS = {"callees": "calls"}
RELOADED, REFUSED, EDITED = "settings_reloaded", "settings_refused", "settings_edited"


@dataclass(frozen=True, slots=True)
class SettingsChange:
    """The settings that are in force from now on, the sections that changed in them, and those that wait for a restart."""

    config: ThemisConfig
    changed: tuple[str, ...]
    waiting: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What was done, and what is to be done."""
        done = f"changed {', '.join(self.changed)}" if self.changed else "nothing changed" if not self.waiting else "nothing changed yet"
        if not self.waiting:
            return f"settings reloaded: {done}"
        return (
            f"settings reloaded: {done}; {', '.join(self.waiting)} stay as they were until a restart. "
            "Fix: `themis stop`, then `themis run`; servers and Envoy serve on meanwhile"
        )

    @property
    def notice(self) -> str | None:
        """What of the edited settings is not in force, and what is to be done; None where all of it is."""
        restart = "Fix: `themis stop`, then `themis run`; servers and Envoy serve on meanwhile"
        now = [f"{', '.join(self.changed)}. Fix: `themis reload`"] if self.changed else []
        later = [f"{', '.join(self.waiting)} since the sidecar's start. {restart}"] if self.waiting else []
        return f"the settings file differs from what is in force: {'; '.join(now + later)}" if now or later else None


def settings_change(current: ThemisConfig, edited: ThemisConfig) -> SettingsChange:
    """What of edited settings takes effect while the sidecar runs."""
    inputs = any(_inputs(current, name) != _inputs(edited, name) for name in current.models)
    changed = tuple(name for name in LIVE if getattr(current, name) != getattr(edited, name) or (name == "models" and inputs))
    fixed = tuple(name for name in changed if not _may_change(name, current, edited))
    values: dict[str, Any] = {name: getattr(edited, name) for name in changed if name not in fixed}
    if inputs and "models" in values and current.launch is not None:
        values["launch"] = replace(current.launch, inputs={name: _inputs(edited, name) for name in current.models})
    before, after = (replace(each, launch=each.launch and replace(each.launch, inputs={})) for each in (current, edited))
    waiting = [name for name in RESTART if getattr(before, name) != getattr(after, name)]
    return SettingsChange(
        replace(current, **values),
        tuple(name for name in changed if name not in fixed),
        tuple(KEYS.get(name, name) for name in (*fixed, *waiting)),
    )


def changed_models(current: ThemisConfig, edited: ThemisConfig) -> frozenset[str]:
    """The models whose section, or whose inputs of warm-up, are others."""
    return frozenset(
        name for name in edited.models if current.models.get(name) != edited.models[name] or _inputs(current, name) != _inputs(edited, name)
    )


def _inputs(config: ThemisConfig, model: str) -> ModelInputs:
    """What warms up a model: part of its section, used by launches."""
    return config.launch.inputs.get(model, ModelInputs()) if config.launch is not None else ModelInputs()


def _may_change(name: str, current: ThemisConfig, edited: ThemisConfig) -> bool:
    """Whether a section's change concerns the ticks alone: routes, launched files and statistics depend on the names and the structure."""
    structure = [_structure(pipeline) for pipeline in current.pipelines] == [_structure(pipeline) for pipeline in edited.pipelines]
    if name == "pipelines":
        return structure and current.models.keys() == edited.models.keys()
    if name == "models":
        return structure and list(current.models) == list(edited.models)
    if name == "planning":  # what the ticks remember has one number a group of stages
        return current.planning.placement is edited.planning.placement
    return name != "policy" or current.deprioritize_after_s == replace(current, policy=edited.policy).deprioritize_after_s


def _structure(pipeline: PipelineConfig) -> PipelineConfig:
    """The pipeline without what ticks alone read."""
    return replace(pipeline, slo_ms=1.0, percentile=99.0, weight=1.0)
