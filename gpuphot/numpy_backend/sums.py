"""Sums over the pixels of many sources, each in an order that its own pixels alone decide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SEGMENT = 4096
"""Pixels that one call of einsum sums. Beyond 8192 it works through a buffer, and where a row is
cut would then depend on the rows before it."""


def row_sums(
    values: NDArray[np.float64], factor: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Sum of each row, by einsum because that uses no BLAS and stores no product.

    Parameters
    ----------
    values : (n, P) array
    factor : (n, P) or (P,) array, optional
        Multiplied with the values.

    Returns
    -------
    (n,) float64 array
    """
    total = np.zeros(len(values))
    for start in range(0, values.shape[1], SEGMENT):
        part = np.s_[..., start : start + SEGMENT]
        if factor is None:
            total += np.einsum("np->n", values[part])
        elif factor.ndim == 1:
            total += np.einsum("np,p->n", values[part], factor[part])
        else:
            total += np.einsum("np,np->n", values[part], factor[part])
    return total


def group_sums(values: NDArray[np.float64], group: NDArray[np.intp]) -> NDArray[np.float64]:
    """Sums of the members' values over each group, in the order of the members."""
    by_group = np.argsort(group, kind="stable")
    start = np.flatnonzero(np.diff(group[by_group], prepend=-1))
    return np.add.reduceat(values[by_group], start) if len(start) else values
