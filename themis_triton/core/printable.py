"""Text from outside, such as names and answers of servers, as text that a terminal shows and does not obey."""

from __future__ import annotations

import re

# Control characters but tab and line feed, marks that reorder text, separators of lines, and halves of characters.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with each such character as its escape: a backslash and its number."""
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def one_line(text: str) -> str:
    """The text with each run of spaces and line breaks as one space: reasons of servers contain their tracebacks."""
    return " ".join(text.split())
