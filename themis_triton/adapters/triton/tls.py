"""TLS to a server's gRPC port: what a channel needs for an address."""

from __future__ import annotations

from pathlib import Path

import grpc

from themis_triton.core.address import Address
from themis_triton.core.errors import ServerError


def credentials(address: Address) -> grpc.ChannelCredentials | None:
    """The credentials of a channel, read from the address's PEM files; None without TLS. ServerError if a file cannot be read."""
    if not address.tls:
        return None
    ca, certificate, key = (_read(address, file) for file in (address.ca, address.certificate, address.key))
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=certificate)


def name_options(address: Address) -> list[tuple[str, str]]:
    """The channel's options where the certificate is for another name than the host."""
    return [("grpc.ssl_target_name_override", address.server_name)] if address.server_name is not None else []


def _read(address: Address, file: str | None) -> bytes | None:
    if file is None:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ServerError(
            f"{address.authority}: {file} cannot be read ({error.strerror}). Fix: correct its `tls` section or --ca"
        ) from error
