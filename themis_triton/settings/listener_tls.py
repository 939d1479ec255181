"""The `tls` sections of listeners."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import Field, model_validator

from themis_triton.core.listener_tls import ListenerTls
from themis_triton.settings.kinds import FilePath, Section, refusal


class CertificateSettings(Section):
    """TLS of a listener whose clients need no certificate. The files are read again when they change."""

    certificate: FilePath = Field(description="PEM file with the certificate that clients see, followed by its intermediate authorities")
    key: FilePath = Field(description="PEM file with its private key, not encrypted")

    def to_core(self, resolve: Callable[[Path], Path]) -> ListenerTls:
        """The same with absolute paths."""
        return ListenerTls(resolve(self.certificate), resolve(self.key), require_client_certificate=False)


class ListenerTlsSettings(CertificateSettings):
    """TLS of a listener. The files are read again when they change."""

    client_ca: FilePath | None = Field(
        default=None, description="PEM file with the authorities of clients' certificates, which are then checked"
    )
    require_client_certificate: bool | None = Field(
        default=None, description="refuse clients without a certificate of `client_ca`; by default true where `client_ca` is set"
    )

    @model_validator(mode="after")
    def _with_authority(self) -> ListenerTlsSettings:
        if self.require_client_certificate and self.client_ca is None:
            fix = "set `client_ca`, or remove `require_client_certificate`"
            raise refusal("`require_client_certificate` is set without `client_ca`", "a file that says whose certificates are good", fix)
        return self

    def to_core(self, resolve: Callable[[Path], Path]) -> ListenerTls:
        """The same with absolute paths."""
        if self.client_ca is None:
            return super().to_core(resolve)
        required = self.require_client_certificate is not False
        return ListenerTls(resolve(self.certificate), resolve(self.key), resolve(self.client_ca), required)
