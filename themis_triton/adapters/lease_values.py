"""Records of leases as JSON."""

from __future__ import annotations

import json

from themis_triton.core.decoding import decode
from themis_triton.core.encoding import parsed_json, plain
from themis_triton.core.errors import ServerError
from themis_triton.core.lease import Handover, LeaseRecord


def record_text(record: LeaseRecord) -> str:
    """A record as a text."""
    return json.dumps(plain(record))


def record_of(text: str, where: str) -> LeaseRecord:
    """The record of a text. ServerError where it is none, so that no sidecar leads by it."""
    try:
        return decode(LeaseRecord, parsed_json(text))
    except ValueError as error:
        raise ServerError(f"{where} is no lease of this version of Themis ({error}). Fix: update all sidecars, or remove it") from error


def handover_text(handover: Handover) -> str:
    """What a leader leaves, as a text."""
    return json.dumps(plain(handover))


def handover_of(text: str) -> Handover:
    """What a leader left; nothing where the text is of another version: the engine tells what runs."""
    try:
        return decode(Handover, parsed_json(text))
    except ValueError:
        return Handover()
