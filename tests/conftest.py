"""Before any test: compiled kernels come from the cache, and tests are spread over processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from themis_triton.compilation import use_kernel_cache

use_kernel_cache()

SEPARATE = frozenset(f"tests/e2e/test_{name}.py" for name in ("any_model", "daemon", "demo", "probe", "profile", "sequences", "tutorial"))
"""Files whose tests start servers of their own; the tests of any other file share what the file starts."""


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command that a test calls may write its log to a standard error that only this test has."""
    configured, handlers = structlog.get_config(), list(logging.root.handlers)
    yield
    structlog.configure(**configured)
    logging.root.handlers = handlers


class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """A file at a time, except for those whose tests share nothing: these go wherever a process is free."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.partition("::")[0] in SEPARATE else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None
