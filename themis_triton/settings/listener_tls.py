"""The `tls` sections of listeners."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import Field, model_validator

from themis_triton.core.listener_tls import ListenerTls
from themis_triton.settings.kinds import FilePath, Section, refusal


class ListenerTlsSettings(Section):
    """TLS of a listener. The files are read again when they change."""

    certificate: FilePath = Field(description="PEM file with the certificate that clients see, followed by its intermediate authorities")
    key: FilePath = Field(description="PEM file with its private key, not encrypted")
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
        client_ca = resolve(self.client_ca) if self.client_ca is not None else None
        required = client_ca is not None and self.require_client_certificate is not False
        return ListenerTls(resolve(self.certificate), resolve(self.key), client_ca, required)
