"""Lines of text of a given width: tables that leave out what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from themis_triton.core.printable import printable

GAP = 2
MIN_FLEXIBLE = 14
_BREAKS = {ord("\t"): " ", ord("\n"): " "}
Cell = tuple[str, str]
"""Text and its style."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    `flexible`: it is shortened where the width does not suffice. `rank`: columns of the highest rank are left out first; 0: never.
    """

    title: str
    right: bool = False
    flexible: bool = False
    rank: int = 0


def line(text: str, width: int, style: str = "") -> Text:
    """One line, shortened to the width."""
    return Text(fitted(printable(text.translate(_BREAKS)), width), style=style, no_wrap=True)


def fitted(text: str, width: int) -> str:
    """The text in at most `width` cells, with … where it was cut."""
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)).rstrip() + "…"


def folded(text: str, width: int, lines: int) -> list[str]:
    """The text in at most so many lines, broken at spaces."""
    rows = [""]
    for word in printable(text).split():
        longer = f"{rows[-1]} {word}".lstrip()
        if cell_len(longer) <= width or not rows[-1]:
            rows[-1] = longer
        else:
            rows.append(word)
    kept = rows[:lines]
    if len(rows) > lines:
        kept[-1] += f" {rows[lines]}…"
    return [fitted(row, width) for row in kept]


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> list[Text]:
    """A line of titles and one line a row, none wider than `width`."""
    cells = [[(printable(text.translate(_BREAKS)), style) for text, style in row] for row in rows]
    natural = [max([cell_len(column.title), *(cell_len(row[place][0]) for row in cells)]) for place, column in enumerate(columns)]
    places, sizes = _fitting(columns, natural, width)
    head = [(columns[place].title, "dim") for place in range(len(columns))]
    return [_row(columns, places, sizes, row) for row in (head, *cells)]


def _fitting(columns: Sequence[Column], natural: Sequence[int], width: int) -> tuple[list[int], list[int]]:
    """The columns that are shown, and their widths: the widest flexible ones are shortened first."""
    places = list(range(len(columns)))
    while True:
        sizes = {place: natural[place] for place in places}
        while (excess := sum(sizes.values()) + GAP * (len(places) - 1) - width) > 0:
            flexible = [place for place in places if columns[place].flexible and sizes[place] > MIN_FLEXIBLE]
            if not flexible:
                break
            sizes[max(flexible, key=lambda place: sizes[place])] -= 1
        last = max(places, key=lambda place: columns[place].rank)
        if excess <= 0 or columns[last].rank == 0:
            return places, list(sizes.values())
        places.remove(last)


def _row(columns: Sequence[Column], places: Sequence[int], sizes: Sequence[int], row: Sequence[Cell]) -> Text:
    text = Text(no_wrap=True)
    for number, (place, size) in enumerate(zip(places, sizes, strict=True)):
        words, style = row[place]
        words = fitted(words, size)
        space = " " * (size - cell_len(words))
        text.append((" " * GAP if number else "") + (space if columns[place].right else ""))
        text.append(words, style=style)
        text.append("" if columns[place].right else space)
    text.rstrip()
    return text


def first_lines(lines: Sequence[Text], space: int) -> list[Text]:
    """The lines, or as many as there is space for, the last of which then says how many are left out."""
    if len(lines) <= space:
        return list(lines)
    return [*lines[: space - 1], Text(f"… {len(lines) - space + 1} more", style="dim")] if space > 0 else []


def shares(space: int, wanted: Sequence[int], least: Sequence[int]) -> list[int]:
    """The lines of each section: its least while there is space, then what it wants, a line each in turn."""
    given: list[int] = []
    for want, low in zip(wanted, least, strict=True):
        given.append(min(want, low, max(0, space - sum(given))))
    while sum(given) < min(space, sum(wanted)):
        for place, want in enumerate(wanted):
            given[place] += 1 if given[place] < want and sum(given) < space else 0
    return given
