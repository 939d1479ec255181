"""Servers that hang, lose a model or fail one, under load: they leave the routes, are repaired or replaced, and others serve on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Launch
from tests.e2e.daemon_setup import ADOPTED, CLASSIFIER, DETECTOR, ONE_EACH, Status, answered, beside, launched, traffic, until_answered
from tests.e2e.test_daemon import identity
from tests.e2e.test_servers import double
from themis_triton.adapters.process_end import group_members
from themis_triton.adapters.process_identity import find_process
from themis_triton.adapters.triton.client import KEY_HEADER, new_client
from themis_triton.core.address import Address
from themis_triton.core.fleet import Server

pytestmark = pytest.mark.e2e

RATE_RPS = 15.0
MAX_LOST = 25
"""Requests that a dead instance fails, one a second, until it is found, and those that wait for it then."""
TWO_SERVERS = {"name": "vertical", "vertical": {"servers": 2}}


def incidents(status: Status) -> list[str]:
    """The sentences of all incidents so far."""
    return [event["sentence"] for event in status["events"] if "incident" in event["kinds"]]


async def unload(server: Server, model: str) -> None:
    """What another client with the key does."""
    assert server.model_control_key is not None
    client = new_client(server.grpc_address)
    try:
        await client.unload_model(model, headers={KEY_HEADER: server.model_control_key})
    finally:
        await client.close()


def stub_of(server: Mapping[str, Any], model: str) -> int:
    """The process of a Python model's only instance."""
    (stub,) = [each for each in group_members(identity(server)) if f"/{model}/" in " ".join(each.cmdline()[:2])]
    return stub.pid


def test_only_a_dead_model_loses_requests_until_it_leaves_the_routes(launch: Launch, tmp_path: Path) -> None:
    with beside(launch, tmp_path, policy=TWO_SERVERS) as sidecar:

        async def scenario() -> None:
            await sidecar.start()
            first = launched(await sidecar.until("a second server", lambda s: bool(launched(s, "serving"))))[0]
            async with traffic(sidecar, RATE_RPS) as load:
                await load.more(30)
                await unload(sidecar.adopted, DETECTOR)
                await sidecar.until("the unloaded model's return", lambda s: f"{DETECTOR} serves on {ADOPTED} again" in incidents(s))
                assert (await sidecar.adopted_models())[DETECTOR] == ONE_EACH[DETECTOR]
                names = {server["name"] for server in launched(await sidecar.until("the same servers", lambda s: bool(s["servers"])))}
                assert names == {first["name"]}
                os.kill(stub_of(first, DETECTOR), signal.SIGKILL)
                await sidecar.until("the failing model's return", lambda s: f"{DETECTOR} serves on {first['name']} again" in incidents(s))
                count = await answered(first)
                await load.more(30)
                assert await answered(first) > count
                os.kill(identity(first).pid, signal.SIGSTOP)
                told = await sidecar.until("the hung server's end", lambda s: first["name"] not in {x["name"] for x in s["servers"]})
                assert find_process(identity(first)) is None
                assert incidents(told)[-1].startswith(f"{first['name']} has answered neither metrics nor health checks for ")
                await sidecar.until("a replacement", lambda s: bool(launched(s, "serving")))
                await load.more(30)
                summary = await load.end()
            assert 0 < summary.failed < MAX_LOST, summary.errors

        asyncio.run(scenario())


def test_a_pipeline_that_finds_every_slot_taken_is_loaded_into_a_running_server(launch: Launch, tmp_path: Path) -> None:
    """The settings get a second pipeline while the only slot has the server of the first one."""
    with beside(launch, tmp_path) as sidecar:
        everything = yaml.safe_load(sidecar.settings.read_text())
        alone = everything | {"servers": {}, "pipelines": {"detection": {"stages": [DETECTOR], "slo_ms": 500}}}
        both = alone | {"pipelines": alone["pipelines"] | {"classification": {"stages": [CLASSIFIER], "slo_ms": 500}}}
        proxy = replace(sidecar.adopted, grpc_address=Address.parse(sidecar.grpc_address))

        async def scenario() -> None:
            sidecar.settings.write_text(yaml.safe_dump(alone))
            await sidecar.start()
            (first,) = launched(await sidecar.until("a server", lambda s: bool(launched(s, "serving"))))
            assert list(first["models"]) == [DETECTOR]
            await sidecar.kill()
            sidecar.settings.write_text(yaml.safe_dump(both))
            await sidecar.start()
            async with traffic(sidecar, RATE_RPS, (DETECTOR,)) as load:
                status = await sidecar.until("the second pipeline", lambda s: any(CLASSIFIER in host["models"] for host in launched(s)))
                await load.more(10)
                summary = await load.end()
            assert [host["name"] for host in launched(status)] == [first["name"]]
            assert summary.failed == 0, summary.errors
            assert double(proxy, DETECTOR, [3.0]) == [7.0]
            assert double(proxy, CLASSIFIER, [3.0]) == [8.0]

        asyncio.run(scenario())


def test_a_pipeline_leaves_a_server_that_others_keep_busy_for_one_of_its_own(launch: Launch, tmp_path: Path) -> None:
    """A lone request of the classifier takes 18 ms, and more than its SLO beside the busy instances of the detector."""
    with beside(launch, tmp_path) as sidecar:
        pipelines = {"detection": {"stages": [DETECTOR], "slo_ms": 500}, "classification": {"stages": [CLASSIFIER], "slo_ms": 26}}
        sidecar.settings.write_text(yaml.safe_dump(yaml.safe_load(sidecar.settings.read_text()) | {"pipelines": pipelines}))
        proxy = replace(sidecar.adopted, grpc_address=Address.parse(sidecar.grpc_address))

        async def scenario() -> None:
            await sidecar.start()
            async with traffic(sidecar, 70.0, (DETECTOR,)) as load:
                await sidecar.until("its leave", lambda s: "classification leaves adopted to other pipelines" in s["sentence"])
                status = await sidecar.until("the routes", lambda s: s["routes_unwritten"] is None)
                (own,) = [each for each in launched(status, "serving") if CLASSIFIER in each["models"]]
                before = await answered(own, CLASSIFIER)
                assert [double(proxy, CLASSIFIER, [3.0]) for _ in range(8)] == [[8.0]] * 8
                await until_answered(own, CLASSIFIER, before + 8)
                summary = await load.end()
            assert summary.failed == 0, summary.errors

        asyncio.run(scenario())
