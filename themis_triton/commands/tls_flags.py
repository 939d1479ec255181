"""The flags of TLS that commands have which call a Triton by its address."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from themis_triton.core.address import Address
from themis_triton.core.errors import SettingsError


@dataclass(frozen=True, slots=True)
class TlsFlags:
    """TLS of the server's gRPC port, as the keys of `servers.NAME.tls`; none without `ca`."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def applied(self, address: Address) -> Address:
        """The address with TLS. SettingsError if a flag lacks another one."""
        if (self.certificate is None) is not (self.key is None):
            lacks, has = ("--key", "--certificate") if self.key is None else ("--certificate", "--key")
            raise SettingsError(f"{has}: {lacks} is missing: expected the PEM files of a certificate and of its key. Fix: give both")
        if self.ca is None and (self.certificate is not None or self.server_name is not None):
            flag = "--certificate" if self.certificate is not None else "--server-name"
            raise SettingsError(f"{flag}: --ca is missing: expected the PEM file of the server's authority. Fix: give --ca FILE")
        if self.ca is None:
            return address
        certificate, key = (str(file.resolve()) if file is not None else None for file in (self.certificate, self.key))
        return replace(address, tls=True, ca=str(self.ca.resolve()), certificate=certificate, key=key, server_name=self.server_name)
