import dataclasses

import pytest

from themis_triton.core.replacing import replaced


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    low: int
    high: int = 9

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"{self.low} is above {self.high}")


def test_a_copy_has_the_new_values_and_the_others_as_they_were() -> None:
    bounds = Bounds(1)
    assert replaced(bounds, high=5) == dataclasses.replace(bounds, high=5) == Bounds(1, 5)
    assert bounds == Bounds(1, 9)


def test_a_copy_is_checked_as_a_new_one_is() -> None:
    with pytest.raises(ValueError, match="10 is above 9"):
        replaced(Bounds(1), low=10)
    with pytest.raises(TypeError, match="unexpected keyword argument 'width'"):
        replaced(Bounds(1), width=2)  # type: ignore[call-arg]
