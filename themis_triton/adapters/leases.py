"""The one registry of leases: which engine keeps the lease of which kind of `standby`."""

from __future__ import annotations

from themis_triton.adapters.ray.launcher import RayLauncher
from themis_triton.adapters.ray.lease import RayLease
from themis_triton.core.config import KubernetesLaunchConfig, LaunchConfig
from themis_triton.core.errors import SettingsError
from themis_triton.ports import LeaseStore, ServerLauncher


def build_lease(launch: LaunchConfig | None, launcher: ServerLauncher | None) -> LeaseStore:
    """The lease in the cluster of the launcher. SettingsError where its kind has none."""
    if isinstance(launcher, RayLauncher):
        return RayLease(launcher.cluster)
    if isinstance(launch, KubernetesLaunchConfig):
        from themis_triton.adapters.kubernetes.lease import KubernetesLease  # noqa: PLC0415 - for those who use it

        return KubernetesLease(launch)
    raise SettingsError("standby.kind: a lease needs launch.kind ray or kubernetes. Fix: set it, or remove `standby`")
