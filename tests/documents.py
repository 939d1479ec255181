"""The fenced blocks and inline code of README and docs, for the tests that check them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
GENERATED = "reference"
FENCE = re.compile(r"^(\s*)```(\w*)\s*$")
NOTE = re.compile(r"^\s*<!-- (untested|session): (.+) -->\s*$")
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. `note` is (kind, text) of the comment directly above it: `untested` with its reason, or `session`."""

    document: Path
    line: int
    language: str
    text: str
    note: tuple[str, str] | None

    @property
    def untested(self) -> bool:
        """Whether the document says that no test can run it."""
        return self.note is not None and self.note[0] == "untested"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line, without comments and without a trailing `&`."""
        lines = [shlex.split(line, comments=True) for line in self.text.splitlines()]
        return [[word for word in words if word != "&"] for words in lines if words]

    def __str__(self) -> str:
        """Where it stands."""
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def documents() -> list[Path]:
    """README, the pages of docs that people write, and the examples' pages."""
    pages = sorted(path for path in (ROOT / "docs").rglob("*.md") if GENERATED not in path.parts)
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *pages, ROOT / "examples" / "README.md", *sorted(ROOT.glob("examples/*/README.md"))]


def blocks() -> list[Block]:
    """Every fenced block of every document."""
    return [block for document in documents() for block in _blocks_of(document)]


def session() -> Block:
    """The block of docs/index.md whose commands make a session, one after the other."""
    return next(block for block in blocks() if block.note is not None and block.note[0] == "session")


def session_settings() -> str:
    """The settings that the session works with: the YAML block before it."""
    return next(block.text for block in blocks() if block.document == session().document and block.language == "yaml")


def first_advice() -> list[list[str]]:
    """The commands that lead to a first advice beside a Triton that runs already, in their order."""
    text = next(path for path in documents() if path.name == "beside-your-triton.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    start = lines.index("## In ten minutes")
    end = next(number for number in range(start + 1, len(lines)) if lines[number].startswith("## "))
    return [
        words
        for block in blocks()
        if block.document.name == "beside-your-triton.md" and start < block.line <= end
        for words in block.commands
    ]


def walk(settings: Path) -> list[tuple[list[str], str]]:
    """The commands of the runbook's walk, without the settings file, and for each the last line that it prints there as a pattern.

    Numbers may be others, and … stands for anything.
    """
    found = []
    for block in blocks():
        if block.document.name == "runbook.md" and block.text.startswith("$ themis "):
            command, *lines = block.text.splitlines()
            words = shlex.split(command.removeprefix("$ themis ").replace(" -c themis.yaml", ""))
            last = next(line for line in reversed(lines) if line != "…")
            pattern = re.sub(r"(\\ )+", r"\\s+", re.sub(r"\d+(\\\.\d+)?", r"[\\d.]+", re.escape(last)))
            found.append((words, pattern.replace("…", ".*").replace(re.escape("themis.yaml"), re.escape(str(settings)))))
    return found


def spans(document: Path) -> list[str]:
    """Inline code outside fenced blocks."""
    inside, texts = False, []
    for line in document.read_text(encoding="utf-8").splitlines():
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            texts += SPAN.findall(line)
    return texts


def links(document: Path) -> list[str]:
    """Targets of links to files."""
    targets = LINK.findall(document.read_text(encoding="utf-8"))
    return [target for target in targets if "://" not in target]


def _blocks_of(document: Path) -> Iterator[Block]:
    lines = document.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence is None:
            continue
        if start is None:
            start, indent, language = number, len(fence[1]), fence[2]
            continue
        text = "\n".join(line[indent:] for line in lines[start + 1 : number]) + "\n"
        note = NOTE.match(lines[start - 1]) if start else None
        yield Block(document, start + 1, language, text, (note[1], note[2]) if note is not None else None)
        start = None
    assert start is None, f"{document}: a fence is not closed"
