"""Batched dense solves of small symmetric systems."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def cholesky_solve(
    matrix: NDArray[np.float64], rhs: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Solve n positive definite systems by Cholesky factorisation of the scaled matrices.

    Rows and columns are scaled to a unit diagonal first, so that units do not matter. The
    smallest squared pivot then tells how close to singular a system is: below 1e-10, say, the
    condition number of the scaled matrix is above 1e10.

    Parameters
    ----------
    matrix : (m, m, n) float64 array
        Symmetric.
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
        factor = matrix * scale[:, None] * scale
        smallest = np.ones(matrix.shape[2])
        for j in range(m):
            smallest = np.minimum(smallest, factor[j, j])
            factor[j:, j] /= np.sqrt(factor[j, j])
            below = factor[j + 1 :, j]
            factor[j + 1 :, j + 1 :] -= below[:, None] * below
        solution = rhs * scale
        for j in range(m):
            solution[j] /= factor[j, j]
            solution[j + 1 :] -= factor[j + 1 :, j] * solution[j]
        for j in reversed(range(m)):
            solution[j] /= factor[j, j]
            solution[:j] -= factor[j, :j] * solution[j]
        return solution * scale, smallest
