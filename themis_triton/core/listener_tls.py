"""TLS of a listener."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ListenerTls:
    """PEM files of a listener. With `client_ca` clients' certificates are checked; `require_client_certificate`: one must be sent."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    require_client_certificate: bool = True

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.certificate, self.key, *((self.client_ca,) if self.client_ca is not None else ()))
