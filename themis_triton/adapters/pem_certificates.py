"""What PEM files hold: whether a key belongs to a certificate, and until when certificates are valid. Only the standard library."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x17, 0x18, 0xA0


class PemError(Exception):
    """A PEM file cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class Validity:
    """When certificates of a file are valid: the latest begin and the earliest end."""

    begins: datetime
    ends: datetime


def check_pair(certificate: Path, key: Path) -> None:
    """Raise PemError unless the private key is that of the file's first certificate, and is not encrypted."""
    validity(certificate)
    try:
        _ = key.read_bytes()
        # A password must not be asked for on a terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise PemError(f"{key} is not the key of {certificate}") from error
        raise PemError(f"{key} has no private key, or an encrypted one") from error
    except OSError as error:
        raise PemError(f"{key} cannot be read ({error.strerror})") from error


def validity(file: Path) -> Validity:
    """When all certificates of a file are valid. PemError when there is none, or one that cannot be parsed."""
    try:
        text = file.read_text(encoding="ascii", errors="replace")
        periods = [_period(ssl.PEM_cert_to_DER_cert(block)) for block in _BLOCK.findall(text)]
    except OSError as error:
        raise PemError(f"{file} cannot be read ({error.strerror})") from error
    except (ValueError, IndexError) as error:
        raise PemError(f"{file} has a certificate that cannot be parsed") from error
    if not periods:
        raise PemError(f"{file} has no certificate in PEM form")
    return Validity(max(begins for begins, _ in periods), min(ends for _, ends in periods))


def _period(der: bytes) -> tuple[datetime, datetime]:
    """`notBefore` and `notAfter` of a certificate (RFC 5280, section 4.1). ValueError when it is none."""
    (_, signed), *_ = _values(der)
    (_, certificate), *_ = _values(signed)
    fields = [value for tag, value in _values(certificate) if tag != _VERSION]
    begins, ends = (_time(tag, value) for tag, value in _values(fields[3]))
    return begins, ends


def _values(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The tags and contents of DER values that follow each other."""
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size]), at + size
        if at + length > len(data):
            raise ValueError("a value is longer than what holds it")
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, value: bytes) -> datetime:
    if tag not in {_UTC_TIME, _GENERALIZED_TIME}:
        raise ValueError(f"tag {tag} is no time")
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(value.decode("ascii"), form).replace(tzinfo=UTC)
