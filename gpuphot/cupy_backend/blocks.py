"""Solves of the normal equations of groups, in blocks if large.

Twin of ``numpy_backend.blocks``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np

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

from .launch import blocks, launch, workspace_items
from .neighbours import Neighbours

_WARPS = 4
_MAX_SYSTEMS_AT_ONCE = 1024
"""Blocks of threads that invert matrices, each with its own workspace. More than a GPU holds."""


@dataclass(frozen=True)
class NormalEquations:
    """What determines the fluxes of M members of groups: sums over the pixels of their group.

    P is a member's stamp, D the data and V the variance of the pixels.

    Attributes
    ----------
    neighbours : Neighbours
        Members whose stamps overlap.
    products, noise_products : (total,) float64 arrays
        Sums of P_i P_j and of P_i P_j V, for each neighbour in the lists.
    power, noise, rhs, light, light_noise : (M,) float64 arrays
        Sums of P P, P P V, P D, P and P V.
    own_area, own_data, own_noise : (M,) float64 arrays
        Number of pixels, sums of D and of V over the pixels that are the member's own.
    group_begin, group_end : (M,) int32 arrays
        The members of each one's group.
    has_constant : (M,) bool array
        Whether a constant is fitted to the group along with the fluxes.
    """

    neighbours: Neighbours
    products: Any
    noise_products: Any
    power: Any
    noise: Any
    rhs: Any
    light: Any
    light_noise: Any
    own_area: Any
    own_data: Any
    own_noise: Any
    group_begin: Any
    group_end: Any
    has_constant: Any


@dataclass(frozen=True)
class GroupSolution:
    """Fluxes of M members, their variances, the constant of their groups, and who is singular."""

    flux: Any
    variance: Any
    constant: Any
    singular: Any


def group_totals(values: Any, group_begin: Any, group_end: Any) -> Any:
    """Sum over the group of each member."""
    n = len(values)
    total = cupy.empty(n)
    launch("group_totals", blocks(n, 8), (values, group_begin, group_end, np.int32(n), total))
    return total


def solve_groups(equations: NormalEquations, x: Any, y: Any, halo: Any) -> GroupSolution:
    """Solve the normal equations of all groups.

    Parameters
    ----------
    equations : NormalEquations
    x, y, halo : (M,) float64 arrays
        Positions of the members, and how far from a core its block reaches.
    """
    systems = _list_systems(equations, x, y, halo)
    inverse = _Inverse(equations, systems)
    variance, inflation = inverse.variance, inverse.inflation
    well_determined = (inflation <= WELL_DETERMINED) & (variance > 0)
    unit = cupy.sqrt(cupy.where(well_determined, variance, cupy.inf))
    flux = inverse.solve(equations.rhs, unit)
    constant = cupy.zeros(len(x))
    if bool(equations.has_constant.any()):
        border = _Border(equations, inverse)
        constant = border.constant(flux)
        flux = flux - constant * border.response
        variance = variance + border.variance()
        inflation = inflation + border.inflation()
    singular = ~(inflation <= MAX_INFLATION)
    return GroupSolution(flux, cupy.maximum(variance, 0), constant, singular)


@dataclass(frozen=True)
class _Systems:
    """Dense systems: a group, or a core of a large one with the members around it.

    Attributes
    ----------
    core_order : (M,) int32 array
        Members sorted by the system whose core they belong to.
    system : (M,) int32 array
        The systems of these.
    core_begin : (n_systems + 1,) int32 array
        Where the core of each system begins in `core_order`.
    count, offset : (n_systems,) arrays
        Number of members of each system, 0 if it is too large, and where they begin in `list`.
    list : (total,) int32 array
        Members of the systems, first those of the core.
    largest : int
        The largest number of members.
    inverse_offset : (n_systems,) int64 array
        Where the rows of the inverse of each system begin.
    inverse_size : int
        Elements of all these rows.
    """

    core_order: Any
    system: Any
    core_begin: Any
    count: Any
    offset: Any
    list: Any
    largest: int
    inverse_offset: Any
    inverse_size: int


def _list_systems(equations: NormalEquations, x: Any, y: Any, halo: Any) -> _Systems:
    begin, end = equations.group_begin, equations.group_end
    is_block = end - begin > MAX_DENSE
    cells = [cupy.where(is_block, cupy.floor(v / CORE), 0).astype(cupy.int32) for v in (y, x)]
    core_order, system, core_begin = _cores(begin, *cells)
    n_systems = len(core_begin) - 1
    count, offset = cupy.empty(n_systems, cupy.int32), cupy.zeros(n_systems + 1, cupy.int64)
    listed = cupy.empty(1, cupy.int32)

    def run(listing: bool) -> None:
        launch(
            "list_systems",
            blocks(n_systems, _WARPS),
            (
                core_order, core_begin, np.int32(n_systems), x, y, *cells, begin, end, halo,
                is_block.view(cupy.uint8), np.float64(CORE), np.int32(MAX_BLOCK),
                np.int32(listing), offset, count, listed,
            ),
        )  # fmt: skip

    run(listing=False)
    rows = (core_begin[1:] - core_begin[:-1]).astype(cupy.int64)
    inverse_offset = cupy.zeros(n_systems + 1, cupy.int64)
    offset[1:] = cupy.cumsum(count, dtype=cupy.int64)
    inverse_offset[1:] = cupy.cumsum(rows * count, dtype=cupy.int64)
    total, inverse_size, largest = cupy.asnumpy(
        cupy.stack([offset[-1], inverse_offset[-1], count.max().astype(cupy.int64)])
    ).tolist()
    listed = cupy.empty(max(1, total), cupy.int32)
    run(listing=True)
    return _Systems(
        core_order, system, core_begin, count, offset, listed, largest, inverse_offset,
        inverse_size,
    )  # fmt: skip


def _cores(group: Any, cell_row: Any, cell_column: Any) -> tuple[Any, Any, Any]:
    """Members by system, the system of each of these, and where each system's core begins."""
    n = len(group)
    keys = cupy.stack([cupy.arange(n, dtype=cupy.int32), cell_column, cell_row, group])
    order = cupy.lexsort(keys)
    sorted_keys = keys[1:, order]
    starts = cupy.zeros(n, cupy.int32)
    starts[1:] = (sorted_keys[:, 1:] != sorted_keys[:, :-1]).any(axis=0)
    system = cupy.cumsum(starts, dtype=cupy.int64)
    n_systems = int(system[-1]) + 1
    begin = cupy.searchsorted(system, cupy.arange(n_systems + 1))
    return order.astype(cupy.int32), system.astype(cupy.int32), begin.astype(cupy.int32)


class _Inverse:
    """Rows of the inverse of each system for the members of its core.

    Attributes
    ----------
    variance, inflation : (M,) float64 arrays
        Variances of the members, and how much larger the others of their group make them.
    """

    def __init__(self, equations: NormalEquations, systems: _Systems) -> None:
        n, near = len(equations.power), equations.neighbours
        self._equations, self._systems = equations, systems
        self.variance, self.inflation = cupy.zeros(n), cupy.full(n, cupy.inf)
        self._rows = cupy.empty(max(1, systems.inverse_size))
        n_systems, largest = len(systems.count), systems.largest
        n_blocks = min(
            n_systems, _MAX_SYSTEMS_AT_ONCE, workspace_items(8 * largest * (largest + 2))
        )
        workspace = cupy.empty(n_blocks * largest * (largest + 2))
        launch(
            "invert_systems",
            n_blocks,
            (
                *near.arguments, equations.products, equations.power, equations.noise_products,
                equations.noise, systems.core_begin, systems.count, systems.list, systems.offset,
                np.int32(n_systems), np.int32(largest), np.float64(MIN_PIVOT),
                np.float64(MAX_INFLATION), workspace,
                systems.inverse_offset, self._rows, self.variance, self.inflation,
            ),
        )  # fmt: skip

    def add_product(self, vector: Any, result: Any) -> None:
        """Add the product with a vector (M,) to a result."""
        n, systems = len(vector), self._systems
        launch(
            "add_inverse_product",
            blocks(n, _WARPS),
            (
                systems.core_order, systems.system, systems.core_begin, systems.count,
                systems.list, systems.offset, self._rows, systems.inverse_offset, vector,
                np.int32(n), result,
            ),
        )  # fmt: skip

    def solve(self, rhs: Any, unit: Any) -> Any:
        """Solution (M,) of the normal equations, as exact as the units of its elements ask for."""
        solution, largest = cupy.zeros(len(rhs)), math.inf
        left = cupy.empty(len(rhs))
        e = self._equations
        for _ in range(MAX_SWEEPS):
            subtract_product(e.neighbours, e.products, e.power, rhs, solution, left)
            change = cupy.zeros(len(rhs))
            self.add_product(left, change)
            solution += change
            relative = cupy.abs(change / unit)
            relative = cupy.where(cupy.isfinite(relative), relative, 0)
            before, largest = largest, float(relative.max())
            if not NEGLIGIBLE_CHANGE < largest < before / 2:
                break
        return solution


def subtract_product(
    neighbours: Neighbours, off_diagonal: Any, diagonal: Any, rhs: Any, vector: Any, out: Any
) -> None:
    """What the product of a sparse matrix with a vector leaves of `rhs`."""
    n = len(rhs)
    launch(
        "left_of_equations",
        blocks(n, _WARPS),
        (*neighbours.arguments, off_diagonal, diagonal, rhs, vector, np.int32(n), out),
    )


class _Border:
    """The constant of each group, as a border of its normal matrix: products with a stamp of 1.

    Attributes
    ----------
    response : (M,) float64 array
        How a constant of 1 changes the fluxes.
    """

    def __init__(self, equations: NormalEquations, inverse: _Inverse) -> None:
        self._equations, self._inverse = equations, inverse
        typical = equations.light / cupy.where(equations.power > 0, equations.power, 1)
        unit = cupy.where(typical > 0, typical, cupy.inf)
        self.response = cupy.where(equations.has_constant, inverse.solve(equations.light, unit), 0)
        area = self._total(equations.own_area)
        pivot = area - self._total(equations.light * self.response)
        # A group without pixels, or without a constant, has a constant of 0.
        fitted = equations.has_constant & (area > 0)
        self._pivot = cupy.where(fitted, cupy.maximum(pivot, MIN_PIVOT * area), cupy.inf)

    def _total(self, values: Any) -> Any:
        """Sum over the group of each member."""
        return group_totals(values, self._equations.group_begin, self._equations.group_end)

    def constant(self, flux: Any) -> Any:
        """Constant of each member's group, from fluxes that were solved without it."""
        e = self._equations
        return (self._total(e.own_data) - self._total(e.light * flux)) / self._pivot

    def inflation(self) -> Any:
        """What the constant adds to the inflation of variances."""
        return self._equations.power * self.response * self.response / self._pivot

    def variance(self) -> Any:
        """What the constant adds to the variances."""
        e, ratio = self._equations, self.response / self._pivot
        change, mixed = cupy.empty(len(ratio)), cupy.zeros(len(ratio))
        subtract_product(
            e.neighbours, e.noise_products, e.noise, e.light_noise, self.response, change
        )
        change = -change
        self._inverse.add_product(change, mixed)
        spread = self._total(e.own_noise) + self._total(self.response * (change - e.light_noise))
        return 2 * ratio * mixed + ratio * ratio * spread
