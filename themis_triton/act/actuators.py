"""The ports through which actions change the world."""

from __future__ import annotations

from dataclasses import dataclass

from themis_triton.core.errors import ThemisError
from themis_triton.ports import Clock, ModelControl, Recorder, RouteWriter, ServerLauncher


@dataclass(frozen=True, slots=True)
class Actuators:
    """The ports of actions. `launcher` None: no server can be launched."""

    control: ModelControl
    routes: RouteWriter
    launcher: ServerLauncher | None
    recorder: Recorder
    clock: Clock

    def required_launcher(self) -> ServerLauncher:
        """The launcher; ThemisError when there is none."""
        if self.launcher is None:
            raise ThemisError("no servers can be launched or stopped: the settings have no `launch` section")
        return self.launcher
