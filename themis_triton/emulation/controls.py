"""Controls of running emulated models for tests and experiments: slower service, failing initialisation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

SCALE_VARIABLE = "THEMIS_EMULATED_SCALE_FILE"
FAIL_VARIABLE = "THEMIS_EMULATED_FAIL_INIT_FILE"
_READ_INTERVAL_S = 0.2


class ScaleFile:
    """The service-time factor of one model, from a file that may change at any time.

    The file contains a JSON object of model names and factors, `{"video-detector": 1.4}`; the name `*` stands for every other model.
    Without the file or an entry the factor is 1. It is read at most five times a second. Replace it atomically, by a rename:
    invalid content is reported once through `warn`, and the last factor remains.
    """

    def __init__(self, path: Path, model: str, warn: Callable[[str], None]) -> None:
        self._path = path
        self._model = model
        self._warn = warn
        self._factor = 1.0
        self._text = ""
        self._read_at_s = float("-inf")

    def __call__(self) -> float:
        """The current factor."""
        now_s = time.monotonic()
        if now_s - self._read_at_s >= _READ_INTERVAL_S:
            self._read_at_s = now_s
            self._read()
        return self._factor

    def _read(self) -> None:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            text = "{}"
        if text == self._text:
            return
        self._text = text
        try:
            self._factor = _factor(json.loads(text), self._model)
        except (ValueError, TypeError, AttributeError) as error:
            self._warn(f"{self._path}: {text[:80]!r} is invalid: expected a JSON object of model names and factors above 0 ({error})")


def _factor(content: dict[str, float], model: str) -> float:
    factor = float(content.get(model, content.get("*", 1.0)))
    if not 0.0 < factor < float("inf"):
        raise ValueError(f"the factor {factor} is not above 0")
    return factor


def init_must_fail(path: Path, model: str) -> bool:
    """Whether a new instance of the model must fail: the file exists, and is empty or has a line with the model's name."""
    try:
        names = path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return False
    return not names or model in names
