from __future__ import annotations

import math

import pytest

from themis_triton.core.brackets import POINTS, Brackets, Point


def ask(brackets: Brackets, point: Point, answer: float, question: str = "") -> tuple[float, bool]:
    """What is said, and whether it had to be found."""
    found = []

    def find() -> float:
        found.append(answer)
        return answer

    return brackets.get(question, point, find), bool(found)


@pytest.mark.parametrize("answer", [2.0, math.inf])
def test_between_two_known_points_with_one_answer_nothing_is_found(answer: float) -> None:
    brackets = Brackets(4)
    assert ask(brackets, (1.0, 1.0), answer) == (answer, True)
    assert ask(brackets, (3.0, 3.0), answer) == (answer, answer < math.inf)
    assert ask(brackets, (2.0, 1.0), -1.0) == (answer, False)
    assert ask(brackets, (2.0, 0.5), 1.0) == (1.0, True)
    assert ask(brackets, (2.0, 2.0), 7.0, "another question") == (7.0, True)


def test_beyond_a_point_without_an_answer_there_is_none() -> None:
    brackets = Brackets(4)
    ask(brackets, (5.0,), math.inf)
    assert ask(brackets, (9.0,), 1.0) == (math.inf, False)


def test_only_the_newest_points_are_kept() -> None:
    brackets = Brackets(1)
    for number in range(POINTS + 1):
        ask(brackets, (float(-number),), float(-number))
    assert ask(brackets, (0.0,), 0.0) == (0.0, True)
