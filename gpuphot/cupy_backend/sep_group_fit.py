"""Grouped PSF fits with SEP's conventions; twin of ``numpy_backend.sep_group_fit``."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import Frame, Positions
from gpuphot.models.groups import CORE
from gpuphot.models.psf import PSFModel
from gpuphot.models.sep import MAX_FIT_GROUP, FitOptions, PSFFits

from .launch import as_bytes, blocks, launch, scratch, workspace_items
from .neighbours import link_groups, runs
from .render import add_stamps
from .sep_fit import find_groupable, rule_arguments, sep_psf_fit
from .sep_stamps import psf_arguments, scratch_floats, sep_psf_stamps, stamp_shape

_CLASSES = 2, 4, 8, 16, 32, MAX_FIT_GROUP
"""Members of a group. Groups of up to 2, of up to 4 and so on are fitted apart, so that small ones
need little memory."""

_MAX_CORE = 32
"""Members of the core of a block. The others, up to `MAX_FIT_GROUP`, are those around it."""

_HALO = 4
"""Width of the surroundings of a core, in the largest reach of a member."""

_ROUNDS = 3
"""How often blocks are fitted."""

_ACCURACY = 0.1
"""Last steps in blocks, in those of groups, lest rounds go on where they ended."""

_WARPS = 4


def sep_grouped_psf_fit(
    frame: Frame, pos: Positions, psf: PSFModel, gain: float | None, options: FitOptions
) -> PSFFits:
    """Least-squares fits of the PSF, sources with overlapping stamps at the same time."""
    reach = _reach(frame, pos, psf, options)
    groups = link_groups(pos, reach)
    fits = _GroupFits(frame, pos, psf, gain, options)
    is_large = groups.size > MAX_FIT_GROUP
    is_small = (groups.size > 1) & ~is_large
    if bool(is_small.any()):
        fits.fit_groups(_groups_of(pos, groups.id, is_small))
    if bool(is_large.any()):
        fits.fit_blocks(_blocks_of(pos, groups.id, is_large, reach))
    return fits.with_single_sources()


def _reach(frame: Frame, pos: Positions, psf: PSFModel, options: FitOptions) -> Any:
    """From how far sources are linked to others; NaN for those to be fitted alone."""
    groupable = find_groupable(frame, pos, psf, options)
    if options.fit_radius > 0:
        return cupy.where(groupable, options.fit_radius, cupy.nan)
    n = len(pos)
    reach = cupy.empty(n)
    workspace, step, shared = scratch("sep_reach", n, scratch_floats(psf), cupy.float32)
    of_scratch = workspace, np.int32(scratch_floats(psf)), np.int32(shared > 0)
    of_sources = pos.x, pos.y, as_bytes(groupable)
    for begin in range(0, n, step):
        arguments = *psf_arguments(psf), *of_sources, np.int32(begin), *of_scratch, reach
        launch("sep_reach", min(step, n - begin), arguments, shared)
    return reach


@dataclass(frozen=True)
class _Systems:
    """Sources that are fitted at the same time.

    Attributes
    ----------
    rows : (total,) int32 array
        The members of the systems, one after the other.
    begin, count : (n_systems,) int32 arrays
        Where the members of each system begin, and their number.
    home : (N,) int32 array
        The system that a source gets its results from; -1 without.
    """

    rows: Any
    begin: Any
    count: Any
    home: Any

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As kernels take them."""
        return self.begin, self.count, self.rows, self.home


def _groups_of(pos: Positions, group: Any, wanted: Any) -> _Systems:
    """Groups of the wanted sources, their members sorted by x and y."""
    rows = cupy.flatnonzero(wanted)
    number = group[rows].astype(cupy.float64)
    order = cupy.lexsort(cupy.stack([pos.y[rows], pos.x[rows], number]))
    rows, number = rows[order], number[order]
    starts = cupy.ones(len(rows), cupy.bool_)
    starts[1:] = number[1:] != number[:-1]
    begin = cupy.flatnonzero(starts)
    count = cupy.searchsorted(number, number[begin], side="right") - begin
    home = cupy.full(len(pos), -1, cupy.int32)
    home[rows] = (cupy.cumsum(starts, dtype=cupy.int64) - 1).astype(cupy.int32)
    rows, begin, count = (v.astype(cupy.int32) for v in (rows, begin, count))
    return _Systems(rows, begin, count, home)


def _blocks_of(pos: Positions, group: Any, wanted: Any, reach: Any) -> _Systems:
    """Blocks of the wanted sources: cores, and those around them in the same group."""
    rows = cupy.flatnonzero(wanted)
    number = group[rows].astype(cupy.float64)
    order = cupy.lexsort(cupy.stack([pos.x[rows], pos.y[rows], number]))
    rows, number = rows[order], number[order]
    x, y = pos.x[rows], pos.y[rows]
    group_begin, group_end = (v.astype(cupy.int32) for v in runs(number))
    core_order, core, core_begin, side = _cores(x, y, number)
    n_cores = len(core_begin) - 1
    count = cupy.empty(n_cores, cupy.int32)
    members = cupy.zeros((n_cores, MAX_FIT_GROUP), cupy.int32)
    halo = _HALO * float(reach[rows].max())
    launch(
        "sep_list_blocks",
        blocks(n_cores, _WARPS),
        (
            core_order, core_begin, np.int32(n_cores), x, y, core, side, group_begin, group_end,
            np.float64(halo), count, members,
        ),
    )  # fmt: skip
    home = cupy.full(len(pos), -1, cupy.int32)
    home[rows] = core
    begin = MAX_FIT_GROUP * cupy.arange(n_cores, dtype=cupy.int32)
    return _Systems(rows[members.ravel()].astype(cupy.int32), begin, count, home)


def _cores(x: Any, y: Any, group: Any) -> tuple[Any, Any, Any, Any]:
    """Members sorted by core, the core of each member, where cores begin, and sides of squares.

    Squares with too many members are cut into four, and members on the same pixel into any parts.
    """
    n = len(x)
    side = cupy.full(n, float(CORE))
    place = cupy.arange(n)
    while True:
        keys = cupy.stack([place, cupy.floor(x / side), cupy.floor(y / side), side, group])
        order = cupy.lexsort(keys)
        starts = cupy.ones(n, cupy.bool_)
        starts[1:] = (keys[1:, order[1:]] != keys[1:, order[:-1]]).any(axis=0)
        begin, end = runs(cupy.cumsum(starts, dtype=cupy.int64))
        divisible = cupy.empty(n, cupy.bool_)
        divisible[order] = end - begin > _MAX_CORE
        divisible &= side > 1
        if not bool(divisible.any()):
            break
        side = cupy.where(divisible, side / 2, side)
    starts |= (place - begin) % _MAX_CORE == 0
    core_begin = cupy.concatenate([cupy.flatnonzero(starts), cupy.full(1, n, cupy.int64)])
    core = cupy.empty(n, cupy.int32)
    core[order] = (cupy.cumsum(starts, dtype=cupy.int64) - 1).astype(cupy.int32)
    return order.astype(cupy.int32), core, core_begin.astype(cupy.int32), side


class _GroupFits:
    """What fits of groups find, one set of groups after the other."""

    def __init__(
        self, frame: Frame, pos: Positions, psf: PSFModel, gain: float | None, options: FitOptions
    ) -> None:
        n = len(pos)
        self._frame, self._pos, self._psf = frame, pos, psf
        self._gain, self._options = gain, options
        flux, fluxerr, x, y, chi2 = (cupy.full(n, cupy.nan) for _ in range(5))
        flag, n_iter = (cupy.zeros(n, cupy.int64) for _ in range(2))
        self._results = PSFFits(flux, fluxerr, x, y, flag, chi2, n_iter)
        self._alone = cupy.ones(n, cupy.bool_)

    def fit_groups(self, groups: _Systems) -> None:
        """Fit groups, each at once."""
        self._alone &= groups.home < 0
        self._fit(groups, (self._pos.x, self._pos.y, cupy.zeros(len(self._pos))), None)

    def fit_blocks(self, groups: _Systems) -> None:
        """Fit blocks in rounds, each given the light of all other members from the one before."""
        is_member = groups.home >= 0
        self._alone &= ~is_member
        members = replace(self._pos, valid=is_member)
        flux_only = replace(self._options, fit_positions=False)
        flux = sep_psf_fit(self._frame, members, self._psf, self._gain, flux_only).flux
        found = self._pos.x, self._pos.y, cupy.where(flux > 0, flux, 0)
        for _ in range(_ROUNDS):
            self._fit(groups, found, self._light(cupy.flatnonzero(is_member), *found))
            fitted = is_member & ~self._alone
            results = self._results.x, self._results.y, self._results.flux
            found = tuple(
                cupy.where(fitted, new, old) for new, old in zip(results, found, strict=True)
            )

    def with_single_sources(self) -> PSFFits:
        """The results, those of all other sources from fits of their own."""
        pos = replace(self._pos, valid=self._pos.valid & self._alone)
        single = sep_psf_fit(self._frame, pos, self._psf, self._gain, self._options)
        columns = (
            cupy.where(self._alone, getattr(single, each.name), getattr(self._results, each.name))
            for each in fields(PSFFits)
        )
        return PSFFits(*columns)

    def _light(self, rows: Any, x: Any, y: Any, flux: Any) -> Any:
        """Planes of the light of some sources."""
        light = cupy.zeros(self._frame.data.shape)
        for plane in range(len(light)):
            of_plane = rows[self._pos.frame[rows] == plane]
            _add_stars(light[plane], self._psf, x[of_plane], y[of_plane], flux[of_plane])
        return light

    def _fit(self, systems: _Systems, start: tuple[Any, Any, Any], light: Any | None) -> None:
        """Fit systems from positions and fluxes on; `light` is that of all members, of blocks."""
        frame, pos, psf, options = self._frame, self._pos, self._psf, self._options
        of_image = (
            frame.data, frame.err, frame.bad, pos.x if light is None else light,
            np.int32(light is not None), *(np.int32(length) for length in frame.shape),
            np.float64(self._gain or 0),
        )  # fmt: skip
        max_iter, radius, tolerance, *limits = rule_arguments(psf, options)
        if light is not None:
            tolerance = np.float64(_ACCURACY * tolerance)
        of_fit = np.int32(options.fit_positions), max_iter, radius, tolerance, *limits
        for max_count, numbers in _by_class(systems.count):
            n_doubles = _workspace_doubles(psf, max_count, light is not None)
            n_blocks = min(len(numbers), workspace_items(8 * n_doubles))
            workspace = cupy.empty(n_blocks * n_doubles)
            launch(
                "sep_fit_groups",
                n_blocks,
                (
                    *psf_arguments(psf), *of_image, *of_fit, numbers, np.int32(len(numbers)),
                    np.int32(max_count), *systems.arguments, pos.x, pos.y, pos.frame, *start,
                    workspace, np.int64(n_doubles),
                    *(getattr(self._results, each.name) for each in fields(PSFFits)),
                    as_bytes(self._alone),
                ),
            )  # fmt: skip


def _add_stars(image: Any, psf: PSFModel, x: Any, y: Any, flux: Any) -> None:
    """Add stars to an image, in an order that does not depend on that of the rows."""
    order = cupy.lexsort(cupy.stack([flux, x, y]))
    x, y, flux = x[order], y[order], flux[order]
    n_rows, n_columns = stamp_shape(psf)
    row, column = (
        (v + 0.5).astype(cupy.int32) - np.int32(size // 2)
        for v, size in ((y, n_rows), (x, n_columns))
    )
    shape = n_rows, n_columns
    add_stamps(image, lambda part: sep_psf_stamps(psf, x[part], y[part]), shape, row, column, flux)


def _by_class(count: Any) -> list[tuple[int, Any]]:
    """The numbers of the systems of each class, and how many members they have at most."""
    of_class = cupy.searchsorted(cupy.asarray(_CLASSES, cupy.int32), count)
    order = cupy.argsort(of_class).astype(cupy.int32)
    ends = cupy.searchsorted(of_class[order], cupy.arange(len(_CLASSES)), side="right")
    stops = cupy.asnumpy(ends).tolist()
    return [
        (members, order[start:stop])
        for members, start, stop in zip(_CLASSES, [0, *stops], stops, strict=False)
        if stop > start
    ]


def _workspace_doubles(psf: PSFModel, n: int, has_light: bool) -> int:
    """What a block of the kernel needs for n members; see ``workspace_of`` there."""
    size = math.prod(stamp_shape(psf))
    n_floats = (2 if has_light else 1) * n * size + scratch_floats(psf)
    return 3 * n * size + (3 * n + 1) * 3 * n + 9 * n + (n_floats + 1) // 2
