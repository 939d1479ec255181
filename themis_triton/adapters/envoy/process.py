"""The Envoy process: checked, started in a session of its own, or adopted when it runs already."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil

from themis_triton.adapters.envoy.addresses import resolve, resolved_config, resolved_listeners
from themis_triton.adapters.envoy.admin import EnvoyAdmin, make_socket_folder
from themis_triton.adapters.envoy.binary import check_binary, check_version, failure_reason, find_envoy, start_command, validate_files
from themis_triton.adapters.envoy.client_auth import FILTER_FILES, auth_name
from themis_triton.adapters.envoy.files import write_atomically
from themis_triton.adapters.envoy.http_listener import routes_file
from themis_triton.adapters.envoy.names import Protocol
from themis_triton.adapters.envoy.render import BOOTSTRAP, CLUSTERS, LISTENERS, bootstrap_text, node_id
from themis_triton.adapters.envoy.serving_check import ServingCheck, find_hang
from themis_triton.adapters.envoy.version import Version
from themis_triton.adapters.process_end import owned_processes, stop_process
from themis_triton.adapters.process_identity import find_process, identify
from themis_triton.adapters.processes import OWNER_VARIABLE, owner_mark, spawn
from themis_triton.adapters.processor_wait import ProcessorWait
from themis_triton.adapters.sockets import listen_failure
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import EnvironmentCheckError, ServerError
from themis_triton.core.fleet import ProcessId

_POLL_S = 0.03
_SCRIPT_ERRORS = r"^http\.(grpc|http)\.lua\.(.*\.)?errors$"


class EnvoyProcess:
    """Keeps an Envoy running on the directory that `EnvoyFiles` writes. Close it when done; Envoy itself runs on.

    `needed`: the earliest version that does what the settings ask for; an earlier one is refused.
    """

    def __init__(
        self,
        config: EnvoyConfig,
        state_directory: Path,
        *,
        start_timeout_s: float = 20.0,
        stop_timeout_s: float = 10.0,
        needed: Version | None = None,
    ) -> None:
        self._config = config
        self._needed = needed
        self._state_directory = state_directory
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._admin = EnvoyAdmin(config)
        self._identity: ProcessId | None = None
        self._log_start = 0
        self._serving = ServingCheck()
        self._accepted = False
        self.ignores_files: str | None = None
        """Why the running Envoy is to be restarted: it does not read its files."""

    @property
    def log_file(self) -> Path:
        """Where a managed Envoy's output goes."""
        return self._state_directory / "logs" / "envoy.log"

    @property
    def admin_address(self) -> Address:
        """Where the running Envoy answers; an Envoy that was started with other settings keeps its address."""
        return self._admin.address

    @property
    def configured_admin_address(self) -> Address:
        """Where an Envoy answers that is started now."""
        return self._config.admin_address

    @property
    def managed(self) -> bool:
        """Whether it is started and ended here."""
        return self._config.managed

    async def close(self) -> None:
        """Close the connection to Envoy's admin address."""
        await self._admin.close()

    async def ensure(self) -> ProcessId | None:
        """Adopt the Envoy that answers at the admin address, or start one if it is managed; returns once it accepts requests.

        The files must be in place already. Returns the process of a managed Envoy, None for one that was started elsewhere.

        Raises:
            EnvironmentCheckError: there is no `envoy` binary, it is too old, an address is in use, or it is not managed and silent.
            ServerError: Envoy refuses its files, did not become ready (the message has its reason), or its admin address hangs.
        """
        node = await self._admin.node_id()
        if node is not None and node != node_id(self._config.directory):
            raise EnvironmentCheckError(
                f"envoy.admin: another Envoy (node {node!r}) answers at {self._config.admin_address}. "
                "Fix: choose another port, or stop that one"
            )
        if node is not None:
            check_version(f"the Envoy at {self._config.admin_address}", self._admin.version, self._needed)
            known = await self._known()
            if await self._becomes_ready(known):
                self._accepted = True
                return known
        if not self._config.managed:
            raise EnvironmentCheckError(
                f"envoy.admin: no Envoy answers at {self._config.admin_address}. Fix: start it with "
                f"`envoy -c {self._config.directory / BOOTSTRAP}`, or set envoy.managed: true"
            )
        self._identity = await self._start()
        self._accepted = True
        return self._identity

    async def _known(self) -> ProcessId | None:
        """The known process while it runs: a scan of all processes is slow."""
        if self._identity is None or find_process(self._identity) is None:
            self._identity = await asyncio.to_thread(self.find)
        return self._identity

    def find(self) -> ProcessId | None:
        """The Envoy that was started for this state directory and runs on these files. Blocking."""
        bootstrap = str(self._config.directory / BOOTSTRAP)
        for process in owned_processes(self._state_directory):
            try:
                if bootstrap in process.cmdline():
                    return identify(process.pid)
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue  # It ended meanwhile.
        return None

    async def has_files(self) -> bool:
        """Whether the files that every Envoy needs are in place."""
        guard = auth_name(self._config)
        own = (FILTER_FILES[guard],) if guard is not None else ()
        names = (CLUSTERS, LISTENERS, *(routes_file(protocol) for protocol in Protocol), *own, "eds")
        return all(await asyncio.to_thread(lambda: [(self._config.directory / name).exists() for name in names]))

    def note_ignored(self, reason: str) -> None:
        """Take in that the running Envoy does not read its files."""
        self.ignores_files = reason

    async def find_fault(self, identity: ProcessId | None) -> str | None:
        """Why the running Envoy does not serve, or cannot be told what to serve, so that only a restart helps; None while it can."""
        if self.ignores_files is not None:
            return self.ignores_files
        socket = self._admin.address.socket_path
        if socket is not None and not await asyncio.to_thread(os.path.exists, socket):
            return f"its admin socket {socket} is gone"
        return await self._serving.find_fault(await resolved_listeners(self._config), identity)

    def is_suspect(self, identity: ProcessId) -> bool:
        """Whether `find_fault` should be asked at once. Quick, so that it can be asked often."""
        return self._serving.is_suspect(identity)

    async def count_script_errors(self) -> int:
        """How many checks of requests have failed since Envoy's start. Raises ServerError when it does not answer."""
        return sum(int(entry.get("value", 0)) for entry in await self._admin.stats(_SCRIPT_ERRORS))

    async def end_if_hung(self) -> str | None:
        """Kill a managed Envoy of an earlier sidecar that is stopped or accepts clients without an answer for long; returns why, or None.

        With it neither the routes could be written nor Envoy be adopted.
        """
        identity = await self._known() if self._config.managed else None
        fault = await find_hang(await resolved_config(self._config), identity) if identity is not None else None
        if identity is not None and fault is not None:
            await self.kill(identity)
        return fault

    async def kill(self, identity: ProcessId) -> None:
        """End an Envoy that does not serve, at once."""
        await stop_process(identity, 0.0)

    async def stop(self) -> None:
        """End the managed Envoy: SIGTERM, then after a bounded wait SIGKILL. One that was started elsewhere is left alone."""
        identity = await asyncio.to_thread(self.find)
        if identity is not None:
            await stop_process(identity, self._stop_timeout_s)

    async def _start(self) -> ProcessId:
        binary = find_envoy(self._config.binary)
        await self._write_bootstrap()
        # Files that an Envoy has accepted are not validated again, so that its restart is quick; after one that failed they are.
        if not self._accepted:
            await check_binary(binary, self._needed)
            await validate_files(binary, self._config.directory, self._state_directory)
        self._accepted = False
        self.ignores_files = None
        self._serving.reset()
        await self._check_addresses()
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        environment = {**os.environ, OWNER_VARIABLE: owner_mark(self._state_directory)}
        try:
            identity = await asyncio.to_thread(spawn, start_command(binary, self._config), environment, self.log_file)
        except OSError as error:
            raise EnvironmentCheckError(
                f"envoy.binary: {binary} cannot be started ({error.strerror}). Fix: name an Envoy that runs on this machine"
            ) from error
        _allow_all_files(identity)
        try:
            if await self._becomes_ready(identity):
                return identity
        except ServerError:
            await stop_process(identity, self._stop_timeout_s)
            raise
        raise ServerError(f"Envoy ended right after its start; {self._log_reason()}")

    async def _write_bootstrap(self) -> None:
        """The bootstrap of these settings; an Envoy that ran before may have had another one."""
        config = await resolved_config(self._config)
        await asyncio.to_thread(make_socket_folder, config.admin_address)
        await asyncio.to_thread(write_atomically, config.directory / BOOTSTRAP, bootstrap_text(config))

    async def _check_addresses(self) -> None:
        config = self._config
        for key, address in (("grpc_listen", config.grpc_listen), ("http_listen", config.http_listen), ("admin", config.admin_address)):
            reason = listen_failure(await resolve(address))
            if reason is not None:
                raise EnvironmentCheckError(
                    f"envoy.{key}: {address} cannot be listened on ({reason}). "
                    "Fix: stop the process that listens there (`ss -ltnp`), or choose another port"
                )

    async def _becomes_ready(self, identity: ProcessId | None) -> bool:
        """Wait, bounded, until Envoy accepts requests; False when its process has ended. ServerError after the time-out.

        The time in which it waited for a processor does not count: another start would take as long.
        """
        loop, wait = asyncio.get_running_loop(), ProcessorWait(identity)
        deadline_s = loop.time() + self._start_timeout_s
        while True:
            node = await self._admin.node_id() if identity is None else await self._node_of_starting()
            if node == node_id(self._config.directory) and await self._admin.is_ready():
                return True
            if node is None if identity is None else find_process(identity) is None:
                return False
            if loop.time() >= deadline_s:
                deadline_s += wait.since_last_s()
            if loop.time() >= deadline_s:
                raise ServerError(
                    f"Envoy at {self._config.admin_address} was not ready within {self._start_timeout_s:g} s; {self._log_reason()}"
                )
            await asyncio.sleep(_POLL_S)

    async def _node_of_starting(self) -> str | None:
        """The node of an Envoy whose process is watched; None too while it is silent, as it can be on a busy machine."""
        try:
            return await self._admin.node_id()
        except ServerError:
            return None

    def _log_reason(self) -> str:
        """The reason of Envoy's failure since its last start, from its log."""
        try:
            with self.log_file.open("rb") as log:
                log.seek(self._log_start)
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            text = "(no log was written)"
        return f"log {self.log_file}: {failure_reason(text)}"


def _allow_all_files(identity: ProcessId) -> None:
    """A surge over HTTP/1.1 opens one connection per request: raise the limit to this user's maximum."""
    try:
        process = psutil.Process(identity.pid)
        _, hard = process.rlimit(psutil.RLIMIT_NOFILE)
        process.rlimit(psutil.RLIMIT_NOFILE, (hard, hard))
    except psutil.NoSuchProcess:
        return  # It ended at once; the wait for it reports the reason.
