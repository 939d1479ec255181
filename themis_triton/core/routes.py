"""What Envoy shall route where: a value that `plan/envoy.py` renders and the RouteWriter puts into place."""

from __future__ import annotations

from dataclasses import dataclass

from themis_triton.core.address import Address


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server's inference addresses."""

    server: str
    grpc_address: Address
    http_address: Address


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Endpoints of each model, and of `any`: all serving servers, which answer what names no model or an unknown one."""

    models: dict[str, tuple[Endpoint, ...]]
    any: tuple[Endpoint, ...]
