"""What is wrong with a settings file: one value per mistake, said the same way to people and to programs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `line` and `column` count from 1 and are None where the file could not be read at all."""

    file: str
    line: int | None
    column: int | None
    key: str
    found: str
    allowed: str
    remedy: str

    @property
    def place(self) -> str:
        """`file:line:column`, as editors and compilers write it."""
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)

    def __str__(self) -> str:
        """The whole mistake in one line."""
        key = f"{self.key}: " if self.key else ""
        return f"{self.place}: {key}found {self.found}; allowed: {self.allowed}; {self.remedy}"


def by_place(problem: Problem) -> tuple[str, int, int, str]:
    """Sort key: the order in which a reader meets the mistakes."""
    return (problem.file, problem.line or 0, problem.column or 0, problem.key)
