"""Core values as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.unit.samples import NOW_S, action, record, server, snapshot
from themis_triton.core.action import ActionKind
from themis_triton.core.encoding import json_text, plain

VALUES = (
    record(action(ActionKind.GROW), seen=snapshot([server("a")], NOW_S)),
    {"path": Path("/x"), "set": frozenset({"b", "a"}), "view": MappingProxyType({"one": (1, 2.5, None)}), "text": 'ä "1"\n'},
    {1: math.inf, 2: [math.nan]},
    {("a", 1): True},
)


@pytest.mark.parametrize("value", VALUES)
def test_compact_json_is_that_of_the_plain_value(value: object) -> None:
    assert json_text(value) == json.dumps(plain(value), separators=(",", ":"))


def test_what_has_no_json_is_an_error() -> None:
    with pytest.raises(TypeError):
        json_text([object()])
