"""The commented settings file that `themis init` writes."""

from __future__ import annotations

from importlib.resources import files


def sample() -> str:
    """The sample's text; it is valid wherever it is written, since it names no path outside its own folder."""
    return files("themis_triton.settings").joinpath("sample.yaml").read_text(encoding="utf-8")
