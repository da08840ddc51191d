"""Batched dense solves of small symmetric systems."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def cholesky_solve(
    matrix: NDArray[np.float64], rhs: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Solve n positive definite systems by Cholesky factorisation of the scaled matrices.

    Rows and columns are scaled to a unit diagonal first, so that units do not matter. The
    smallest squared pivot then tells how close to singular a system is: it is not above
    the smallest eigenvalue's bound ``m / condition number``.

    Parameters
    ----------
    matrix : (m, m, n) float64 array
        The lower triangle is read.
    rhs : (m, n) float64 array

    Returns
    -------
    solution : (m, n) float64 array
        Meaningless where the smallest pivot is not positive.
    smallest_pivot : (n,) float64 array
        Smallest squared pivot of the scaled matrix, between 0 and 1 if it is positive definite;
        NaN or negative if it is not.
    """
    m = len(matrix)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = 1 / np.sqrt(matrix[np.arange(m), np.arange(m)])
        factor = np.zeros_like(matrix)
        smallest = np.ones(matrix.shape[2])
        for j in range(m):
            for i in range(j, m):
                value = matrix[i, j] * scale[i] * scale[j]
                for k in range(j):
                    value = value - factor[i, k] * factor[j, k]
                if i == j:
                    smallest = np.minimum(smallest, value)
                    factor[j, j] = np.sqrt(value)
                else:
                    factor[i, j] = value / factor[j, j]
        solution = rhs * scale
        for j in range(m):
            for k in range(j):
                solution[j] -= factor[j, k] * solution[k]
            solution[j] /= factor[j, j]
        for j in reversed(range(m)):
            for k in range(j + 1, m):
                solution[j] -= factor[k, j] * solution[k]
            solution[j] /= factor[j, j]
        return solution * scale, smallest
