"""The check that the devices of a pipeline's node types are of one kind."""

from __future__ import annotations

from collections.abc import Mapping

from themis_triton.adapters.findings import Finding, warning
from themis_triton.core.config import ThemisConfig
from themis_triton.core.device_kinds import declared_kinds, mixed_kinds


def mixed_devices(config: ThemisConfig, kinds: Mapping[str, str] | None = None) -> list[Finding]:
    """A warning for each pipeline whose node types have devices of several kinds. `kinds` None: as the settings name them."""
    one = "plans take all slots for equally fast, as the profile's device is"
    fix = "bind its models to one node type (`models.NAME.node_types`), or give each kind of device a sidecar with profiles of its own"
    found = mixed_kinds(config, declared_kinds(config) if kinds is None else kinds)
    return [warning(f"pipelines.{name}", f"its node types differ: {words}; {one}", fix) for name, words in found]
