#!/usr/bin/env python3
"""Draws docs/architecture.svg from the imports of themis_triton and the layers that pyproject.toml enforces."""

from __future__ import annotations

import ast
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGE = "themis_triton"
PICTURE = ROOT / "docs" / "architecture.svg"
GROUND = "core"  # everything imports it, so its arrows say nothing
BOX_WIDTH, LINE_HEIGHT, GAP, ROW_GAP, MARGIN, LABEL_WIDTH = 186, 14, 14, 46, 20, 34
TEXT_WIDTH = 29
COLOURS = ("#e8eaf6", "#e3f2fd", "#e0f2f1", "#e8f5e9", "#f1f8e9", "#fffde7", "#fff3e0", "#fbe9e7", "#f3e5f5")


@dataclass(frozen=True, slots=True)
class Box:
    """One package or module of the top level, with its place in the picture."""

    name: str
    lines: tuple[str, ...]
    x: int
    y: int
    height: int
    row: int

    @property
    def middle(self) -> float:
        """Horizontal middle."""
        return self.x + BOX_WIDTH / 2


def main() -> None:
    """Write the picture, or with `--print` show what would be written."""
    if "--print" in sys.argv:
        sys.stdout.write(picture())
    else:
        PICTURE.write_text(picture(), encoding="utf-8")


def picture() -> str:
    """The SVG: a row per layer, a box per package with its docstring's first sentence, an arrow per import.

    An arrow is left out where a longer way of arrows leads there as well, and to `core`, which every package imports.
    """
    layers = _layers()
    imports = _imports({name for layer in layers for name in layer})
    boxes, width, height = _place(layers)
    arrows = "\n".join(_arrow(boxes[a], boxes[b]) for a, b in sorted(_reduced(imports)))
    parts = "\n".join(_drawn(box) for box in boxes.values())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">\n'
        f"<title>Packages of {PACKAGE} and their imports</title>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto-start-reverse">'
        '<path d="M0 0L8 4L0 8z" fill="#607d8b"/></marker></defs>\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n{arrows}\n{parts}\n</svg>\n'
    )


def _layers() -> list[tuple[str, ...]]:
    """Top-level packages by layer, the highest first, as import-linter enforces them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [tuple(name.strip().removeprefix(f"{PACKAGE}.") for name in row.replace("|", ":").split(":")) for row in rows]


def _imports(names: set[str]) -> set[tuple[str, str]]:
    """(importer, imported) of the top-level packages."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    edges = set()
    for module in graph.modules:
        importer = _top(module)
        edges |= {(importer, _top(imported)) for imported in graph.find_modules_directly_imported_by(module)}
    return {(a, b) for a, b in edges if b not in {a, GROUND} and {a, b} <= names}


def _top(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def _reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The edges without those that a path of other edges replaces."""
    return {(a, b) for a, b in edges if not _connected(a, b, edges - {(a, b)})}


def _connected(start: str, end: str, edges: set[tuple[str, str]]) -> bool:
    reached, frontier = {start}, {start}
    while frontier:
        frontier = {b for a, b in edges if a in frontier} - reached
        reached |= frontier
    return end in reached


def _place(layers: list[tuple[str, ...]]) -> tuple[dict[str, Box], int, int]:
    """Boxes by name, and the picture's size."""
    widest = max(map(len, layers))
    width = 2 * MARGIN + widest * BOX_WIDTH + (widest - 1) * GAP
    boxes, y = {}, MARGIN
    for row, layer in enumerate(layers):
        texts = {name: tuple(textwrap.wrap(_summary(name), TEXT_WIDTH)) for name in layer}
        height = LABEL_WIDTH + LINE_HEIGHT * max(map(len, texts.values()))
        left = (width - len(layer) * BOX_WIDTH - (len(layer) - 1) * GAP) // 2
        for index, name in enumerate(layer):
            boxes[name] = Box(name, texts[name], left + index * (BOX_WIDTH + GAP), y, height, row)
        y += height + ROW_GAP
    return boxes, width, y - ROW_GAP + MARGIN


def _summary(name: str) -> str:
    """The first sentence of a package's or module's docstring."""
    folder = ROOT / PACKAGE / name
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ")


def _drawn(box: Box) -> str:
    lines = "".join(
        f'<text x="{box.x + 10}" y="{box.y + LABEL_WIDTH + LINE_HEIGHT * index}" fill="#37474f">{escape(line.replace("`", ""))}</text>'
        for index, line in enumerate(box.lines)
    )
    colour = COLOURS[box.row % len(COLOURS)]
    return (
        f'<g><rect x="{box.x}" y="{box.y}" width="{BOX_WIDTH}" height="{box.height}" rx="5" fill="{colour}" stroke="#607d8b"/>'
        f'<text x="{box.x + 10}" y="{box.y + 18}" font-weight="bold" font-size="13">{escape(box.name)}</text>{lines}</g>'
    )


def _arrow(upper: Box, lower: Box) -> str:
    """A curve from the importer to what it imports; an arc above the boxes where both are in one row."""
    if upper.row == lower.row:
        start, end = (upper.middle, upper.y), (lower.middle, lower.y)
        bends = [(upper.middle, upper.y - ROW_GAP * 0.7), (lower.middle, lower.y - ROW_GAP * 0.7)]
    else:
        start, end = (upper.middle, upper.y + upper.height), (lower.middle, lower.y)
        bends = [(upper.middle, start[1] + ROW_GAP * 0.6), (lower.middle, end[1] - ROW_GAP * 0.6)]
    points = [start, *bends, end]
    first, *others = (f"{x:.0f} {y:.0f}" for x, y in points)
    return f'<path d="M{first}C{",".join(others)}" fill="none" stroke="#607d8b" stroke-opacity="0.75" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    main()
