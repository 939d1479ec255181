"""TLS to servers: how it is spoken from here, and the proxy that ends it before a launched one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from themis_triton.core.server_proxy import PodProxy, ServerProxy, ServerTls
from themis_triton.settings.kinds import Allowed, FilePath, HostName, KubernetesName, Section, refusal


class TlsSettings(Section):
    """TLS of a server's gRPC port (`--grpc-use-ssl`), or of a proxy before its HTTP and metrics ports, for which Triton has none."""

    ca: FilePath = Field(description="PEM file with the certificate authority of the server's certificate (or that certificate itself)")
    server_name: HostName | None = Field(
        default=None, description="the name in the server's certificate; by default the host of the address"
    )
    certificate: FilePath | None = Field(
        default=None, description="PEM file with the certificate that the server asks of clients (`--grpc-use-ssl-mutual`)"
    )
    key: FilePath | None = Field(default=None, description="PEM file with the private key of `certificate`")

    @model_validator(mode="after")
    def _both(self) -> TlsSettings:
        if (self.certificate is None) != (self.key is None):
            present, absent = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise refusal(f"`{present}` is set without `{absent}`", "both or neither", f"set `{absent}` too, or remove `{present}`")
        return self

    def to_core(self, resolve: Callable[[Path], Path]) -> ServerTls:
        """The same with absolute paths."""
        ca, certificate, key = (str(resolve(file)) if file is not None else None for file in (self.ca, self.certificate, self.key))
        return ServerTls(str(ca), self.server_name, certificate, key)


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise refusal(None, _NODE_PATH_WORDS, f"write the whole path of {path.name} on the nodes")
    return path


_NODE_PATH_WORDS = "an absolute path, as the nodes see it"
NodePath = Annotated[Path, Field(strict=False), AfterValidator(_absolute), Allowed(_NODE_PATH_WORDS)]


class ProxySettings(Section):
    """The proxy with TLS before each launched server: an Envoy on its node."""

    certificate: NodePath = Field(description="PEM file with a certificate for the node's address or `tls.server_name`")
    key: NodePath = Field(description="PEM file with its private key, not encrypted")
    client_ca: NodePath | None = Field(
        default=None, description="PEM file with the authority of `tls.certificate`, which the proxy then asks for"
    )
    binary: NodePath | None = Field(default=None, description="Envoy; by default that of the `local` extra")

    def to_core(self) -> ServerProxy:
        """The same for the nodes."""
        return ServerProxy(self.certificate, self.key, self.client_ca, self.binary)


class PodProxySettings(Section):
    """The proxy with TLS before the Triton of each pod: an Envoy in a container that Themis adds."""

    image: str = Field(min_length=1, description="image with Envoy, such as envoyproxy/envoy:distroless-v1.36-latest")
    secret: KubernetesName = Field(
        description="Secret of type kubernetes.io/tls in the pods' namespace: a certificate for `tls.server_name`, and its key"
    )
    client_certificates: bool = Field(
        default=False, description="whether clients must send a certificate of the authority in the Secret's entry ca.crt"
    )

    def to_core(self) -> PodProxy:
        """The same."""
        return PodProxy(self.image, self.secret, self.client_certificates)


def check_proxy(kind: str, tls: TlsSettings | None, proxy: ProxySettings | PodProxySettings | None) -> None:
    """Raise the validator's error where one of the two is missing, or the proxy asks for a certificate that is not there."""
    if tls is None and proxy is not None:
        fix = "add `tls: {ca: FILE}` with the authority of the proxy's certificate, or remove `proxy`"
        raise refusal(f"`{kind}.proxy` is set without `launch.tls`", "both or neither", fix)
    if tls is not None and proxy is None:
        raise refusal(f"`tls` is set without `{kind}.proxy`", "both or neither", f"add `{kind}.proxy`, or remove `tls`")
    asks = proxy.client_ca is not None if isinstance(proxy, ProxySettings) else proxy is not None and proxy.client_certificates
    if tls is not None and asks and tls.certificate is None:
        key = "client_ca" if isinstance(proxy, ProxySettings) else "client_certificates"
        fix = f"add `certificate` and `key` to `tls`, or remove `{key}`"
        raise refusal(f"`{kind}.proxy.{key}` is set, and `tls` has no `certificate`", "a certificate for the proxy's clients", fix)
