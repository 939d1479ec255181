"""Errors of a settings file: one value per error, with the same form for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One error. `line` and `column` count from 1 and are None where the file could not be read."""

    file: str
    line: int | None
    column: int | None
    key: str
    error: str
    expected: str
    fix: str

    @property
    def place(self) -> str:
        """`file:line:column`, as editors and compilers write it."""
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)

    def __str__(self) -> str:
        """`file:line:column: key: error: expected …. Fix: …`."""
        key = f"{self.key}: " if self.key else ""
        return f"{self.place}: {key}{self.error}: expected {self.expected}. Fix: {self.fix}"


def by_place(problem: Problem) -> tuple[str, int, int, str]:
    """Sort key: file, line, column, key."""
    return (problem.file, problem.line or 0, problem.column or 0, problem.key)
