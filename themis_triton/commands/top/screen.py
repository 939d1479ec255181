"""The state of `themis top`, and what each key does to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from themis_triton.core.history import DecisionDetail
from themis_triton.core.status import Status, StatusEvent

PAGE_LINES = 10


class Effect(StrEnum):
    """What a key asks of the program around the screen."""

    QUIT = "quit"
    PAUSE = "pause"
    RESUME = "resume"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Screen:
    """What is known and chosen.

    `status`: the newest one; None before the first. `error`: why the newest reading failed; empty while they succeed.
    `rates`: the mean rates of each pipeline over the last minutes, newest last. `chosen`: the selected decision; None: the newest.
    `asked`: a change that waits for its confirmation. `notice`: the outcome of the last one. `opened`: the decision whose explanation is
    open; `detail` is that decision, and `scroll` the number of its lines above the screen.
    """

    status: Status | None = None
    error: str = ""
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    chosen: StatusEvent | None = None
    asked: Effect | None = None
    notice: str = ""
    opened: str | None = None
    detail: DecisionDetail | None = None
    scroll: int = 0

    @property
    def events(self) -> tuple[StatusEvent, ...]:
        """The newest changes, newest first."""
        return self.status.events[::-1] if self.status is not None else ()

    @property
    def selected(self) -> StatusEvent | None:
        """The chosen event, or the newest one; None where there is none."""
        events = self.events
        return self.chosen if self.chosen in events else events[0] if events else None

    def with_status(self, status: Status, rates: Mapping[str, tuple[float, ...]]) -> Screen:
        """The screen with another reading."""
        return replace(self, status=status, error="", rates=rates)


def pressed(screen: Screen, key: str) -> tuple[Screen, Effect | None]:
    """The screen after a key, and what it asks for. Keys are characters, or names such as `up`."""
    if screen.asked is not None:
        return _answered(screen, key)
    screen = replace(screen, notice="")
    if key == "q":
        return screen, Effect.QUIT
    return _in_explanation(screen, key) if screen.opened is not None else _in_overview(screen, key)


def _answered(screen: Screen, key: str) -> tuple[Screen, Effect | None]:
    if key in {"y", "Y"}:
        return replace(screen, asked=None), screen.asked
    return replace(screen, asked=None, notice="nothing was changed"), None


def _in_explanation(screen: Screen, key: str) -> tuple[Screen, Effect | None]:
    moves = {"up": -1, "k": -1, "down": 1, "j": 1, "page_up": -PAGE_LINES, "page_down": PAGE_LINES, " ": PAGE_LINES}
    if key in moves:
        return replace(screen, scroll=max(0, screen.scroll + moves[key])), None
    if key in {"escape", "w", "enter"}:
        return replace(screen, opened=None, detail=None, scroll=0), None
    return screen, None


def _in_overview(screen: Screen, key: str) -> tuple[Screen, Effect | None]:
    if key in {"p", "r"}:
        return _asking(screen, Effect.PAUSE if key == "p" else Effect.RESUME), None
    if key in {"up", "k", "down", "j"} and screen.selected is not None:
        events = screen.events
        place = events.index(screen.selected) + (1 if key in {"down", "j"} else -1)
        return replace(screen, chosen=events[min(max(0, place), len(events) - 1)]), None
    if key in {"w", "enter"}:
        if screen.selected is None:
            return replace(screen, notice="no decision has changed anything yet"), None
        return screen, Effect.OPEN
    return screen, None


def _asking(screen: Screen, change: Effect) -> Screen:
    if screen.status is None:
        return replace(screen, notice="nothing can be changed before the sidecar answers")
    if screen.status.paused == (change is Effect.PAUSE):
        return replace(screen, notice="it is paused already" if screen.status.paused else "it is not paused")
    return replace(screen, asked=change)
