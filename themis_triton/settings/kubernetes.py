"""The section `launch.kubernetes`: servers as pods."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from themis_triton.core.config import KubernetesLaunchConfig
from themis_triton.settings.kinds import Count, FilePath, KubernetesName, Listen, PositiveSeconds, Quantity, Section, Size, one_of, refusal
from themis_triton.settings.listener_tls import ListenerTlsSettings
from themis_triton.settings.tls import PodProxySettings

_PODS = KubernetesLaunchConfig(slots=(), model_repository=Path())
_TEMPLATE_ONLY = ("instance_cpu", "instance_memory", "owner_deployment", "proxy")


class KedaSettings(Section):
    """Servers as the pods of a Deployment that KEDA scales."""

    listen: Listen = Field(description="listener of the external scaler (gRPC), such as 0.0.0.0:9190, which KEDA must reach")
    selector: dict[str, str] = Field(min_length=1, description="labels of the Deployment's pods")
    tls: ListenerTlsSettings | None = Field(default=None, description="TLS of `listen`; by default it has none")


class KubernetesSettings(Section):
    """Servers as pods of a Kubernetes cluster."""

    model_config = one_of("pod_template", "keda")

    namespace: KubernetesName = Field(description="the namespace of the pods")
    pod_template: FilePath | None = Field(
        default=None, description="a manifest of `kind: Pod`: image, resources, volumes, node selectors; a container runs Triton"
    )
    keda: KedaSettings | None = Field(
        default=None, description="instead of `pod_template`: KEDA owns the pods, and is told how many servers are wanted"
    )
    pods: Count | None = Field(
        default=None, description="how many pods may be launched, one server a pod; `launch.node_types` says it for several kinds of nodes"
    )
    memory: Size | None = Field(default=None, description="device memory that the servers of one pod may use; by default without a limit")
    key_file: FilePath = Field(description="file with the key of model control: the entry `key` of the Secret `key_secret`, mounted")
    key_secret: KubernetesName = Field(default=_PODS.key_secret, description="the Secret from which the pods get the same key")
    sidecar: KubernetesName = Field(
        default=_PODS.sidecar, description="label that tells these pods from those of other sidecars in the namespace"
    )
    owner_deployment: KubernetesName | None = Field(
        default=None,
        description="Deployment with which the pods are deleted; by default only the sidecar and `themis stop --all` delete them",
    )
    kubeconfig: FilePath | None = Field(
        default=None, description="file with the cluster's address and credentials; by default the service account of the sidecar's own pod"
    )
    context: str | None = Field(default=None, min_length=1, description="context of the kubeconfig; by default its current one")
    place_timeout_s: PositiveSeconds = Field(
        default=_PODS.place_timeout_s, description="maximum wait of a pod for a node; an autoscaler of nodes may need minutes"
    )
    instance_cpu: Quantity | None = Field(
        default=None,
        description="processors that each instance adds to those of the template; pods are resized in place (Kubernetes 1.33)",
    )
    instance_memory: Size | None = Field(default=None, description="memory that each instance adds to that of the template")
    resize_timeout_s: PositiveSeconds = Field(
        default=_PODS.resize_timeout_s, description="maximum wait for a resize in place, after which the instances are not added"
    )
    proxy: PodProxySettings | None = Field(
        default=None, description="with `launch.tls`: the proxy in each pod; Triton then listens on the pod's loopback alone"
    )

    @model_validator(mode="after")
    def _template_or_keda(self) -> KubernetesSettings:
        if (self.pod_template is None) == (self.keda is None):
            fault = f"{'neither' if self.keda is None else 'both'} `pod_template` {'nor' if self.keda is None else 'and'} `keda` is set"
            raise refusal(fault, "one of `pod_template` and `keda`", "write `pod_template: pod.yaml`, or `keda` where KEDA owns the pods")
        foreign = next((name for name in _TEMPLATE_ONLY if self.keda is not None and name in self.model_fields_set), None)
        if foreign is not None:
            raise refusal(f"`{foreign}` is set with `keda`", "no such key", f"remove `{foreign}`; the Deployment says it")
        return self
