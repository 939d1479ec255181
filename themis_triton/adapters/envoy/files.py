"""Envoy's files on disk: moved into place step by step; each step waits until Envoy has applied the one before."""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from themis_triton.adapters.envoy.addresses import resolved_config, resolved_table
from themis_triton.adapters.envoy.admin import EnvoyAdmin, make_socket_folder
from themis_triton.adapters.envoy.client_auth import FILTER_FILES, read_auth_filter
from themis_triton.adapters.envoy.clusters import Json
from themis_triton.adapters.envoy.downstream_tls import check_files, link_files, remove_other_links
from themis_triton.adapters.envoy.file_steps import FILTERS, expected_versions, statistics_prefix, steps
from themis_triton.adapters.envoy.names import Protocol
from themis_triton.adapters.envoy.render import BOOTSTRAP, OWN_FILES, RenderInput, node_id, render
from themis_triton.adapters.envoy.upstream_tls import secure_servers, version_key
from themis_triton.adapters.pem_certificates import PemError
from themis_triton.adapters.pem_files import files_version, pem_version
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import EnvironmentCheckError, ServerError
from themis_triton.core.observation import ProxyConnection
from themis_triton.core.routes import RouteTable

_POLL_S = 0.01
_WARMING = "cluster_manager.warming_clusters"
_SUBSCRIPTIONS = (
    r"^(listener_manager\.lds|cluster_manager\.cds|http\.\w+\.rds\.\w+|cluster\.(model|any|unlisted|index)_[^.]*|sds\.\w+"
    rf"|{re.escape(FILTERS)}[\w.]+)\.(version_text|update_rejected|update_attempt|config_reload)$"
)
_LOG_BYTES = 4000
READ_TIMEOUT_S = 3.0
"""Envoy reads a file within milliseconds of its move, however long it then takes to apply it."""

Stats = Mapping[str, Any]


class FilesRefusedError(ServerError):
    """Envoy refused files; it goes on with those that it had."""


class EnvoyFiles:
    """Implements `RouteWriter` on Envoy's directory.

    A cluster comes before the routes to it and goes after them. Calls are taken one at a time. `log_file` is where the reason is
    looked up when Envoy refuses a file. `on_ignored` is called with the reason when Envoy does not read files that were moved into place.
    `take_up_s`: how long Envoy took for the newest change. `rendered`: what the files in place were rendered from.
    """

    def __init__(
        self, config: EnvoyConfig, *, log_file: Path | None = None, timeout_s: float = 15.0, on_ignored: Callable[[str], None] | None = None
    ) -> None:
        self._config = config
        self._log_file = log_file
        self._timeout_s = timeout_s
        self._admin = EnvoyAdmin(config)
        self._lock = asyncio.Lock()
        self.take_up_s: float | None = None
        self.rendered: RenderInput | None = None
        self._written: RouteTable | None = None
        self._names: frozenset[str] = frozenset()
        self._pem_versions: dict[str, str] = {}
        self._refused_versions: dict[str, str] = {}
        self._on_ignored = on_ignored
        self._auth: Json | None = None

    @property
    def proxies(self) -> tuple[ProxyConnection, ...]:
        """The Envoys that get their routes over the network: none."""
        return ()

    async def close(self) -> None:
        """Close the connection to Envoy's admin address."""
        await self._admin.close()

    async def write(self, table: RouteTable) -> None:
        """Put the table into place, atomically file by file; returns once Envoy has applied it.

        Where no Envoy runs on this directory yet, the files are written for it to find. Writing the same table again costs nothing,
        unless a file is missing.

        Raises:
            ServerError: Envoy refused a file (the message has its reason; the file that was there before is restored), did not apply it
                in time, what listens at its admin address does not answer, or a host name cannot be resolved.
        """
        async with self._lock:
            if table == self._written and await asyncio.to_thread(self._in_place):
                return
            self._written = None
            # Those that Envoy has taken stay, so that files that it refuses do not hold back a change of the routes.
            versions = await asyncio.to_thread(self._pem_files, table)
            if OWN_FILES in versions.keys() - self._pem_versions.keys():
                await self._read_own_files(versions)
            kept = {name: kept for name, kept in self._pem_versions.items() if name in versions}
            started_s = asyncio.get_running_loop().time()
            await self._write(table, versions | kept)
            self.take_up_s = asyncio.get_running_loop().time() - started_s
            self._written = table

    async def share_limits(self) -> bool:
        """False: its one Envoy has the whole of each limit."""
        return False

    async def renew_certificates(self) -> bool:
        """Have Envoy read PEM files, API keys and JWKS again where they changed; returns whether it did.

        Raises as `write` does, for files that Envoy refuses once for each change. Envoy then goes on with what it has read before.
        """
        async with self._lock:
            versions = await asyncio.to_thread(self._pem_files, self._written) if self._written is not None else {}
            if self._written is None or versions in (self._pem_versions, self._refused_versions):
                return False
            try:
                auth = self._auth
                await self._read_own_files(versions)
                await self._write(self._written, versions)
            except FilesRefusedError:
                self._refused_versions, self._auth = versions, auth
                raise
            return True

    async def _read_own_files(self, versions: Mapping[str, str]) -> None:
        """Take in the files of the listeners that changed. FilesRefusedError for one that cannot be used."""
        if versions.get(OWN_FILES) == self._pem_versions.get(OWN_FILES):
            return
        try:
            await asyncio.to_thread(check_files, self._config)
            self._auth = await asyncio.to_thread(read_auth_filter, self._config)
        except EnvironmentCheckError as error:
            raise FilesRefusedError(str(error)) from error
        except PemError as error:
            raise FilesRefusedError(f"envoy.tls: {error}. Fix: write a certificate and its key, unencrypted, in PEM form") from error

    async def _write(self, table: RouteTable, pem_versions: dict[str, str]) -> None:
        config = await resolved_config(self._config)
        rendered = RenderInput(config, await resolved_table(table), pem_versions, self._auth)
        desired = await asyncio.to_thread(render, config, rendered.table, pem_versions, self._auth)  # a second with 1,000 models
        present = await asyncio.to_thread(read_files, config.directory)
        self._names = frozenset(desired)
        running = await self._admin.node_id() == node_id(config.directory)
        if running and BOOTSTRAP in present:
            desired[BOOTSTRAP] = present[BOOTSTRAP]  # It names the admin address of the running Envoy; a restart writes its own.
        else:
            await asyncio.to_thread(make_socket_folder, config.admin_address)
        own_version = pem_versions.get(OWN_FILES, "")
        await asyncio.to_thread(link_files, config, own_version)
        for step in steps(desired, present):
            if running:
                await self._move_and_wait(step, present)
            else:
                await asyncio.to_thread(_move, config.directory, step)
        await asyncio.to_thread(_remove, config.directory, present.keys() - desired.keys())
        await asyncio.to_thread(remove_other_links, config, own_version)
        self._pem_versions, self.rendered = pem_versions, rendered

    async def _move_and_wait(self, step: Mapping[str, str], present: Mapping[str, str]) -> None:
        before = await self._stats()
        offset = _size(self._log_file)
        await asyncio.to_thread(_move, self._config.directory, step)
        refused = await self._refused(step, before)
        if refused:
            reason = await self._reason(offset)
            previous = {name: present[name] for name in refused if name in present}
            await asyncio.to_thread(_move, self._config.directory, previous)
            raise FilesRefusedError(f"Envoy refused {', '.join(refused)} in {self._config.directory}: {reason}")

    async def _refused(self, step: Mapping[str, str], before: Stats) -> list[str]:
        """Wait until Envoy reports the version of every file of the step and all clusters are warm; the files that it refused."""
        loop = asyncio.get_running_loop()
        deadline_s, first_answer_s = loop.time() + self._timeout_s, math.inf
        expected = expected_versions(step)
        while True:
            asked_s = loop.time()
            now = await self._stats()
            first_answer_s = min(first_answer_s, loop.time())
            refused = [name for name in step if _count(now, name, "update_rejected") > _count(before, name, "update_rejected")]
            late = [prefix for prefix, version in expected.items() if not _applied(now, before, prefix, version)]
            unread = [
                name for name in step if name != BOOTSTRAP and _count(now, name, "update_attempt") <= _count(before, name, "update_attempt")
            ]
            if refused or not (late or unread or now.get(_WARMING)):
                return refused
            # One that was held up since the move may answer before it reads, and one that starts reads some files only once it is warm.
            if unread and asked_s >= first_answer_s + READ_TIMEOUT_S and await self._admin.is_ready():
                raise self._ignored()
            if loop.time() >= deadline_s:
                raise ServerError(
                    f"Envoy at {self._admin.address} did not apply its files in {self._config.directory} within {self._timeout_s:g} s "
                    f"(waiting for {', '.join(late) or 'clusters to warm'}); see its log{_named(self._log_file)}"
                )
            await asyncio.sleep(_POLL_S)

    def _ignored(self) -> ServerError:
        """Envoy runs and reads nothing: the folder that it watches was deleted or replaced, or its watch is broken."""
        reason = f"Envoy does not read its files in {self._config.directory}: none was taken up within {READ_TIMEOUT_S:g} s"
        if self._on_ignored is not None:
            self._on_ignored(reason)
        return ServerError(reason)

    def _pem_files(self, table: RouteTable) -> dict[str, str]:
        """The versions of the PEM files that the table and the listeners name."""
        servers = {
            version_key(server, protocol): pem_version(address)
            for protocol in Protocol
            for server, address in secure_servers(table, protocol).items()
        }
        own = own_files(self._config)
        return servers | ({OWN_FILES: files_version(*own)} if own else {})

    def _in_place(self) -> bool:
        return all((self._config.directory / name).exists() for name in self._names)

    async def _stats(self) -> dict[str, Any]:
        statistics = await self._admin.stats(f"{_SUBSCRIPTIONS}|^{_WARMING}$")
        return {entry["name"]: entry["value"] for entry in statistics if "value" in entry}

    async def _reason(self, offset: int) -> str:
        """Why Envoy refused something: its log since then, else the errors of listeners at its admin address."""
        if self._log_file is not None:
            logged = await asyncio.to_thread(_read_from, self._log_file, offset)
            if logged.strip():
                return logged.strip()
        return "; ".join(await self._admin.config_errors()) or "see its log"


def own_files(config: EnvoyConfig) -> tuple[Path, ...]:
    """The files of the listeners: PEM files, and those of what clients have to show."""
    jwks = config.jwt.jwks if config.jwt is not None else None
    return (*(config.tls.files if config.tls is not None else ()), *(each for each in (config.api_keys, jwks) if each is not None))


def _applied(now: Stats, before: Stats, prefix: str, version: str) -> bool:
    """Whether Envoy has applied this version; of the filter that checks clients, whether all of its workers have."""
    text, reloads = f"{prefix}.version_text", f"{prefix}.config_reload"
    if now.get(text) != version or not prefix.startswith(FILTERS) or before.get(text) == version:
        return now.get(text) == version
    return int(now.get(reloads, 0)) > int(before.get(reloads, 0))


def _count(stats: Stats, name: str, counter: str) -> int:
    """A counter of the file's subscription; 0 for the bootstrap, which has none."""
    return int(stats.get(f"{statistics_prefix(name)}.{counter}", 0)) if name.count("/") else 0


def read_files(directory: Path) -> dict[str, str]:
    """The files that are in place now, by their name relative to the directory."""
    paths = [*directory.glob("*.json"), *directory.glob("*/*.json")]
    return {str(path.relative_to(directory)): path.read_text(encoding="utf-8") for path in paths}


def _move(directory: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        write_atomically(directory / name, text)


def write_atomically(path: Path, text: str) -> None:
    """Written beside, synced, then moved into place: a reader sees the old file or the new one, and Envoy sees a move.

    Text with API keys or a JWKS, which may hold secrets, gets mode 0600, whatever the process's mask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    mode = 0o600 if any(name in text for name in FILTER_FILES) else 0o666
    beside.unlink(missing_ok=True)
    with open(beside, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _remove(directory: Path, names: Iterable[str]) -> None:
    for name in names:
        (directory / name).unlink(missing_ok=True)


def _size(log_file: Path | None) -> int:
    try:
        return log_file.stat().st_size if log_file is not None else 0
    except FileNotFoundError:
        return 0


def _read_from(log_file: Path, offset: int) -> str:
    with log_file.open("rb") as log:
        log.seek(offset)
        return log.read(_LOG_BYTES).decode(errors="replace")


def _named(log_file: Path | None) -> str:
    return f" {log_file}" if log_file is not None else ""
