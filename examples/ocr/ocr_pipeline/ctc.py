"""Greedy decoding of a CTC recogniser's output (Graves et al., 2006)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BLANK = 0


def alphabet(characters: str) -> tuple[str, ...]:
    """Symbols by class index: the blank, the symbols of a model's list (one per line), the space."""
    return ("", *characters.split("\n"), " ")


def decode(probability: NDArray[np.float32], symbols: Sequence[str]) -> tuple[list[str], NDArray[np.float32]]:
    """Texts and their mean symbol probabilities.

    Args:
        probability: [n, steps, classes], rows that sum to 1.
        symbols: the alphabet, by class.

    Returns:
        n texts, and float32 [n] scores in 0..1; an empty text scores 0.
    """
    best = probability.argmax(axis=2)
    peak = probability.max(axis=2)
    repeats = np.zeros(best.shape, dtype=bool)
    repeats[:, 1:] = best[:, 1:] == best[:, :-1]
    kept = (best != _BLANK) & ~repeats
    texts = ["".join(symbols[index] for index in row[keep]) for row, keep in zip(best, kept, strict=True)]
    scores = [row[keep].mean() if keep.any() else 0.0 for row, keep in zip(peak, kept, strict=True)]
    return texts, np.array(scores, dtype=np.float32)
