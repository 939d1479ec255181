"""PEM files of addresses and listeners with TLS: whether they are other ones than before."""

from __future__ import annotations

from pathlib import Path

from themis_triton.core.address import Address


def pem_version(address: Address) -> str:
    """Identifies the address's PEM files as they are now, by inode, size and time of change; empty without TLS. Blocking."""
    if not address.tls:
        return ""
    return files_version(*(Path(file) for file in (address.ca, address.certificate, address.key) if file is not None))


def files_version(*files: Path) -> str:
    """Identifies files as they are now, as `pem_version` does. Blocking."""
    return "-".join(map(_version, files))


def _version(file: Path) -> str:
    try:
        stat = file.stat()
    except OSError:  # the next read of the file reports the error
        return "absent"
    return f"{stat.st_ino:x}.{stat.st_size:x}.{stat.st_mtime_ns:x}"
