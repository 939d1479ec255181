"""What the settings let other machines and users reach, as findings of `themis validate`."""

from __future__ import annotations

from collections.abc import Iterator

from themis_triton.adapters.findings import Finding, Severity
from themis_triton.adapters.token_file import read_token
from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import EnvironmentCheckError


def exposure_findings(config: ThemisConfig) -> Iterator[Finding]:
    """Findings that need no connection."""
    if config.status.token_file is not None:
        try:
            read_token(config.status.token_file)
        except EnvironmentCheckError as error:
            code = EnvironmentCheckError.exit_code
            yield Finding(Severity.ERROR, "status.token_file", str(error), "", code)
    address = config.status.address
    if not address.is_loopback:
        yield Finding(
            Severity.WARNING,
            "status.address",
            f"other machines reach {address}; reads and changes need the token in {config.token_file}, which travels unencrypted",
            "put it behind a proxy with TLS, or use a loopback address and a tunnel",
        )
