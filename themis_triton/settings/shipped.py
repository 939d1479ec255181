"""The folder of the shipped files: beside the code in an installed wheel, at the top of a source tree."""

from __future__ import annotations

from pathlib import Path

import themis_triton

_PACKAGE = Path(themis_triton.__file__).resolve().parent


def shipped(name: str) -> Path:
    """The shipped folder `name`, such as `model_repository`."""
    installed = _PACKAGE / "shipped" / name
    return installed if installed.exists() else _PACKAGE.parent / name
