"""Load from a child process, so that its CPU time does not disturb the observing process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict
from types import TracebackType
from typing import IO, Any, Self

from pydantic import TypeAdapter

from themis_triton.core.errors import ServerError, SettingsError, ThemisError
from themis_triton.load.generator import run_load
from themis_triton.load.options import LoadOptions, from_json, to_json
from themis_triton.load.result_files import check_writable, save_results
from themis_triton.load.results import LoadReport, SecondStats

_STOP_TIMEOUT_S = 10.0
_LINE_LIMIT_BYTES = 16 * 2**20
_REPORT = TypeAdapter(LoadReport)


class LoadProcess:
    """A load run in a child process, as an asynchronous context: it starts on entry and has ended on exit, also after an exception.

    On entry the models are known and the first request is due. Iterate `seconds()` to the end, then read `report`.
    """

    def __init__(self, options: LoadOptions) -> None:
        self._options = options
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: IO[bytes] | None = None
        self._report: LoadReport | None = None
        self.duration_s = 0
        self.requests = 0

    async def __aenter__(self) -> Self:
        """Start the child. Raises SettingsError or ServerError with the child's message if it cannot send."""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __aexit__
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "themis_triton.load",
            to_json(self._options),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._stderr,
            limit=_LINE_LIMIT_BYTES,
            # Ctrl-C in a terminal reaches only the parent, which then ends this process.
            start_new_session=True,
        )
        try:
            started = await self._line("started")
        except BaseException:
            await self.stop()
            raise
        self.duration_s, self.requests = int(started["duration_s"]), int(started["requests"])
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the child if it runs."""
        await self.stop()

    @property
    def report(self) -> LoadReport:
        """The report of the run; available after `seconds()` ended."""
        if self._report is None:
            raise ServerError("the load has not ended. Fix: iterate seconds() to its end first")
        return self._report

    @property
    def pid(self) -> int:
        """The child's process id."""
        if self._process is None:
            raise ServerError("the load has not been started")
        return self._process.pid

    async def seconds(self) -> AsyncIterator[SecondStats]:
        """Live statistics, one value per second and pipeline, until the run ends."""
        while True:
            line = await self._line("second", "report")
            if line["kind"] == "report":
                self._report = _REPORT.validate_python(line["report"])
                return
            yield SecondStats(**{key: value for key, value in line.items() if key != "kind"})

    def request_stop(self) -> None:
        """Stop sending; `seconds()` still delivers the report of the requests sent."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    async def stop(self) -> None:
        """Send SIGTERM, then after a bounded wait SIGKILL; return when the child has ended."""
        process = self._process
        if process is not None and process.returncode is None:
            self.request_stop()
            try:
                async with asyncio.timeout(_STOP_TIMEOUT_S):
                    await process.communicate()
            except TimeoutError:
                process.kill()
                await process.wait()
            finally:
                # A second cancellation must not leave the child running.
                if process.returncode is None:
                    process.kill()
        if self._stderr is not None:
            self._stderr.close()

    async def _line(self, *kinds: str) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdout is None:
            raise ServerError("the load has not been started")
        text = await process.stdout.readline()
        if not text:
            raise ServerError(f"the load process ended with status {await process.wait()}: {self._last_words()}")
        line: dict[str, Any] = json.loads(text)
        if line["kind"] == "error":
            raise (SettingsError if line["exit_code"] == SettingsError.exit_code else ServerError)(str(line["message"]))
        if line["kind"] not in kinds:
            raise ServerError(f"the load process sent '{line['kind']}' instead of {' or '.join(kinds)}")
        return line

    def _last_words(self) -> str:
        if self._stderr is None:
            return ""
        self._stderr.seek(0)
        return self._stderr.read()[-2000:].decode(errors="replace").strip()


def child_main(arguments: list[str]) -> int:
    """The child's side: options as JSON in the one argument, JSON lines on standard output. Returns the exit status."""
    try:
        return asyncio.run(_child(from_json(arguments[0])))
    except ThemisError as error:
        _emit({"kind": "error", "message": str(error), "exit_code": error.exit_code})
        return error.exit_code


async def _child(options: LoadOptions) -> int:
    check_writable(options.out)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    status = 0
    try:
        await _run_and_emit(options, stop)
    except* BrokenPipeError:
        # The parent ended. The interpreter's flush at exit must not raise for the broken pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = ServerError.exit_code
    return status


async def _run_and_emit(options: LoadOptions, stop: asyncio.Event) -> None:
    report, results = await run_load(
        options,
        on_start=lambda duration_s, requests: _emit({"kind": "started", "duration_s": duration_s, "requests": requests}),
        on_second=lambda stats: _emit({"kind": "second", **asdict(stats)}),
        stop=stop,
    )
    if options.out is not None:
        save_results(options.out, results)
    _emit({"kind": "report", "report": _REPORT.dump_python(report, mode="json")})


def _emit(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
