"""The strict YAML settings file as a frozen configuration, or every error in it with file, line, column, key, expected value and fix.

Names are loaded when they are first used: the client commands need `load_runtime_paths` only, and the schema takes half a second.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from themis_triton.settings.runtime import RuntimePaths, load_runtime_paths

if TYPE_CHECKING:
    from themis_triton.settings.examine import load_settings, problems
    from themis_triton.settings.problem import Problem
    from themis_triton.settings.reference import ReferenceRow, reference_rows

__all__ = ["Problem", "ReferenceRow", "RuntimePaths", "load_runtime_paths", "load_settings", "problems", "reference_rows"]

_MODULES = {
    "Problem": "problem",
    "ReferenceRow": "reference",
    "load_settings": "examine",
    "problems": "examine",
    "reference_rows": "reference",
}


def __getattr__(name: str) -> object:
    """The name out of its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
