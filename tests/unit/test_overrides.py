"""Pins and the mode that an operator puts in force over the settings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.fakes import FakeClock
from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, config, decided, estimate, server, snapshot
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.token_file import make_token, read_token
from themis_triton.core.address import Address
from themis_triton.core.config import Mode
from themis_triton.core.overrides import Bounds, Counted, ModeOverride, Overrides, overridden
from themis_triton.daemon.access import Access
from themis_triton.daemon.api import serving
from themis_triton.daemon.override_api import override_routes
from themis_triton.daemon.overrides import OverrideKeeper
from themis_triton.daemon.status import StatusBoard
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState


def pin(model: str, instances: int, until_s: float, *by_and_why: str) -> Bounds:
    return Bounds(Counted.INSTANCES, model, instances, instances, until_s, *by_and_why)


PIN = pin(DETECTOR, 5, NOW_S + 60.0, "alice", "a test")
TWO_SERVERS = Bounds(Counted.SERVERS, "video", 2, 2, NOW_S + 60.0)


@pytest.mark.parametrize("rps", [1.0, 30.0, 200.0])
def test_a_pinned_model_has_its_count_on_every_server_whatever_the_demand(rps: float) -> None:
    pinned = overridden(config(), Overrides((PIN,)))
    seen = PolicyInput(snapshot([server("a", (4, 1)), server("b", (5, 1))]), estimate(rps))
    _, decision = decided(PolicyState(), seen, Planner(build_rules(pinned)))
    assert decision.target is not None
    models = [*decision.target.servers.values(), *decision.target.launch.values()]
    assert models
    assert {each[DETECTOR].instances for each in models} == {5}


@pytest.mark.parametrize("bounds", [pin("unknown", 2, NOW_S), pin(DETECTOR, 17, NOW_S), pin(DETECTOR, 0, NOW_S)])
def test_a_pin_that_the_settings_no_longer_allow_changes_nothing(bounds: Bounds) -> None:
    assert overridden(config(), Overrides((bounds,))) == config()


@pytest.mark.parametrize(("servers", "rps", "launched", "retired"), [(1, 1.0, 1, 0), (4, 100.0, 0, 1), (2, 300.0, 0, 0), (2, 1.0, 0, 0)])
def test_a_pinned_pipeline_gets_its_servers_whatever_the_demand(servers: int, rps: float, launched: int, retired: int) -> None:
    planner = Planner(build_rules(overridden(config(slots=6), Overrides((TWO_SERVERS,)))))
    seen = PolicyInput(snapshot([server(f"s{n}", (4, 4), slot=f"cpu:{n}") for n in range(servers)]), estimate(rps))
    state = PolicyState()
    for _ in range(2):
        state, decision = decided(state, seen, planner)
        assert decision.target is not None
        assert (len(decision.target.launch), len(decision.target.retire)) == (launched, retired)
    assert decision.evidence[0].servers_desired == 2


def test_servers_within_bounds_follow_the_demand() -> None:
    bounds = Bounds(Counted.SERVERS, "video", 2, 3, NOW_S + 60.0)
    planner = Planner(build_rules(overridden(config(slots=6), Overrides((bounds,)))))
    for rps, desired in ((1.0, 2), (1000.0, 3)):
        seen = PolicyInput(snapshot([server("a", (4, 4), slot="cpu:0"), server("b", (4, 4), slot="cpu:1")]), estimate(rps))
        assert decided(PolicyState(), seen, planner)[1].evidence[0].servers_desired == desired


def test_the_mode_in_force_is_that_of_the_override() -> None:
    assert overridden(config(), Overrides(mode=ModeOverride(Mode.ADVISORY))).mode is Mode.ADVISORY
    assert overridden(config(mode=Mode.ADVISORY), Overrides(mode=ModeOverride(Mode.ACTIVE))).mode is Mode.ACTIVE


def test_overrides_survive_a_restart_and_pins_end_with_their_time(tmp_path: Path) -> None:
    keeper = OverrideKeeper(tmp_path)
    keeper.bound(PIN, config())
    keeper.bound(pin(CLASSIFIER, 2, NOW_S + 600.0), config())
    keeper.bound(replace(TWO_SERVERS, max=3), config())
    keeper.set_mode(Mode.ADVISORY, "bob", "")
    assert [words for _, words in keeper.take_events(NOW_S)] == [
        f"{DETECTOR} is pinned at 5 instances a server by alice: a test",
        f"{CLASSIFIER} is pinned at 2 instances a server",
        "video is bounded to 2 to 3 servers",
        "switched to advisory mode by bob",
    ]
    again = OverrideKeeper(tmp_path)
    assert again.overrides == keeper.overrides
    assert again.take_events(NOW_S + 59.0) == []
    assert again.take_events(NOW_S + 60.0) == [
        ("pin_ended", f"{DETECTOR} is no longer pinned in its instances: its time has ended"),
        ("pin_ended", "video is no longer bounded in its servers: its time has ended"),
    ]
    assert [each.name for each in OverrideKeeper(tmp_path).overrides.bounds] == [CLASSIFIER]


@pytest.mark.parametrize("text", ["", "{", '{"bounds": 3}', '{"bounds": [{"name": 1}]}'])
def test_a_file_that_cannot_be_read_is_no_override(tmp_path: Path, text: str) -> None:
    (tmp_path / "overrides.json").write_text(text)
    assert OverrideKeeper(tmp_path).overrides == Overrides()


Post = Callable[[str, Any], Awaitable[httpx.Response]]


def called(tmp_path: Path, scenario: Callable[[Post, OverrideKeeper], Awaitable[None]]) -> None:
    async def run() -> None:
        token, address, clock = tmp_path / "token", Address("127.0.0.1", free_ports(1)[0]), FakeClock()
        make_token(token)
        keeper, board = OverrideKeeper(tmp_path), StatusBoard(config(), NOW_S)
        headers = {"Authorization": f"Bearer {read_token(token)}"}
        async with (
            serving(address, board, Exporter(), clock, Access(token), override_routes(keeper, board, clock)),
            httpx.AsyncClient(trust_env=False, base_url=address.url("/v1/"), headers=headers) as client,
        ):

            async def post(path: str, body: Any) -> httpx.Response:
                if isinstance(body, bytes):
                    return await client.post(path, content=body, headers={"Content-Type": "application/json; charset=none"})
                return await client.post(path, json=body)

            await scenario(post, keeper)
            client.headers.clear()
            assert (await post("pin", {})).status_code == 401

    asyncio.run(run())


def test_the_calls_pin_unpin_and_switch_the_mode(tmp_path: Path) -> None:
    async def scenario(post: Post, keeper: OverrideKeeper) -> None:
        answer = await post("pin", {"model": DETECTOR, "instances": 5, "for_s": 60, "by": "alice", "why": "a test"})
        bounds = {"counted": "instances", "name": DETECTOR, "min": 5, "max": 5}
        assert answer.json() == {"bounds": [bounds | {"until_s": NOW_S + 60, "by": "alice", "why": "a test"}], "mode": None, "drains": []}
        assert list(keeper.overrides.bounds) == [PIN]
        await post("pin", {"pipeline": "video", "servers": 2, "for_s": 60})
        assert list(keeper.overrides.bounds) == [PIN, TWO_SERVERS]
        await post("bounds", {"pipeline": "video", "min": 1, "max": 3, "for_s": 60})
        assert list(keeper.overrides.bounds) == [PIN, replace(TWO_SERVERS, min=1, max=3)]
        await post("unpin", {"name": "video"})
        assert (await post("unpin", {"name": DETECTOR})).json()["bounds"] == []
        assert (await post("mode", {"mode": "advisory"})).json()["mode"]["mode"] == "advisory"
        assert (await post("mode", {"mode": "settings"})).json()["mode"] is None

    called(tmp_path, scenario)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("pin", {"model": "x", "instances": 1, "for_s": 60}, "model: 'x' is invalid: expected video-classifier or video-detector"),
        ("pin", {"model": DETECTOR, "instances": 17, "for_s": 60}, "instances: 17 is invalid: expected 1 to 16"),
        ("pin", {"model": DETECTOR, "instances": 1.5, "for_s": 60}, "instances: 1.5 is invalid: expected a whole number"),
        ("pin", {"model": DETECTOR, "instances": 1, "for_s": 1e9}, "for_s: 1000000000.0 is invalid"),
        ("pin", {"model": DETECTOR, "instances": 1, "for_s": 60, "why": "x" * 201}, "why: expected a text of at most 200 characters"),
        ("pin", [1], "the body is invalid: expected a JSON object"),
        ("pin", b"\xff", "the body is not JSON: "),
        ("pin", b"[" * 100_000, "the body is not JSON: the JSON is nested too deeply"),
        ("pin", {"pipeline": "x", "servers": 1, "for_s": 60}, "pipeline: 'x' is invalid: expected video"),
        ("pin", {"pipeline": "video", "servers": 9, "for_s": 60}, "servers: 9 is invalid: expected 1 to 4, as many as the adopted servers"),
        ("pin", {"pipeline": "video", "model": DETECTOR, "instances": 1, "for_s": 60}, "expected either model"),
        ("bounds", {"model": DETECTOR, "min": 3, "max": 2, "for_s": 60}, "instances: 3 to 2 is invalid: expected 1 to 16"),
        ("unpin", {"name": DETECTOR}, "is neither pinned nor bounded"),
        ("drain", {"server": "a"}, "no tick has ended yet"),
        ("undrain", {"server": "a"}, "server: 'a' is not drained"),
        ("mode", {"mode": "off"}, "mode: 'off' is invalid: expected active, advisory or settings"),
    ],
)
def test_a_wrong_call_is_refused_with_what_is_allowed_and_changes_nothing(tmp_path: Path, path: str, body: Any, words: str) -> None:
    async def scenario(post: Post, keeper: OverrideKeeper) -> None:
        answer = await post(path, body)
        assert (answer.status_code, words in answer.json()["error"]) == (400, True), answer.text
        assert (keeper.overrides, keeper.take_events(NOW_S)) == (Overrides(), [])

    called(tmp_path, scenario)
