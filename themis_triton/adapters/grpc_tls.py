"""TLS of the listeners of gRPC, xDS and KEDA's scaler: their PEM files are read again for each connection once they changed."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc

from themis_triton.adapters.pem_files import files_version
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.core.listener_tls import ListenerTls


def server_credentials(tls: ListenerTls, key: str) -> Any:  # noqa: ANN401 - grpc has no types
    """The credentials of the listener with this key in the settings. EnvironmentCheckError where a file cannot be read."""
    known = files_version(*tls.files)

    def renewed() -> Any:  # noqa: ANN401 - as above
        nonlocal known
        version = files_version(*tls.files)
        if version == known:
            return None
        try:
            configuration = _configuration(tls)
        except OSError:
            return None  # the files that were read before stay in force
        known = version
        return configuration

    try:
        first = _configuration(tls)
    except OSError as error:
        raise EnvironmentCheckError(f"{key}: {error.filename} cannot be read ({error.strerror}). Fix: correct its path") from error
    required = tls.client_ca is not None and tls.require_client_certificate
    return grpc.dynamic_ssl_server_credentials(first, renewed, require_client_authentication=required)


def _configuration(tls: ListenerTls) -> Any:  # noqa: ANN401 - as above
    authority = tls.client_ca.read_bytes() if tls.client_ca is not None else None
    pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=authority)


def client_context(tls: ListenerTls) -> ssl.SSLContext:
    """With which Envoys' statistics are read: both sides show the certificates that they have for xDS. Blocking.

    An Envoy is known by its authority, not by its host's name.
    """
    context = ssl.create_default_context(cafile=Path(tls.client_ca or tls.certificate))
    context.check_hostname = False
    context.load_cert_chain(tls.certificate, tls.key)
    return context
