"""Clean pages of libraries are given back, and what was modified stays."""

from __future__ import annotations

import ctypes
import gc
import mmap
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from themis_triton.adapters.memory import exempt_from_collection, release_clean_pages

PAGES = 512
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/smaps is Linux's")


def test_clean_pages_of_a_file_are_given_back_and_read_again_when_used(tmp_path: Path) -> None:
    content = b"".join(bytes([page % 251]) * mmap.PAGESIZE for page in range(PAGES))
    (tmp_path / "library").write_bytes(content)
    with (tmp_path / "library").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == content
        before = psutil.Process().memory_info().rss
        released = release_clean_pages()
        assert released >= len(content)
        assert psutil.Process().memory_info().rss < before
        assert mapped[:] == content


def test_a_mapping_with_a_modified_page_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "library").write_bytes(b"a" * PAGES * mmap.PAGESIZE)
    with (tmp_path / "library").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:6] = b"changd"
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        libc = ctypes.CDLL(None)
        libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        assert libc.mprotect(start, PAGES * mmap.PAGESIZE, 1) == 0  # read-only, as a linked library's relocated data
        release_clean_pages()
        assert mapped[:8] == b"changdaa"


def test_a_collection_looks_at_no_object_that_was_there_before() -> None:
    kept, threshold = [[number] for number in range(1000)], gc.get_threshold()
    try:
        exempt_from_collection()
        assert gc.get_freeze_count() > len(kept)
        assert len(gc.get_objects()) < len(kept)
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)


def test_collections_of_young_objects_are_fewer_with_many_models() -> None:
    threshold = gc.get_threshold()
    try:
        exempt_from_collection(1)
        few, *older = gc.get_threshold()
        exempt_from_collection(1000)
        assert gc.get_threshold() == (100_000, *older)
        assert few == 10_000
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)


def test_the_kernels_run_after_the_compiler_was_given_back() -> None:
    code = """
import numpy as np
from numba import njit
from themis_triton.adapters.memory import release_clean_pages

@njit
def doubled(x):
    return 2 * x

assert doubled(2) == 4
assert release_clean_pages() > 20 * 2**20
assert doubled(3) == 6 and doubled(1.5) == 3.0, "a new type compiles: the compiler is read again"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
