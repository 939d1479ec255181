"""The section `launch.ray`: servers on the nodes of a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from themis_triton.core.config import RayLaunchConfig
from themis_triton.settings.kinds import Allowed, Count, Name, PositiveSeconds, Repositories, Section, Size, refusal
from themis_triton.settings.tls import ProxySettings

_RAY = RayLaunchConfig(slots=(), model_repository=Path())
_ADDRESS = r"^(auto|(ray://)?([A-Za-z0-9_.-]+|\[[0-9a-fA-F:]+\]):[1-9]\d{0,4})$"
_ADDRESS_WORDS = "host:port of the head's control store, such as 10.0.0.1:6379, ray://host:10001, or auto"


class RaySettings(Section):
    """Servers on the nodes of a Ray cluster."""

    address: Annotated[str, Field(pattern=_ADDRESS), Allowed(_ADDRESS_WORDS)] = Field(
        default=_RAY.address, description="the cluster's head; auto: that of the Ray node which runs on this machine"
    )
    namespace: Name = Field(default=_RAY.namespace, description="Ray namespace of the servers' actors; each sidecar has one of its own")
    servers: Count | None = Field(
        default=None,
        description="how many servers may be launched, each with a node's free device; "
        "`launch.node_types` says it for several kinds of nodes",
    )
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={"GPU": 1.0}, min_length=1, description="what each server asks of a node, by Ray's names, such as a custom resource"
    )
    memory: Size | None = Field(default=None, description="device memory that one server may use; by default without a limit")
    model_repository: Repositories | None = Field(
        default=None, description="the model repository as the nodes see it, or a list of several; by default `launch.model_repository`"
    )
    place_timeout_s: PositiveSeconds = Field(
        default=_RAY.place_timeout_s, description="maximum wait for a node; an autoscaler of nodes may need minutes"
    )
    proxy: ProxySettings | None = Field(
        default=None, description="with `launch.tls`: the proxy before each server; Triton then listens on its node's loopback alone"
    )

    @field_validator("resources")
    @classmethod
    def _one_device(cls, resources: dict[str, float]) -> dict[str, float]:
        if resources.get("GPU", 1.0) != 1.0:
            fault = f"GPU: {resources['GPU']:g} is invalid: a server has one device to itself"
            raise refusal(fault, "GPU: 1, or no GPU", "write `GPU: 1`; for CPU servers name a custom resource, such as `slot: 1`")
        return resources
