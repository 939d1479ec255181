"""This process's memory after its start: clean pages are given back to the system, and objects that stay are not collected."""

from __future__ import annotations

import ctypes
import gc
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_YOUNG_OBJECTS = 10_000
_YOUNG_OBJECTS_A_MODEL = 100
"""A tick makes some dozens of objects a model. Most end with the next tick: then no collection looks at them."""
_YOUNG_COLLECTIONS = 10
_COLLECTIONS_BETWEEN_FULL_ONES = 100
"""Of the middle generation: with 1,000 models a tick takes about one, and a full collection looks at all that its history keeps."""
_MAPS = Path("/proc/self/smaps")
_HEADER = re.compile(r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<rights>\S{4}) \S+ \S+ \S+ +(?P<path>/.*)")
_SIZE = re.compile(r"(?P<name>Rss|Anonymous): +(?P<kib>\d+) kB")


@dataclass(slots=True)
class _Mapping:
    """A read-only mapping of a file; `modified_kib` is what differs from the file."""

    start: int
    end: int
    resident_kib: int = 0
    modified_kib: int = 0


def release_clean_pages() -> int:
    """Give back the resident pages of libraries that equal their files; returns their bytes, 0 on systems without `/proc`.

    The compiler (LLVM) is 70 MB of code that is not used again once all kernels are loaded. Nothing is lost: the system reads a page
    again from its file when it is used. Mappings with a modified page are left alone.
    """
    if not _MAPS.exists():
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    released_kib = 0
    for mapping in _mappings(_MAPS.read_text()):
        clean = mapping.resident_kib and not mapping.modified_kib
        if clean and libc.madvise(mapping.start, mapping.end - mapping.start, mmap.MADV_DONTNEED) == 0:
            released_kib += mapping.resident_kib
    return 1024 * released_kib


def exempt_from_collection(models: int = 0) -> None:
    """Take all present objects out of the garbage collection, once what the start left over is collected.

    A full collection looks at every object. The settings, libraries and compiled kernels are hundreds of thousands, and all of them stay:
    that takes 0.1 s and more in the middle of a tick. `models`: those of the settings.
    """
    gc.collect()
    gc.freeze()
    # A tick with 100 models makes thousands of objects that outlive it: by default ten collections look at them meanwhile.
    gc.set_threshold(max(_YOUNG_OBJECTS, _YOUNG_OBJECTS_A_MODEL * models), _YOUNG_COLLECTIONS, _COLLECTIONS_BETWEEN_FULL_ONES)


def _mappings(smaps: str) -> Iterator[_Mapping]:
    current: _Mapping | None = None
    for line in smaps.splitlines():
        size = _SIZE.match(line)
        if size is None:
            if line[0].isupper():
                continue
            if current is not None:
                yield current
            header = _HEADER.match(line)
            read_only = header is not None and "w" not in header["rights"]
            current = _Mapping(int(header["start"], 16), int(header["end"], 16)) if header is not None and read_only else None
        elif current is not None:
            if size["name"] == "Rss":
                current.resident_kib = int(size["kib"])
            else:
                current.modified_kib = int(size["kib"])
    if current is not None:
        yield current
