"""TLS to an address whose HTTP is behind a proxy: the context of a connection, made anew when its PEM files change."""

from __future__ import annotations

import ssl
from functools import lru_cache

from themis_triton.adapters.pem_files import pem_version
from themis_triton.core.address import Address

ALPN = "http/1.1"
_KEPT = 1024


def context_of(address: Address) -> ssl.SSLContext | None:
    """The context for `https` URLs of the address; None without TLS. OSError (an `ssl.SSLError` too) for files that cannot be used."""
    return _context(address, pem_version(address)) if address.tls else None


@lru_cache(_KEPT)
def _context(address: Address, _version: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=address.ca)
    context.set_alpn_protocols([ALPN])
    if address.certificate is not None and address.key is not None:
        context.load_cert_chain(address.certificate, address.key)
    return context
