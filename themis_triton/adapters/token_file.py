"""The token of the status API, in a file that others on the machine cannot read. Only the standard library: client commands load it."""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path

from themis_triton.core.errors import EnvironmentCheckError

TOKEN_WORDS = "a file with 16 to 4096 characters of letters, digits and -._~+/="  # noqa: S105 - words about tokens
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]{16,4096}=*")
_MAX_BYTES = 8192


def make_token(file: Path) -> None:
    """Create the file with a random token and mode 0600, whole or not at all; one that is there stays.

    EnvironmentCheckError when it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as handle:
                handle.write(secrets.token_urlsafe(32) + "\n")
                handle.flush()
                os.fsync(handle.fileno())
            os.link(draft, file)
        except FileExistsError:
            return
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentCheckError(f"{file}: the token of the status API cannot be written ({error.strerror})") from error


def read_token(file: Path) -> str:
    """The token. EnvironmentCheckError, which never has the token in it, when there is none or other users may read the file."""
    try:
        with file.open("rb") as handle:
            mode = os.fstat(handle.fileno()).st_mode
            content = handle.read(_MAX_BYTES).decode("ascii").strip()
    except OSError as error:
        raise EnvironmentCheckError(f"{file}: the token of the status API cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        content = ""
    if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
        words = f"{file}: any user of this machine can use it (mode {stat.S_IMODE(mode):04o}): expected 0600. Fix: chmod 600 {file}"
        raise EnvironmentCheckError(words)
    if _TOKEN.fullmatch(content) is None:
        raise EnvironmentCheckError(f"{file}: there is no token in it: expected {TOKEN_WORDS}. Fix: openssl rand -hex 32 > {file}")
    return content
