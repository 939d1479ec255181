import copy
import dataclasses
import inspect
import pickle

import pytest

from themis_triton.core.construction import quick_init
from themis_triton.core.replacing import replaced


@quick_init
@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    low: int
    high: int = 9
    names: list[str] = dataclasses.field(default_factory=list)
    width: int = dataclasses.field(init=False)
    unit: str = dataclasses.field(init=False, default="s")

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", self.high - self.low)


@quick_init
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NamedRange(Range):
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Ordinary:
    low: int
    high: int = 9
    names: list[str] = dataclasses.field(default_factory=list)


def test_an_object_has_its_arguments_defaults_and_what_its_class_computes() -> None:
    assert dataclasses.astuple(Range(1)) == (1, 9, [], 8, "s")
    assert dataclasses.astuple(Range(1, 4, names=["a"])) == (1, 4, ["a"], 3, "s")
    assert Range(1).names is not Range(1).names


def test_an_object_is_frozen_and_one_of_its_class() -> None:
    made = Range(1)
    assert type(made) is Range
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.low = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del made.low
    assert made == Range(1)
    assert made != Range(2)


def test_a_class_may_add_fields_to_another_one() -> None:
    named = NamedRange(1, 4, name="n")
    assert dataclasses.astuple(named) == (1, 4, [], 3, "s", "n")
    assert replaced(named, low=2) == NamedRange(2, 4, name="n")
    with pytest.raises(dataclasses.FrozenInstanceError):
        named.low = 2  # type: ignore[misc]


def test_copies_are_equal() -> None:
    made = Range(1, names=["a"])
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == dataclasses.replace(made) == made  # noqa: S301


def test_wrong_arguments_are_refused_as_ever() -> None:
    with pytest.raises(TypeError, match=r"__init__\(\) missing 1 required positional argument: 'low'"):
        Range()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'step'"):
        Range(1, step=2)  # type: ignore[call-arg]
    assert list(inspect.signature(Range).parameters) == list(inspect.signature(Ordinary).parameters)
