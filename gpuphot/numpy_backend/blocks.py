"""Solves of symmetric systems: dense ones in batches, and those of groups, in blocks if large."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotrs
from scipy.sparse import coo_array, csr_array

from gpuphot.models.groups import (
    CORE,
    MAX_BLOCK,
    MAX_DENSE,
    MAX_INFLATION,
    MAX_SWEEPS,
    MIN_PIVOT,
    NEGLIGIBLE_CHANGE,
    WELL_DETERMINED,
)

from .chunks import chunks, ranges
from .sums import group_sums, row_sums

MATRICES = 1 << 20
"""Elements of the dense matrices that are inverted at once."""

SMALL = 16
"""Rows of a matrix that is inverted element by element."""


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


def inverse_factor(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse L^-1 of the Cholesky factor of n matrices with unit diagonal, M = L L^T.

    A row that depends on earlier ones has a squared pivot next to nothing. Those below
    1 / `MAX_INFLATION` are left out of what follows: `is_dependent` tells them. Their own rows of
    the result say how they depend on others; without them, the rest is the inverse factor of the
    matrix without them.

    Works by halves, so that nearly all of it is products of matrices.

    Parameters
    ----------
    matrix : (n, m, m) float64 array
        Symmetric; the lower triangles are read.

    Returns
    -------
    (n, m, m) float64 array
        Lower triangular.
    """
    m = matrix.shape[1]
    if m <= SMALL:
        return _small_inverse_factor(matrix)
    half = m // 2
    inverse = np.zeros(matrix.shape)
    upper_left = inverse_factor(matrix[:, :half, :half])
    independent = np.where(is_dependent(upper_left)[:, :, None], 0, upper_left)
    below = matrix[:, half:, :half] @ independent.swapaxes(1, 2)
    lower_right = inverse_factor(matrix[:, half:, half:] - below @ below.swapaxes(1, 2))
    inverse[:, :half, :half] = upper_left
    inverse[:, half:, half:] = lower_right
    inverse[:, half:, :half] = -lower_right @ (below @ independent)
    return inverse


def is_dependent(factor: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows (n, m) of inverse factors depend on earlier ones."""
    return np.square(np.einsum("nkk->nk", factor)) > MAX_INFLATION


def _small_inverse_factor(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same element by element, for all matrices at once."""
    m = matrix.shape[1]
    factor = np.ascontiguousarray(matrix.transpose(1, 2, 0))
    inverse = np.zeros(factor.shape)
    for j in range(m):
        pivot = np.sqrt(np.maximum(factor[j, j], MIN_PIVOT))
        inverse[j, j] += 1
        inverse[j] /= pivot
        dependent = np.square(inverse[j, j]) > MAX_INFLATION
        below = np.where(dependent, 0, factor[j + 1 :, j] / pivot)
        factor[j + 1 :, j + 1 :] -= below[:, None] * below
        inverse[j + 1 :] -= below[:, None] * inverse[j]
    return inverse.transpose(2, 0, 1)


@dataclass(frozen=True)
class NormalEquations:
    """What determines the fluxes of M members of groups: sums over the pixels of their group.

    P is a member's stamp, D the data and V the variance of the pixels.

    Attributes
    ----------
    i, j : (n_pairs,) integer arrays
        Members whose stamps overlap, i < j.
    products, noise_products : (n_pairs,) float64 arrays
        Sums of P_i P_j, and of P_i P_j V; one array for both saves time if all are the same.
    power, noise, rhs, light, light_noise : (M,) float64 arrays
        Sums of P P, P P V, P D, P and P V.
    own_area, own_data, own_noise : (M,) float64 arrays
        Number of pixels, sums of D and of V over the pixels that are the member's own.
    group : (M,) integer array
        From 0 on.
    has_constant : (M,) bool array
        Whether a constant is fitted to the group along with the fluxes.
    """

    i: NDArray[np.intp]
    j: NDArray[np.intp]
    products: NDArray[np.float64]
    noise_products: NDArray[np.float64]
    power: NDArray[np.float64]
    noise: NDArray[np.float64]
    rhs: NDArray[np.float64]
    light: NDArray[np.float64]
    light_noise: NDArray[np.float64]
    own_area: NDArray[np.float64]
    own_data: NDArray[np.float64]
    own_noise: NDArray[np.float64]
    group: NDArray[np.intp]
    has_constant: NDArray[np.bool_]


@dataclass(frozen=True)
class GroupSolution:
    """Fluxes of M members, their variances, and the constant of their groups.

    `singular` are those whose variance the others inflate more than `MAX_INFLATION` times. Of
    members that coincide, the last ones have a flux of 0, the first one that of all.
    """

    flux: NDArray[np.float64]
    variance: NDArray[np.float64]
    constant: NDArray[np.float64]
    singular: NDArray[np.bool_]


def solve_groups(
    equations: NormalEquations,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    halo: float | NDArray[np.float64],
) -> GroupSolution:
    """Solve the normal equations of all groups.

    A group of up to 64 members is one dense system. Larger ones are cut into cores of 32 pixels:
    the members of a core and those up to `halo` around it make a dense system, whose solution
    counts for the core. What is left of the right-hand sides then is solved for again, round by
    round; for small groups this polishes the rounding errors. The constant of a group is a
    border around its matrix, eliminated at the end.

    Parameters
    ----------
    equations : NormalEquations
    x, y : (M,) float64 arrays
        Positions of the members.
    halo : float or (M,) float64 array
        In pixels, the same in a group. The variances leave out what the inverse has beyond it.

    Returns
    -------
    GroupSolution
    """
    normal = _symmetric(equations, equations.products, equations.power)
    noise = normal
    if equations.noise_products is not equations.products:
        noise = _symmetric(equations, equations.noise_products, equations.noise)
    variance, inflation = np.zeros(len(x)), np.full(len(x), np.inf)
    systems = []
    for members, n_core in _systems(equations.group, x, y, np.broadcast_to(halo, len(x))):
        inverse, core_variance, core_inflation = _invert(normal, noise, members, n_core)
        systems.append((members, inverse))
        core = members[:, :n_core]
        variance[core], inflation[core] = core_variance, core_inflation
    unit = np.where(
        (inflation <= WELL_DETERMINED) & (variance > 0), np.sqrt(np.maximum(variance, 0)), np.inf
    )
    flux = _sweep(systems, normal, equations.rhs, unit)
    constant = np.zeros(len(x))
    if equations.has_constant.any():
        with_constant = _Border(equations, systems, normal, noise)
        constant = with_constant.constant(flux)
        flux = flux - constant * with_constant.response
        variance = variance + with_constant.variance()
        inflation = inflation + with_constant.inflation()
    singular = ~(inflation <= MAX_INFLATION)
    return GroupSolution(flux, np.maximum(variance, 0), constant, singular)


def _symmetric(equations: NormalEquations, off_diagonal: NDArray, diagonal: NDArray) -> csr_array:
    """Sparse matrix (M, M), the columns of each row in order."""
    n = len(diagonal)
    k = np.arange(n)
    rows = np.concatenate([equations.i, equations.j, k])
    columns = np.concatenate([equations.j, equations.i, k])
    values = np.concatenate([off_diagonal, off_diagonal, diagonal])
    matrix = coo_array((values, (rows, columns)), shape=(n, n)).tocsr()
    matrix.sort_indices()
    return matrix


def _systems(
    group: NDArray[np.intp], x: NDArray, y: NDArray, halo: NDArray
) -> Iterator[tuple[NDArray[np.intp], int]]:
    """Members (n_systems, m) of dense systems of one size, of which the first ones are the core."""
    by_group = np.argsort(group, kind="stable")
    start = np.flatnonzero(np.diff(group[by_group], prepend=-1))
    size = np.diff(start, append=len(group))
    for m in np.unique(size[size <= MAX_DENSE]):
        members = by_group[start[size == m][:, None] + np.arange(m)]
        for part in chunks(len(members), m * m, MATRICES):
            yield members[part], int(m)
    for first, count in zip(start[size > MAX_DENSE], size[size > MAX_DENSE], strict=True):
        members = by_group[first : first + count]
        yield from _blocks(members, x, y, float(halo[members[0]]))


def _blocks(
    members: NDArray[np.intp], x: NDArray, y: NDArray, halo: float
) -> Iterator[tuple[NDArray[np.intp], int]]:
    """Systems of the cores of one group, one by one."""
    row, column = (np.floor(v[members] / CORE).astype(np.intp) for v in (y, x))
    reach = math.ceil(halo / CORE)
    stride = column.max() - column.min() + 2 * reach + 1
    key = (row - row.min()) * stride + column - column.min() + reach
    order = np.argsort(key, kind="stable")
    members, key = members[order], key[order]
    for first in np.flatnonzero(np.diff(key, prepend=-1)):
        cell = key[first]
        stop = np.searchsorted(key, cell, side="right")
        rows_of_cells = cell + stride * np.arange(-reach, reach + 1)
        around = [
            members[np.searchsorted(key, k - reach) : np.searchsorted(key, k + reach, side="right")]
            for k in rows_of_cells
        ]
        core, near = members[first:stop], np.concatenate(around)
        left, low = CORE * np.floor(x[core[0]] / CORE), CORE * np.floor(y[core[0]] / CORE)
        off_x = np.maximum(left - x[near], x[near] - (left + CORE))
        off_y = np.maximum(low - y[near], y[near] - (low + CORE))
        inside = near[(off_x <= halo) & (off_y <= halo)]
        rest = np.setdiff1d(inside, core, assume_unique=True)
        if len(inside) <= MAX_BLOCK:
            yield np.concatenate([core, rest])[None], len(core)


def _invert(
    normal: csr_array, noise: csr_array, members: NDArray[np.intp], n_core: int
) -> tuple[NDArray, NDArray, NDArray]:
    """Rows of the inverse, variances and inflations of variance for the cores of systems.

    Returns
    -------
    inverse : (n_systems, n_core, m) float64 array
    variance, inflation : (n_systems, n_core) float64 arrays
    """
    matrix, noise_matrix = _dense(members, normal, noise)
    diagonal = np.einsum("nkk->nk", matrix)
    scale = np.zeros(diagonal.shape)
    np.divide(1, np.sqrt(diagonal), out=scale, where=diagonal > 0)
    matrix *= scale[:, :, None] * scale[:, None, :]
    # A block is alone; how systems that come in batches are inverted may not depend on company.
    rows = _rows_of_inverse(matrix[0], n_core) if n_core < matrix.shape[1] else None
    if rows is None:
        factor = inverse_factor(matrix)
        inflation = np.square(factor[:, :, :n_core]).sum(axis=1)
        factor = np.where(is_dependent(factor)[:, :, None], 0, factor)
        inverse = factor[:, :, :n_core].swapaxes(1, 2) @ factor
    else:
        inflation, inverse = rows.diagonal()[None], rows[None]
    inverse = inverse * (scale[:, :n_core, None] * scale[:, None, :])
    if noise is normal:
        return inverse, inverse.diagonal(axis1=1, axis2=2), inflation
    spread = inverse @ noise_matrix
    return inverse, _last_axis_sums(spread, inverse), inflation


def _rows_of_inverse(matrix: NDArray[np.float64], n_rows: int) -> NDArray[np.float64] | None:
    """The first rows of the inverse of a matrix with unit diagonal; None if rows depend on others.

    Much faster than the factor of the whole inverse.
    """
    factor, failed = dpotrf(matrix.T, lower=True, clean=False)
    if failed or np.square(factor.diagonal()).min() * MAX_INFLATION < 1:
        return None
    columns, _ = dpotrs(factor, np.eye(len(matrix), n_rows), lower=True)
    return np.ascontiguousarray(columns.T)


def _dense(members: NDArray[np.intp], *sparse: csr_array) -> list[NDArray[np.float64]]:
    """The matrices (n_systems, m, m) of systems that share no member.

    Of several sparse matrices with the same elements. The cost is that of the systems, however
    many members there are elsewhere.
    """
    n_systems, m = members.shape
    flat = members.ravel()
    begin = sparse[0].indptr[flat]
    n = sparse[0].indptr[flat + 1] - begin
    element, row = ranges(begin, n), np.repeat(np.arange(len(flat)), n)
    by_member = np.argsort(flat)
    member = sparse[0].indices[element]
    place = np.searchsorted(flat[by_member], member)
    place = by_member[np.minimum(place, len(flat) - 1)]
    inside = (flat[place] == member) & (place // m == row // m)
    element, row, column = element[inside], row[inside], place[inside] % m
    matrices = [np.zeros((n_systems, m, m)) for _ in sparse]
    for dense, matrix in zip(matrices, sparse, strict=True):
        dense[row // m, row % m, column] = matrix.data[element]
    return matrices


def _sweep(
    systems: list[tuple[NDArray[np.intp], NDArray]],
    normal: csr_array,
    rhs: NDArray[np.float64],
    unit: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Solution (M,) of the normal equations, as exact as the units of its elements ask for.

    Ends when a round changes next to nothing, or does not change less than the one before: the
    rest is rounding errors.
    """
    solution, largest = np.zeros(len(rhs)), np.inf
    for _ in range(MAX_SWEEPS):
        left = rhs - normal @ solution
        change = np.zeros(len(rhs))
        for members, inverse in systems:
            core = members[:, : inverse.shape[1]]
            change[core] = _last_axis_sums(inverse, left[members][:, None, :])
        solution += change
        relative = np.abs(change / unit)
        before, largest = largest, relative[np.isfinite(relative)].max(initial=0)
        if not NEGLIGIBLE_CHANGE < largest < before / 2:
            break
    return solution


def _last_axis_sums(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of products over the last axis."""
    product = a * b
    return row_sums(product.reshape(-1, product.shape[-1])).reshape(product.shape[:-1])


class _Border:
    """The constant of each group, as a border of its normal matrix: products with a stamp of 1.

    Attributes
    ----------
    response : (M,) float64 array
        How a constant of 1 changes the fluxes.
    """

    def __init__(
        self,
        equations: NormalEquations,
        systems: list[tuple[NDArray[np.intp], NDArray]],
        normal: csr_array,
        noise: csr_array,
    ) -> None:
        self._equations = equations
        self._systems = systems
        self._noise = noise
        typical = equations.light / np.where(equations.power > 0, equations.power, 1)
        unit = np.where(typical > 0, typical, np.inf)
        self.response = np.where(
            equations.has_constant, _sweep(systems, normal, equations.light, unit), 0
        )
        area = self._total(equations.own_area)
        pivot = area - self._total(equations.light * self.response)
        # A group without pixels, or without a constant, has a constant of 0.
        fitted = equations.has_constant & (area > 0)
        self._pivot = np.where(fitted, np.maximum(pivot, MIN_PIVOT * area), np.inf)

    def _total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum over the group of each member."""
        return group_sums(values, self._equations.group)[self._equations.group]

    def constant(self, flux: NDArray[np.float64]) -> NDArray[np.float64]:
        """Constant of each member's group, from fluxes that were solved without it."""
        e = self._equations
        return (self._total(e.own_data) - self._total(e.light * flux)) / self._pivot

    def inflation(self) -> NDArray[np.float64]:
        """What the constant adds to the inflation of variances."""
        return self._equations.power * self.response * self.response / self._pivot

    def variance(self) -> NDArray[np.float64]:
        """What the constant adds to the variances."""
        e, ratio = self._equations, self.response / self._pivot
        change = self._noise @ self.response - e.light_noise
        mixed = np.zeros(len(ratio))
        for members, inverse in self._systems:
            core = members[:, : inverse.shape[1]]
            mixed[core] = _last_axis_sums(inverse, change[members][:, None, :])
        spread = self._total(e.own_noise) + self._total(self.response * (change - e.light_noise))
        return 2 * ratio * mixed + ratio * ratio * spread
