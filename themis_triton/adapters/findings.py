"""Results of the live check: one value per item checked, with a remedy where something is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from themis_triton.core.errors import EnvironmentCheckError, ServerError


class Severity(StrEnum):
    """OK: as configured. WARNING: Themis can run with reduced function. ERROR: it cannot run."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One item checked. `what` begins with its settings key; `exit_code` is that of the error tree, 0 where it is no error."""

    severity: Severity
    what: str
    found: str
    remedy: str = ""
    exit_code: int = 0


def fine(what: str, found: str) -> Finding:
    """As configured."""
    return Finding(Severity.OK, what, found)


def warning(what: str, found: str, remedy: str) -> Finding:
    """Reduced function."""
    return Finding(Severity.WARNING, what, found, remedy)


def missing(what: str, found: str, remedy: str) -> Finding:
    """A required part of this machine is not installed, free or present."""
    return Finding(Severity.ERROR, what, found, remedy, EnvironmentCheckError.exit_code)


def unanswered(what: str, found: str, remedy: str) -> Finding:
    """A server or Envoy does not answer, or refuses."""
    return Finding(Severity.ERROR, what, found, remedy, ServerError.exit_code)
