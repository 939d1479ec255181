"""How clients prove at Envoy who they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class JwtConfig:
    """JSON Web Tokens of one issuer, checked with the public keys in a JWKS file. Empty `audiences`: any."""

    issuer: str
    jwks: Path
    audiences: tuple[str, ...] = ()
