"""Polynomials of two variables."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def n_terms(degree: int) -> int:
    """Number of terms of a polynomial of two variables."""
    return (degree + 1) * (degree + 2) // 2


def polynomial_terms(
    x: NDArray[np.float64], y: NDArray[np.float64], degree: int
) -> NDArray[np.float64]:
    """Terms of a polynomial of two variables: 1, x, x^2, ..., y, x y, ..., y^2, ...

    Parameters
    ----------
    x, y : (N,) float64 arrays
    degree : int

    Returns
    -------
    (N, n_terms(degree)) float64 array
    """
    terms = np.ones((len(x), n_terms(degree)))
    first = 0
    power_y = np.ones(len(x))
    for q in range(degree + 1):
        term = power_y
        for p in range(degree + 1 - q):
            terms[:, first + p] = term
            term = term * x
        first += degree + 1 - q
        power_y = power_y * y
    return terms
