"""What a tracer takes from a trace file that the server is slow to write, or writes only in part."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from themis_triton.core.address import UNKNOWN_ADDRESS
from themis_triton.core.errors import ServerError
from themis_triton.core.fleet import Phase, Server
from themis_triton.profile.trace import Tracer


def stamps(number: int, start_ns: int, end_ns: int) -> str:
    return "".join(
        f'{{"id":{number},"timestamps":[{{"name":"COMPUTE_{name}","ns":{at}}}]}},' for name, at in (("START", start_ns), ("END", end_ns))
    )


class WritingServer:
    """Writes so many requests of 1 ms into the trace when tracing is switched off."""

    def __init__(self, file: Path, written: int) -> None:
        self.file, self.written = file, written

    async def update_trace_settings(self, settings: dict[str, list[str]], **_headers: Any) -> None:
        if settings["trace_level"] == ["OFF"]:
            now_ns = int(asyncio.get_running_loop().time() * 1e9) - 10_000_000
            self.file.write_text("".join(stamps(number, now_ns, now_ns + 1_000_000) for number in range(self.written)))


@pytest.fixture
def server() -> Server:
    return Server("only", "gpu:0", UNKNOWN_ADDRESS, UNKNOWN_ADDRESS, UNKNOWN_ADDRESS, Phase.SERVING, launched=True)


async def traced(server: Server, file: Path, written: int, minimum: int) -> list[float]:
    tracer = Tracer(WritingServer(file, written), server, file)
    await tracer.start()
    await asyncio.sleep(0.02)
    return await tracer.stop(minimum)


@pytest.mark.parametrize(("written", "minimum"), [(40, 40), (40, 44), (0, 4)])
def test_requests_that_the_server_keeps_in_its_buffer_are_not_waited_for(
    server: Server, tmp_path: Path, written: int, minimum: int
) -> None:
    result = asyncio.run(traced(server, tmp_path / "trace.json", written, minimum))
    assert result == pytest.approx([1.0] * written)


def test_a_trace_that_lacks_more_than_a_buffer_holds_is_an_error(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("themis_triton.profile.trace._FLUSH_S", 0.6)
    with pytest.raises(ServerError, match="holds 3 of 40 served requests"):
        asyncio.run(traced(server, tmp_path / "trace.json", 3, 40))
