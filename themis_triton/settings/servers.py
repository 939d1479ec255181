"""The sections of servers: those to adopt, and the launch of new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator, model_validator

from themis_triton.core.config import Isolation, LaunchKind, LocalLaunchConfig
from themis_triton.settings.kinds import (
    HTTPS,
    Allowed,
    Device,
    FilePath,
    HostPort,
    Name,
    PositiveSeconds,
    Repositories,
    Seconds,
    Section,
    Size,
    WebAddress,
    check_distinct,
    one_of,
    refusal,
)
from themis_triton.settings.kubernetes import KubernetesSettings
from themis_triton.settings.node_types import NodeTypeSettings, check_priced, check_section
from themis_triton.settings.ray import RaySettings
from themis_triton.settings.slurm import SlurmSettings
from themis_triton.settings.tls import TlsSettings, check_proxy

OWN_FLAGS = frozenset(
    {
        *("model-repository", "model-store", "model-control-mode", "load-model", "grpc-restricted-protocol", "http-restricted-api"),
        *(f"{protocol}-{kind}" for protocol in ("grpc", "http", "metrics") for kind in ("address", "port")),
        *("grpc-use-ssl", "grpc-use-ssl-mutual"),
    }
)
"""Flags of `tritonserver` that Themis sets for each launched server, or that would keep it from reaching the server."""
_LAUNCH = LocalLaunchConfig(slots=(), model_repository=Path())


class ServerSettings(Section):
    """A running Triton server to adopt."""

    model_config = one_of("device", "devices")

    grpc: HostPort = Field(description="Triton's gRPC address (`--grpc-port`)")
    http: WebAddress = Field(description="Triton's HTTP address (`--http-port`), or https://host:port of a proxy before it")
    metrics: WebAddress = Field(description="Triton's metrics address (`--metrics-port`), or https://host:port of a proxy before it")
    tls: TlsSettings | None = Field(default=None, description="TLS of the gRPC port; by default the port has none")
    proxy_tls: TlsSettings | None = Field(
        default=None, description="TLS of `http` and `metrics` where these begin with https://; by default `tls`"
    )
    device: Device | None = Field(default=None, description="the device that it runs on; servers and slots on one device contend for it")
    devices: list[Device] | None = Field(
        default=None,
        min_length=1,
        description="instead of `device`: all devices that it may use, the one for its first instances first; "
        "under a surge it adds instances on the others too, as far as no other server uses them",
    )
    model_control_key: str | None = Field(
        default=None,
        min_length=1,
        description="the key of `--grpc-restricted-protocol=model-repository:key=KEY`, if that flag is set",
    )
    model_repository: Repositories | None = Field(
        default=None,
        description="its model repository, or a list of several; without it the first change of an instance count reloads the model",
    )
    model_config_name: Name | None = Field(default=None, description="the value of `--model-config-name`, if that flag is set")
    zone: Name | None = Field(default=None, description="the zone of its machine, such as europe-west1-b; Envoy's endpoints carry it")

    @model_validator(mode="after")
    def _one_of(self) -> ServerSettings:
        if (self.device is None) == (self.devices is None):
            fault = "neither `device` nor `devices` is set" if self.device is None else "both `device` and `devices` are set"
            raise refusal(fault, "one of `device` and `devices`", "write `device: gpu:0`, or `devices: [gpu:0, gpu:1]` for several")
        if self.devices is not None:
            check_distinct(self.devices)
        secure = next((key for key in ("http", "metrics") if str(getattr(self, key)).startswith(HTTPS)), None)
        if secure is not None and self.tls is None and self.proxy_tls is None:
            raise refusal(f"`{secure}` is https without a `proxy_tls`", "`proxy_tls`, or `tls`", "write `proxy_tls: {ca: FILE}` beside it")
        if secure is None and self.proxy_tls is not None:
            fix = "write https://host:port for `http` and `metrics`, or remove `proxy_tls`"
            raise refusal("`proxy_tls` is set, and neither `http` nor `metrics` is https", "an address with https://", fix)
        return self

    @property
    def all_devices(self) -> tuple[str, ...]:
        """The devices that it may use, that of its first instances first."""
        return tuple(self.devices or ([self.device] if self.device is not None else []))


def _slot(value: object) -> object:
    return {"device": value} if isinstance(value, str) else value


class SlotSettings(Section):
    """A place where one server may be launched."""

    device: Device = Field(description="the device; several slots may share one")
    name: Name | None = Field(default=None, description="the slot's name; by default the device, numbered from its second slot on")
    memory: Size | None = Field(
        default=None, description="device memory that servers on this slot may use; by default the free memory that NVML reports"
    )
    node_type: Name | None = Field(
        default=None, description="the kind of the device, to which models may be bound (`models.NAME.node_types`)"
    )
    price_per_hour: float | None = Field(
        default=None, ge=0, description="price of a server on this slot per hour, in your currency; either all slots have one or none"
    )


Slot = Annotated[
    SlotSettings,
    BeforeValidator(_slot, json_schema_input_type=SlotSettings | Device),
    Allowed("gpu:N, cpu:N, or a mapping with `device`, `name`, `memory`, `node_type`, `price_per_hour`"),
]


_SECTIONS = {LaunchKind.LOCAL: "slots", LaunchKind.KUBERNETES: "kubernetes", LaunchKind.RAY: "ray", LaunchKind.SLURM: "slurm"}
"""The key of each kind's own settings."""
_FOREIGN = {
    LaunchKind.LOCAL: ("node_types", "tls"),
    LaunchKind.KUBERNETES: ("binary", "backend_directory", "reach", "isolation"),
    LaunchKind.RAY: ("reach", "isolation"),
    LaunchKind.SLURM: ("reach", "isolation"),
}
"""The keys that a kind does not have."""


class LaunchSettings(Section):
    """How new servers are launched."""

    model_config = one_of(*_SECTIONS.values())

    kind: Annotated[LaunchKind, Field(strict=False)] = Field(
        default=LaunchKind.LOCAL,
        description="local: as processes on this machine; kubernetes: as pods; ray: on nodes of a Ray cluster (extras of these names); "
        "slurm: as jobs of a Slurm cluster",
    )
    slots: list[Slot] | None = Field(default=None, min_length=1, description="where servers may be launched here, one server per slot")
    kubernetes: KubernetesSettings | None = Field(default=None, description="instead of `slots`, with `kind: kubernetes`")
    ray: RaySettings | None = Field(default=None, description="instead of `slots`, with `kind: ray`")
    slurm: SlurmSettings | None = Field(default=None, description="instead of `slots`, with `kind: slurm`")
    node_types: dict[Name, NodeTypeSettings] = Field(
        default={},
        description="kinds of nodes for servers that an engine places, by names of your choice; launches take the cheapest free one first",
    )
    reach: list[Device] = Field(
        default=[],
        description="devices that every launched server can see: under a surge it adds instances on those that no other server uses, "
        "in one instance initialisation, where a new server takes a cold start",
    )
    read_nodes_every_s: Seconds = Field(
        default=_LAUNCH.read_nodes_every_s,
        description="how often the engine is asked which nodes of `node_types` have free devices, so that launches take those first; "
        "0: never, and launches take the cheapest node type, such as one whose nodes an autoscaler brings",
    )
    isolation: Annotated[Isolation, Field(strict=False)] = Field(
        default=Isolation.NONE,
        description="process: once the load has settled, servers of their own take over from further devices of a server, "
        "so that a crash takes one device with it; none: it keeps them",
    )
    model_repository: Repositories | None = Field(
        default=None,
        description="the model repository of launched servers, or a list of several; by default the emulated models that ship with Themis",
    )
    model_config_name: Name | None = Field(
        default=None,
        description="as `--model-config-name`: launched servers take a model's configs/NAME.pbtxt, or its config.pbtxt where there is none",
    )
    binary: FilePath | None = Field(
        default=None, description="`tritonserver` (kind: ray: on the nodes); by default that of the `local` extra"
    )
    backend_directory: FilePath | None = Field(default=None, description="Triton's backends; as `binary`")
    arguments: list[str] = Field(default=[], description="further arguments for `tritonserver`")
    tls: TlsSettings | None = Field(
        default=None,
        description="TLS from here and from Envoy to launched servers of other machines, which the `proxy` of the kind's section ends; "
        "by default none",
    )
    ready_timeout_s: PositiveSeconds = Field(
        default=_LAUNCH.ready_timeout_s,
        description="time from process start to ready with all models, after which the launch has failed",
    )
    warmup_requests: int = Field(
        default=_LAUNCH.warmup_requests,
        ge=0,
        description="requests per batch size that a new server answers before it receives traffic",
    )
    drain_timeout_s: Seconds = Field(
        default=_LAUNCH.drain_timeout_s, description="maximum wait for requests in flight after a server left the routes"
    )
    stop_timeout_s: PositiveSeconds = Field(
        default=_LAUNCH.stop_timeout_s, description="time from SIGTERM, which follows the drain, to SIGKILL"
    )

    @model_validator(mode="after")
    def _of_its_kind(self) -> LaunchSettings:
        wanted = _SECTIONS[self.kind]
        other = next((name for name in _SECTIONS.values() if name != wanted and getattr(self, name) is not None), None)
        if getattr(self, wanted) is None or other is not None:
            fault = f"`{other}` is set" if other is not None else f"`{wanted}` is missing"
            fix = (
                f"write `slots: [gpu:0]`, or set `kind: {other or 'kubernetes'}`"
                if wanted == "slots"
                else f"add the section `{wanted}`, or set `kind: local`"
            )
            raise refusal(f"{fault} with kind: {self.kind.value}", f"`{wanted}` alone", fix)
        if self.node_types and self.kubernetes is not None and self.kubernetes.keda is not None:
            raise refusal(
                "`node_types` is set with `kubernetes.keda`", "no such key", "remove `node_types`; the Deployment chooses the nodes"
            )
        foreign = next((name for name in _FOREIGN[self.kind] if name in self.model_fields_set), None)
        if foreign is not None:
            says = "; the pod template says it" if self.kind is LaunchKind.KUBERNETES else "; the cluster gives a server its device"
            says = ", and write `node_type` and `price_per_hour` in `slots`" if self.kind is LaunchKind.LOCAL else says
            says = "; servers of this machine listen on its loopback alone" if foreign == "tls" else says
            raise refusal(f"`{foreign}` is set with kind: {self.kind.value}", "no such key", f"remove `{foreign}`{says}")
        if self.kind is not LaunchKind.LOCAL and self.model_repository is None:
            fix = "name the folder where this machine sees the models of the servers; changes of counts start from their config.pbtxt"
            raise refusal(f"`model_repository` is missing with kind: {self.kind.value}", "a path", fix)
        if self.slurm is not None and self.slurm.container is not None and (self.binary is not None or self.backend_directory is not None):
            fix = "remove `launch.slurm.container`, or `launch.binary` and `launch.backend_directory`"
            raise refusal("both `slurm.container` and a `tritonserver` outside of it are set", "one of them", fix)
        return self

    @model_validator(mode="after")
    def _behind_a_proxy(self) -> LaunchSettings:
        """With KEDA the Deployment's pods have a proxy of their own."""
        own = self.kubernetes or self.ray or self.slurm
        if own is not None and (self.kubernetes is None or self.kubernetes.keda is None):
            check_proxy(self.kind.value, self.tls, own.proxy)
        return self

    @model_validator(mode="after")
    def _counted_and_priced(self) -> LaunchSettings:
        if self.kind is LaunchKind.LOCAL:
            check_priced((slot.name or slot.device, slot.price_per_hour) for slot in self.slots or ())
            return self
        count = {LaunchKind.KUBERNETES: "pods", LaunchKind.RAY: "servers", LaunchKind.SLURM: "jobs"}[self.kind]
        check_section(self.kind, self.node_types, count, getattr(getattr(self, self.kind.value), count))
        return self

    @field_validator("arguments")
    @classmethod
    def _not_its_own(cls, arguments: list[str]) -> list[str]:
        flags = (argument.lstrip("-").partition("=")[0] for argument in arguments if argument.startswith("-"))
        own = next((flag for flag in flags if flag in OWN_FLAGS), None)
        if own is not None:
            fault = f"--{own} is given by Themis itself to each launched server"
            raise refusal(fault, "other arguments", f"remove --{own}; repositories and devices of launched servers have keys in `launch`")
        if any(argument.startswith("--model-config-name") for argument in arguments):
            fix = "set `launch.model_config_name` in its place; the files that Themis writes for a launched server are made from it"
            raise refusal("--model-config-name is no argument of launched servers", "other arguments", fix)
        return arguments

    @field_validator("reach")
    @classmethod
    def _distinct(cls, reach: list[str]) -> list[str]:
        check_distinct(reach)
        return reach
