"""The files of the servers' `tls` sections must exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from themis_triton.settings.loading import Loaded, mapping
from themis_triton.settings.problem import Problem


def check_tls_files(loaded: Loaded) -> Iterator[Problem]:
    """An error for each file that is not there."""
    for name, server in loaded.section("servers").items():
        tls = mapping(mapping(server).get("tls"))
        for key in ("ca", "certificate", "key"):
            file = tls.get(key)
            if isinstance(file, str) and not loaded.resolve(Path(file)).is_file():
                fix = f"correct the path, which starts at {loaded.path.parent.resolve()}"
                yield loaded.source.problem(("servers", name, "tls", key), f"{file} does not exist", "the path of a PEM file", fix)
