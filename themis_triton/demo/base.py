"""The settings of a demo: pipeline, models, slots, prices and policy of a settings file, the shipped one by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from themis_triton.core.config import Isolation, LocalLaunchConfig, PipelineConfig, Placement, ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.core.policy import PolicyName
from themis_triton.demo.cold_start import check_cold_start, with_cold_start
from themis_triton.settings import load_settings
from themis_triton.settings.loading import load, mapping
from themis_triton.settings.shipped import shipped

COLD_START_DEVICES = 6
PROVISIONED = frozenset({PolicyName.VERTICAL, PolicyName.VERTICAL_THEMIS})
_OWN_ENVOY_KEYS = ("max_message", "concurrency")


@dataclass(frozen=True, slots=True)
class DemoBase:
    """One pipeline of a settings file. `sections` is the file as plain data with the profile files inlined.

    `cold_start_s`: process start of the emulated servers that the sidecar launches; None: their own, about a second.
    `peak_rps`: the load's peak, for policies that are provisioned for it; None: unknown. `shows_launches`: with a cold start, settled load
    moves to servers of its own, so that one sees them join; it costs more than the settings' `launch.isolation`.
    """

    sections: Mapping[str, Any]
    config: ThemisConfig
    launch: LocalLaunchConfig
    pipeline: PipelineConfig
    cold_start_s: float | None = None
    peak_rps: float | None = None
    shows_launches: bool = False

    @property
    def reach(self) -> tuple[str, ...]:
        """The devices that servers may extend to: those of the settings.

        With a cold start, during which only they help, the devices of all slots and emulated ones up to COLD_START_DEVICES.
        """
        if self.cold_start_s is None:
            return self.launch.reach
        devices = (*(slot.device for slot in self.launch.slots), *(f"cpu:{number}" for number in range(COLD_START_DEVICES)))
        return tuple(dict.fromkeys((*self.launch.reach, *devices)))

    def settings(self, policy: PolicyName, first: Mapping[str, Any], addresses: Mapping[str, str], state: Path) -> dict[str, Any]:
        """Settings with an adopted server on the first slot, the other slots for launches, and separate addresses.

        `addresses` has the keys `grpc`, `http` and `status`.
        """
        envoy = {key: value for key, value in mapping(self.sections.get("envoy")).items() if key in _OWN_ENVOY_KEYS}
        listens = {"grpc_listen": addresses["grpc"], "http_listen": addresses["http"]}
        settings: dict[str, Any] = {
            "mode": "active",
            "allow_stale_profiles": self.config.allow_stale_profiles,
            "state_directory": str(state.resolve()),
            "servers": {"first": dict(first)},
            "launch": self._launch(),
            "envoy": envoy | listens | _path("binary", self.config.envoy.binary),
            "models": {stage: self._model(stage) for stage in self.pipeline.stages},
            "pipelines": {self.pipeline.name: self.sections["pipelines"][self.pipeline.name]},
            "prices": dict(mapping(self.sections.get("prices"))),
            "policy": self._policy(policy),
            "planning": dict(mapping(self.sections.get("planning"))),
            "status": {"address": addresses["status"]},
        }
        return settings if settings["launch"]["slots"] else {key: value for key, value in settings.items() if key != "launch"}

    def _policy(self, policy: PolicyName) -> dict[str, Any]:
        """The section, with the peak of the load for a policy that is provisioned for it, unless the settings say for what."""
        section = dict(mapping(self.sections.get("policy"))) | {"name": policy.value}
        if self.peak_rps is not None and policy in PROVISIONED:
            section["vertical"] = {"planned_rps": self.peak_rps} | dict(mapping(section.get("vertical")))
        return section

    def _model(self, stage: str) -> dict[str, Any]:
        return with_cold_start(self.sections["models"][stage], self.config.models[stage], self.cold_start_s)

    def _launch(self) -> dict[str, Any]:
        """The section without its first slot and with absolute paths, because the demo's settings are in another folder."""
        launch = dict(self.sections["launch"]) | {"slots": self.sections["launch"]["slots"][1:]}
        launch |= {"reach": list(self.reach)} if self.reach else {}
        launch |= {"isolation": Isolation.PROCESS.value} if self.shows_launches and self.cold_start_s is not None else {}
        paths = _path("binary", self.launch.binary) | _path("backend_directory", self.launch.backend_directory)
        return launch | paths | {"model_repository": str(self.launch.model_repository)}


def _path(key: str, path: Path | None) -> dict[str, str]:
    return {key: str(path)} if path is not None else {}


def read_base(path: Path | None, pipeline: str | None, cold_start_s: float | None = None) -> DemoBase:
    """The base for a pipeline (None: the first) of a settings file (None: the shipped one).

    SettingsError for an invalid file, an unknown pipeline, no slots, separate placement, or a cold start of models that are not emulated.
    """
    path = path or shipped("config") / "themis.yaml"
    config = load_settings(path)
    known = {entry.name: entry for entry in config.pipelines}
    name = pipeline or next(iter(known))
    if name not in known:
        raise SettingsError(f"--pipeline: {name} is invalid: expected {', '.join(known)}")
    if not isinstance(config.launch, LocalLaunchConfig):
        raise SettingsError(
            f"{path}: launch is missing: expected a section of kind local with slots, where the servers of a run are launched"
        )
    if config.planning.placement is Placement.SEPARATE:
        raise SettingsError(
            f"{path}: planning.placement: separate does not fit a demo or a comparison, whose first server holds all stages: "
            "expected colocated. Fix: use `themis run` or `themis simulate`"
        )
    if cold_start_s is not None:
        check_cold_start(cold_start_s, known[name].stages, config.launch)
    return DemoBase(mapping(load(path).source.data), config, config.launch, known[name], cold_start_s)
