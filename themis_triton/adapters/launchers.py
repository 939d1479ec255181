"""The one registry of launchers: which class serves which kind of `launch` section."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from themis_triton.adapters.kubernetes.state_file import read_state as read_pods_state
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.ray.launcher import RayLauncher
from themis_triton.adapters.ray.state_file import read_state as read_ray_state
from themis_triton.adapters.slurm.launcher import SlurmLauncher
from themis_triton.adapters.slurm.state_file import read_state as read_slurm_state
from themis_triton.core.config import KubernetesLaunchConfig, LaunchConfig, LocalLaunchConfig, RayLaunchConfig, SlurmLaunchConfig
from themis_triton.core.fleet import Server
from themis_triton.ports import ServerLauncher


def _kubernetes(config: KubernetesLaunchConfig, *arguments: Any) -> ServerLauncher:  # noqa: ANN401 - those of the constructor
    from themis_triton.adapters.kubernetes.keda import KedaLauncher  # noqa: PLC0415 - for those who use it
    from themis_triton.adapters.kubernetes.launcher import KubernetesLauncher  # noqa: PLC0415

    return (KubernetesLauncher if config.keda is None else KedaLauncher)(config, *arguments)


LAUNCHERS: Mapping[type[LaunchConfig], Callable[..., ServerLauncher]] = {
    LocalLaunchConfig: LocalLauncher,
    KubernetesLaunchConfig: _kubernetes,
    RayLaunchConfig: RayLauncher,
    SlurmLaunchConfig: SlurmLauncher,
}
"""By the type of a kind's configuration. A new kind is one more entry."""


def build_launcher(config: LaunchConfig, state_directory: Path, deprioritize_after_s: Mapping[str, float] | None = None) -> ServerLauncher:
    """The launcher of the configuration's kind.

    Args:
        config: the `launch` section.
        state_directory: what marks the launcher's servers as this daemon's, or where it keeps what it knows of them.
        deprioritize_after_s: by model, how long a request waits before all others are served first.
    """
    return LAUNCHERS[type(config)](config, state_directory, deprioritize_after_s)


def bare_launchers(state_directory: Path, **options: Any) -> tuple[ServerLauncher, ...]:  # noqa: ANN401 - fields of LaunchConfig
    """A launcher without slots of every kind that finds its servers by the state directory alone: for discovery and removal.

    They serve commands that must work where the settings have no `launch` section, or cannot be read.
    """
    remembered = [read(state_directory, **options) for read in (read_pods_state, read_ray_state, read_slurm_state)]
    elsewhere = [build_launcher(config, state_directory) for config in remembered if config is not None]
    return (*elsewhere, LocalLauncher(LocalLaunchConfig((), Path(), **options), state_directory))


async def discover_all(state_directory: Path) -> tuple[Server, ...]:
    """The servers that run and were launched with the state directory, by launchers of all kinds."""
    servers: list[Server] = []
    for launcher in bare_launchers(state_directory):
        try:
            servers += await launcher.discover()
        finally:
            await launcher.close()
    return tuple(servers)


async def stop_all(state_directory: Path, stop_timeout_s: float = 20.0) -> tuple[str, ...]:
    """Stop everything that was launched with the state directory; returns what was stopped. ServerError when something is left."""
    stopped: list[str] = []
    for launcher in bare_launchers(state_directory, stop_timeout_s=stop_timeout_s):
        try:
            stopped += await launcher.stop_all()
        finally:
            await launcher.close()
    return tuple(stopped)
