"""An Envoy that is too old for what the settings ask for is refused, before it gets a limit that it would refill in lumps."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.samples import config
from tests.unit.test_envoy_admin import answering, configured
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.envoy.render import node_id
from themis_triton.adapters.envoy.version import LIMITS_SINCE, needed_version, version_in
from themis_triton.adapters.local.check import check_envoy_binary
from themis_triton.adapters.sockets import free_ports
from themis_triton.core.config import Overload
from themis_triton.core.errors import EnvironmentCheckError, ServerError

OLD = "abc/1.30.7/Clean/RELEASE/BoringSSL"


def test_the_version_is_read_from_what_an_envoy_calls_itself() -> None:
    assert version_in(f"/opt/envoy  version: {OLD}\n") == (1, 30)
    assert version_in("abc/1.41.0-dev/Modified/DEBUG/BoringSSL") == (1, 41)
    assert version_in("something else 1.2.3") is None


def test_a_version_is_needed_only_where_a_pipeline_sheds() -> None:
    base = config()
    assert needed_version(base) is None
    assert needed_version(replace(base, pipelines=(replace(base.pipelines[0], overload=Overload.SHED),))) == LIMITS_SINCE


def old_binary(directory: Path) -> Path:
    binary = directory / "old-envoy"
    binary.write_text(f"#!/bin/sh\necho '{binary}  version: {OLD}'\n")
    binary.chmod(0o755)
    return binary


@pytest.mark.parametrize("needed", [None, LIMITS_SINCE])
def test_an_old_binary_is_started_only_where_it_suffices(tmp_path: Path, needed: tuple[int, int] | None) -> None:
    binary = old_binary(tmp_path)
    envoy = replace(configured(tmp_path, free_ports(1)[0]), binary=binary)

    async def ensure() -> None:
        process = EnvoyProcess(envoy, tmp_path, needed=needed)
        try:
            await process.ensure()
        finally:
            await process.close()

    words = f"{binary} is Envoy 1.30, and pipelines with `overload: shed` need 1.31 or later" if needed else "holds no cds/clusters.json"
    with pytest.raises(EnvironmentCheckError if needed else ServerError, match=words):
        asyncio.run(ensure())
    finding = asyncio.run(check_envoy_binary(envoy, needed))
    assert (finding.exit_code != 0) is (needed is not None)


def test_an_old_envoy_that_runs_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with answering(node_id(tmp_path), OLD) as port:
            process = EnvoyProcess(configured(tmp_path, port), tmp_path, needed=LIMITS_SINCE)
            with pytest.raises(EnvironmentCheckError, match=f"the Envoy at 127.0.0.1:{port} is Envoy 1.30"):
                await process.ensure()
            await process.close()

    asyncio.run(scenario())
