"""The latency surface of an emulated model whose instances contend for one device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Surface:
    """`l(b, k) = α·b·k + β·b + γ·k + ζ` in ms: the paper's form with a share of the device in place of a number of cores."""

    alpha_ms: float
    beta_ms: float
    gamma_ms: float
    zeta_ms: float

    def service_ms(self, batch: int, busy: int) -> float:
        """Service time in ms of a batch of `batch` requests while `busy` instances in total are busy on the device."""
        return self.alpha_ms * batch * busy + self.beta_ms * batch + self.gamma_ms * busy + self.zeta_ms
