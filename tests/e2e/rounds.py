"""Measurements on a machine with other work: a round that was disturbed is measured again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

ROUNDS = 3
P = ParamSpec("P")
log = logging.getLogger(__name__)


def measured_again_if_disturbed(measurement: Callable[P, None]) -> Callable[P, None]:
    """The same measurement, repeated up to two times while it is out of tolerance.

    For figures that other work on the machine changes for a moment. A systematic deviation fails in all rounds. Measure and compare
    in one function, which can run again.
    """

    @wraps(measurement)
    def rounds(*args: P.args, **kwargs: P.kwargs) -> None:
        for number in range(1, ROUNDS):
            try:
                return measurement(*args, **kwargs)
            except AssertionError as out:
                log.warning("round %d of %s is out: %s", number, measurement.__name__, out)
        return measurement(*args, **kwargs)

    return rounds
