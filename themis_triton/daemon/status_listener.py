"""The listening socket of the status API, with or without TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator

import structlog
from aiohttp import web

from themis_triton.adapters.pem_certificates import PemError, check_pair, validity
from themis_triton.adapters.pem_files import files_version
from themis_triton.core.address import Address
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.core.listener_tls import ListenerTls
from themis_triton.daemon.bounded_listener import BoundedListener

log = structlog.get_logger()
CHECK_EVERY_S = 2.0
_BACKLOG = 128


@contextlib.asynccontextmanager
async def listening(
    runner: web.AppRunner, door: BoundedListener, address: Address, tls: ListenerTls | None, check_every_s: float = CHECK_EVERY_S
) -> AsyncIterator[None]:
    """Serve the runner's application at the address. PEM files that change are in force for new connections.

    Raises:
        EnvironmentCheckError: the address is taken, or the PEM files cannot be used.
    """
    listener = _listener(address)
    server = runner.server
    if server is None:
        raise ValueError("the runner has not been set up")
    with listener:
        listener.setblocking(False)
        version = ""
        if tls is not None:
            try:
                version = await _renew(door, tls)
            except PemError as error:
                raise EnvironmentCheckError(
                    f"status.tls: {error}. Fix: write a certificate and its key, unencrypted, in PEM form"
                ) from error
        tasks = {asyncio.create_task(door.accept(server, listener))}
        if tls is not None:
            tasks.add(asyncio.create_task(_keep_renewed(door, tls, version, check_every_s)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


def check_free(address: Address) -> None:
    """EnvironmentCheckError where the address is taken: to be found before anything is started."""
    _listener(address).close()


def _listener(address: Address) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        fix = "stop what listens there, or set another one"
        raise EnvironmentCheckError(f"status.address: {address} is not available ({error.strerror}). Fix: {fix}") from error


async def _keep_renewed(door: BoundedListener, tls: ListenerTls, version: str, check_every_s: float) -> None:
    """Follow the PEM files until cancelled."""
    while True:
        await asyncio.sleep(check_every_s)
        current = await asyncio.to_thread(files_version, *tls.files)
        if current == version:
            continue
        version = current
        try:
            version = await _renew(door, tls)
        except (PemError, OSError) as error:
            words = "the status API goes on with the files that it has read before"
            log.error("certificates_refused", error=f"status.tls: {error}", message=words)  # noqa: TRY400
        else:
            log.info("certificates_renewed", message="the status API has read its PEM files again")


async def _renew(door: BoundedListener, tls: ListenerTls) -> str:
    """Have new connections use the PEM files as they are now, and return their version. PemError where they cannot be used."""
    version = await asyncio.to_thread(files_version, *tls.files)
    door.context = await asyncio.to_thread(_context, tls)
    return version


def _context(tls: ListenerTls) -> ssl.SSLContext:
    """PemError where the files cannot be used."""
    check_pair(tls.certificate, tls.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.client_ca is not None:
        validity(tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if tls.require_client_certificate else ssl.CERT_OPTIONAL
    try:
        context.load_cert_chain(tls.certificate, tls.key, lambda: b"")
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
    except OSError as error:  # They changed meanwhile.
        raise PemError(str(error)) from error
    return context
