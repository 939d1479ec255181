"""The `parameters` of an emulated model's `config.pbtxt`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from themis_triton.emulation.controls import FAIL_VARIABLE, SCALE_VARIABLE
from themis_triton.emulation.surface import Surface

_REQUIRED = ("alpha_ms", "beta_ms", "gamma_ms", "zeta_ms", "init_s", "offset")


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of one emulated model.

    Attributes:
        alpha_ms: α, ms for each request of a batch and busy instance.
        beta_ms: β, ms for each request of a batch.
        gamma_ms: γ, ms for each busy instance.
        zeta_ms: ζ, ms for each batch.
        init_s: initialisation time of an instance, in s.
        offset: the model responds `OUTPUT = INPUT·2 + offset`.
        noise_cv: coefficient of variation of a lognormal factor of mean 1 on each batch's service time.
        service_scale: constant factor on the service time.
        scale_file: see `ScaleFile`; default: the environment's `THEMIS_EMULATED_SCALE_FILE`.
        fail_init_file: see `init_must_fail`; default: the environment's `THEMIS_EMULATED_FAIL_INIT_FILE`.
    """

    alpha_ms: float
    beta_ms: float
    gamma_ms: float
    zeta_ms: float
    init_s: float
    offset: float
    noise_cv: float = 0.0
    service_scale: float = 1.0
    scale_file: str = ""
    fail_init_file: str = ""

    @property
    def surface(self) -> Surface:
        """The surface, including the constant factor."""
        scale = self.service_scale
        return Surface(self.alpha_ms * scale, self.beta_ms * scale, self.gamma_ms * scale, self.zeta_ms * scale)

    def scale_path(self, environment: Mapping[str, str]) -> Path | None:
        """The file that scales the service time at run time, if any."""
        return _path(self.scale_file, environment.get(SCALE_VARIABLE))

    def fail_init_path(self, environment: Mapping[str, str]) -> Path | None:
        """The file whose presence makes initialisation fail, if any."""
        return _path(self.fail_init_file, environment.get(FAIL_VARIABLE))


def _path(parameter: str, variable: str | None) -> Path | None:
    name = parameter or variable
    return Path(name) if name else None


def read_parameters(model: str, config: Mapping[str, Any]) -> Parameters:
    """The parameters in a model configuration (Triton's JSON form).

    Keys in capitals belong to the Python backend and are ignored.

    Raises:
        ValueError: a key is missing, unknown or out of range; the message names model, key, value and expected values.
    """
    given = {key: str(value.get("string_value", "")) for key, value in config.get("parameters", {}).items() if not key.isupper()}
    known = [field.name for field in fields(Parameters)]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(
            f"{model}/config.pbtxt: unknown parameter {', '.join(unknown)}: expected {', '.join(known)}. Fix: correct the name"
        )
    if missing := [key for key in _REQUIRED if key not in given]:
        raise ValueError(f"{model}/config.pbtxt: parameter {', '.join(missing)} is missing: expected {', '.join(_REQUIRED)}. Fix: add it")
    values: dict[str, Any] = {key: text if key.endswith("_file") else _number(model, key, text) for key, text in given.items()}
    return _checked(model, Parameters(**values))


def _number(model: str, key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{model}/config.pbtxt: parameter {key}: {text!r} is invalid: expected a number. Fix: correct it")
    if value < 0 and key != "offset":
        raise ValueError(f"{model}/config.pbtxt: parameter {key}: {text} is invalid: expected at least 0. Fix: correct it")
    return value


def _checked(model: str, parameters: Parameters) -> Parameters:
    shortest_ms = parameters.surface.service_ms(1, 1)
    if shortest_ms <= 0:
        raise ValueError(
            f"{model}/config.pbtxt: the service time of one request is {shortest_ms} ms: expected more than 0. "
            "Fix: raise service_scale, or one of alpha_ms, beta_ms, gamma_ms, zeta_ms"
        )
    return parameters
