"""Frozen dataclasses that are quickly made: they behave as plain ones."""

import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass, field
from functools import cached_property
from typing import cast

import pytest

from themis_triton.core.values import quickly_made, replace


@quickly_made
@dataclass(frozen=True, slots=True)
class Base:
    """All kinds of fields."""

    first: int
    names: dict[str, int] = field(default_factory=dict)
    size: int = field(default=2, kw_only=True)


@quickly_made
@dataclass(frozen=True, slots=True)
class Derived(Base):
    """A field more, and a check."""

    last: float = 1.5

    def __post_init__(self) -> None:
        """Reject what is below 0."""
        if self.first < 0:
            raise ValueError(self.first)


@quickly_made
@dataclass(frozen=True)
class Open:
    """Without slots, for a cached value."""

    number: int

    @cached_property
    def twice(self) -> int:
        """Twice the number."""
        return 2 * self.number


def test_they_are_made_compared_shown_and_copied_as_plain_ones() -> None:
    one = Derived(1, {"a": 1}, 2.5, size=3)
    assert (one.first, one.names, one.last, one.size) == (1, {"a": 1}, 2.5, 3)
    assert repr(Derived(1)) == "Derived(first=1, names={}, size=2, last=1.5)"
    assert Derived(1) == Derived(first=1) != Derived(2)
    assert Derived(1).names is not Derived(1).names
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one  # noqa: S301 - its own bytes
    with pytest.raises(TypeError, match="first"):
        cast("type", Base)()


def test_no_field_can_be_set_or_deleted() -> None:
    for one, name in ((Derived(1), "first"), (replace(Derived(1), last=2.0), "first"), (Open(1), "number"), (replace(Open(1)), "number")):
        with pytest.raises(FrozenInstanceError):
            setattr(one, name, 2)
        with pytest.raises(FrozenInstanceError):
            delattr(one, name)


def test_a_replacement_is_checked_and_forgets_what_was_cached() -> None:
    assert replace(Derived(1, size=4), last=2.0) == Derived(1, {}, 2.0, size=4)
    four = Open(4)
    assert (four.twice, replace(four, number=5).twice) == (8, 10)
    with pytest.raises(ValueError, match="-1"):
        replace(Derived(1), first=-1)
    with pytest.raises(TypeError, match="other"):
        replace(Derived(1), other=1)  # type: ignore[call-arg]


def test_a_field_that_is_no_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="no argument"):

        @quickly_made
        @dataclass(frozen=True)
        class Late:
            number: int = field(init=False)
