"""Servers that are adopted, and how others are launched."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from themis_triton.core.address import Address
from themis_triton.core.listener_tls import ListenerTls
from themis_triton.core.model_config import ModelInputs
from themis_triton.core.server_proxy import PodProxy, ServerProxy, ServerTls


@dataclass(frozen=True, slots=True)
class AdoptedServer:
    """A Triton server that Themis did not start. `device` is `gpu:N`, `gpu:UUID` or `cpu:N`; `reach`: further devices that it may use.

    `further_repositories`: where models lie that `model_repository` lacks. `zone`: where its machine is, if known.
    """

    name: str
    grpc_address: Address
    http_address: Address
    metrics_address: Address
    device: str
    model_control_key: str | None = None
    model_repository: Path | None = None
    model_config_name: str | None = None
    reach: tuple[str, ...] = ()
    further_repositories: tuple[Path, ...] = ()
    zone: str | None = None

    @property
    def devices(self) -> tuple[str, ...]:
        """All devices that it may use."""
        return (self.device, *self.reach)


@dataclass(frozen=True, slots=True)
class DeviceSlot:
    """One place where a server may be launched; several slots may share a device. `memory_bytes` None: ask NVML.

    `node_type`: the kind of its node, by the settings. `price_per_hour`: of a server there; None: slots have no prices.
    """

    name: str
    device: str
    memory_bytes: int | None = None
    node_type: str | None = None
    price_per_hour: float | None = None


class LaunchKind(StrEnum):
    """Where servers are launched."""

    LOCAL = "local"
    KUBERNETES = "kubernetes"
    RAY = "ray"
    SLURM = "slurm"


class StandbyKind(StrEnum):
    """What decides which of several sidecars leads: a file lock on one host, or a lease of the engine that runs the servers."""

    FILE = "file"
    RAY = "ray"
    KUBERNETES = "kubernetes"


@dataclass(frozen=True, slots=True)
class StandbyConfig:
    """`lease_s`: after this time without a renewal of the lease another sidecar leads; a file lock has none."""

    kind: StandbyKind = StandbyKind.FILE
    lease_s: float = 3.0


class Isolation(StrEnum):
    """Whether settled load stays on all devices of one process. PROCESS: it moves to a process of its own on each device."""

    NONE = "none"
    PROCESS = "process"


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """The keys of every kind of launcher; a kind's own keys are in its subclass.

    `further_repositories`: where models lie that `model_repository` lacks.
    `reach`: the devices that a launched server can see, and may add instances on, besides that of its slot. `ensembles`: each with
    the models that it needs; a server that is launched with these gets it too. `model_config_name`: models are launched with their
    `configs/NAME.pbtxt` where they have one. `node_types`: by node type, what the engine is to choose its nodes by, and
    `read_nodes_every_s` how often the sidecar asks what is free on them (0: never). `slots` are taken in their order, and `slot_by_name`
    has them by name. `tls`: how servers of other machines are reached; None: without.
    """

    slots: tuple[DeviceSlot, ...]
    model_repository: Path
    model_config_name: str | None = None
    arguments: tuple[str, ...] = ()
    ready_timeout_s: float = 120.0
    warmup_requests: int = 2
    drain_timeout_s: float = 30.0
    stop_timeout_s: float = 15.0
    inputs: Mapping[str, ModelInputs] = field(default_factory=dict)
    further_repositories: tuple[Path, ...] = ()
    reach: tuple[str, ...] = ()
    isolation: Isolation = Isolation.NONE
    ensembles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    node_types: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    read_nodes_every_s: float = 30.0
    tls: ServerTls | None = None
    slot_by_name: Mapping[str, DeviceSlot] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the slots, which each tick looks up."""
        object.__setattr__(self, "slot_by_name", {slot.name: slot for slot in self.slots})

    def price_of(self, slot: str | None) -> float | None:
        """The price per hour of a server on a slot; None without prices, and for a slot that does not exist."""
        known = self.slot_by_name.get(slot or "")
        return known.price_per_hour if known is not None else None

    @property
    def is_priced(self) -> bool:
        """Whether slots have prices: all of them or none."""
        return any(slot.price_per_hour is not None for slot in self.slots[:1])

    def selection_of(self, slot: str) -> Mapping[str, str]:
        """What the engine is to choose the node of a slot by."""
        return self.node_types.get(self.slot_by_name[slot].node_type or "", {})

    @property
    def runs_here(self) -> bool:
        """Whether the servers run on this machine, so that the devices of the slots can be read here."""
        return True

    def ensembles_of(self, models: Collection[str]) -> tuple[str, ...]:
        """The ensembles that a server with these models gets."""
        return tuple(name for name, needed in self.ensembles.items() if all(model in models for model in needed))

    def reach_from(self, device: str) -> tuple[str, ...]:
        """The further devices of a server that is launched on one."""
        return tuple(other for other in self.reach if other != device)


@dataclass(frozen=True, slots=True)
class LocalLaunchConfig(LaunchConfig):
    """Servers as processes on this machine, listening at the IP address `host`.

    `binary` and `backend_directory` None: those of the `local` extra.
    """

    binary: Path | None = None
    backend_directory: Path | None = None
    host: str = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class KedaConfig:
    """Servers as the pods with these labels, of a Deployment that KEDA scales by what it is told at `listen`. `tls` None: plain."""

    listen: Address
    selector: tuple[tuple[str, str], ...]
    tls: ListenerTls | None = None


@dataclass(frozen=True, slots=True)
class KubernetesLaunchConfig(LaunchConfig):
    """Servers as pods, made from `pod_template` in `namespace`; `sidecar` is the label that tells them from those of other sidecars.

    `kubeconfig` None: the service account of the sidecar's own pod, or the default file; `context` None: its current one.
    `key_secret`: the Secret with the key of model control for the pods, which the sidecar reads from `key_file`.
    `owner_deployment`: the Deployment with which the pods are deleted. `instance_cpu_m` (thousandths of a processor) and
    `instance_memory_bytes` are what each instance adds to the template's resources. `keda`: instead of the template.
    `proxy`: what ends TLS in the pods that Themis makes.
    """

    namespace: str = "default"
    pod_template: Path = Path()
    key_file: Path = Path()
    key_secret: str = "themis-model-control"  # noqa: S105 - the name of the Secret
    sidecar: str = "themis"
    kubeconfig: Path | None = None
    context: str | None = None
    owner_deployment: str | None = None
    place_timeout_s: float = 300.0
    resize_timeout_s: float = 30.0
    instance_cpu_m: int = 0
    instance_memory_bytes: int = 0
    keda: KedaConfig | None = None
    proxy: PodProxy | None = None

    @property
    def runs_here(self) -> bool:
        """False: on the cluster's nodes."""
        return False


@dataclass(frozen=True, slots=True)
class RayLaunchConfig(LaunchConfig):
    """Servers on the nodes of a Ray cluster, each under a named actor in `namespace`, which tells them from those of other sidecars.

    `address`: of the cluster's head (`host:port`), or `auto`. `resources`: what each server asks of a node, by Ray's names.
    `node_repositories`: the model repositories as the nodes see them; empty: as this machine does. `proxy`: what ends TLS there.
    """

    address: str = "auto"
    namespace: str = "themis"
    resources: Mapping[str, float] = field(default_factory=dict)
    node_repositories: tuple[Path, ...] = ()
    place_timeout_s: float = 60.0
    binary: Path | None = None
    backend_directory: Path | None = None
    proxy: ServerProxy | None = None

    @property
    def runs_here(self) -> bool:
        """False: on the cluster's nodes."""
        return False


@dataclass(frozen=True, slots=True)
class SlurmLaunchConfig(LaunchConfig):
    """Servers as jobs of a Slurm cluster; `sidecar` in a job's name tells them from those of other sidecars.

    `directory`: models' views, logs and ports lie here, under the same path for the nodes. Those keys that are None are left to the
    cluster. `options`: further ones of `sbatch`. `container` (an image) is run with `container_command`; None: `binary` and
    `backend_directory` as the nodes see them, and those that are None are of the `local` extra. `proxy`: what ends TLS on the nodes.
    """

    directory: Path = Path()
    sidecar: str = "themis"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gres: str | None = None
    constraint: str | None = None
    cpus: int | None = None
    host_memory_bytes: int | None = None
    time_limit_min: int | None = None
    options: tuple[str, ...] = ()
    container: Path | None = None
    container_command: tuple[str, ...] = ("apptainer", "exec", "--nv")
    place_timeout_s: float = 300.0
    poll_s: float = 2.0
    binary: Path | None = None
    backend_directory: Path | None = None
    proxy: ServerProxy | None = None

    @property
    def runs_here(self) -> bool:
        """False: on the cluster's nodes."""
        return False
