"""Pins and the mode that an operator puts in force over the settings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
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
from themis_triton.core.overrides import ModeOverride, Overrides, Pin, overridden
from themis_triton.daemon.access import Access
from themis_triton.daemon.api import serving
from themis_triton.daemon.override_api import override_routes
from themis_triton.daemon.overrides import OverrideKeeper
from themis_triton.daemon.status import StatusBoard
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState

PIN = Pin(DETECTOR, 5, NOW_S + 60.0, "alice", "a test")


@pytest.mark.parametrize("rps", [1.0, 30.0, 200.0])
def test_a_pinned_model_has_its_count_on_every_server_whatever_the_demand(rps: float) -> None:
    pinned = overridden(config(), Overrides((PIN,)))
    seen = PolicyInput(snapshot([server("a", (4, 1)), server("b", (5, 1))]), estimate(rps))
    _, decision = decided(PolicyState(), seen, Planner(build_rules(pinned)))
    assert decision.target is not None
    models = [*decision.target.servers.values(), *decision.target.launch.values()]
    assert models
    assert {each[DETECTOR].instances for each in models} == {5}


@pytest.mark.parametrize("pin", [Pin("unknown", 2, NOW_S), Pin(DETECTOR, 17, NOW_S), Pin(DETECTOR, 0, NOW_S)])
def test_a_pin_that_the_settings_no_longer_allow_changes_nothing(pin: Pin) -> None:
    assert overridden(config(), Overrides((pin,))) == config()


def test_the_mode_in_force_is_that_of_the_override() -> None:
    assert overridden(config(), Overrides(mode=ModeOverride(Mode.ADVISORY))).mode is Mode.ADVISORY
    assert overridden(config(mode=Mode.ADVISORY), Overrides(mode=ModeOverride(Mode.ACTIVE))).mode is Mode.ACTIVE


def test_overrides_survive_a_restart_and_pins_end_with_their_time(tmp_path: Path) -> None:
    keeper = OverrideKeeper(tmp_path)
    keeper.pin(PIN, config())
    keeper.pin(Pin(CLASSIFIER, 2, NOW_S + 600.0), config())
    keeper.set_mode(Mode.ADVISORY, "bob", "")
    assert [words for _, words in keeper.take_events(NOW_S)] == [
        f"{DETECTOR} is pinned at 5 instances a server by alice: a test",
        f"{CLASSIFIER} is pinned at 2 instances a server",
        "switched to advisory mode by bob",
    ]
    again = OverrideKeeper(tmp_path)
    assert again.overrides == keeper.overrides
    assert again.take_events(NOW_S + 59.0) == []
    assert again.take_events(NOW_S + 60.0) == [("pin_ended", f"{DETECTOR} is no longer pinned: its time has ended")]
    assert [pin.model for pin in OverrideKeeper(tmp_path).overrides.pins] == [CLASSIFIER]


@pytest.mark.parametrize("text", ["", "{", '{"pins": 3}', '{"pins": [{"model": 1}]}'])
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
                return await client.post(path, json=body)

            await scenario(post, keeper)
            client.headers.clear()
            assert (await post("pin", {})).status_code == 401

    asyncio.run(run())


def test_the_calls_pin_unpin_and_switch_the_mode(tmp_path: Path) -> None:
    async def scenario(post: Post, keeper: OverrideKeeper) -> None:
        answer = await post("pin", {"model": DETECTOR, "instances": 5, "for_s": 60, "by": "alice", "why": "a test"})
        assert answer.json() == {
            "pins": [{"model": DETECTOR, "instances": 5, "until_s": NOW_S + 60, "by": "alice", "why": "a test"}],
            "mode": None,
        }
        assert keeper.overrides.pins == (PIN,)
        assert (await post("unpin", {"model": DETECTOR})).json()["pins"] == []
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
        ("unpin", {"model": DETECTOR}, "is not pinned"),
        ("mode", {"mode": "off"}, "mode: 'off' is invalid: expected active, advisory or settings"),
    ],
)
def test_a_wrong_call_is_refused_with_what_is_allowed_and_changes_nothing(tmp_path: Path, path: str, body: Any, words: str) -> None:
    async def scenario(post: Post, keeper: OverrideKeeper) -> None:
        answer = await post(path, body)
        assert (answer.status_code, words in answer.json()["error"]) == (400, True), answer.text
        assert (keeper.overrides, keeper.take_events(NOW_S)) == (Overrides(), [])

    called(tmp_path, scenario)
