"""Light of stars in each other's apertures; twin of ``numpy_backend.overlap``."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import Overlaps, Positions
from gpuphot.models.overlap import box_half_size, reach, search_keys
from gpuphot.models.psf import PSFModel

from .kernels.registry import KERNELS
from .launch import blocks, launch, to_device, to_host, workspace_items
from .stamps import psf_stamps

_WARPS = 4


def aperture_overlaps(
    psf: PSFModel,
    pos: Positions,
    target: Any,
    r: float,
    subpix: int,
    flux: Any,
    fluxerr: Any,
    neighbours: bool,
) -> Overlaps:
    """Light of the models of stars in the apertures of some of them."""
    distance = reach(psf, r)
    key, low, high = search_keys(pos, distance, neighbours, cupy)
    by_key = cupy.argsort(key[target])
    rows = target[by_key]
    enclosed = cupy.full(len(rows), cupy.nan)
    light, variance = (cupy.where(pos.valid[rows], 0.0, cupy.nan) for _ in range(2))
    error = cupy.where(cupy.isfinite(fluxerr), fluxerr, 0.0)

    stars = cupy.flatnonzero(pos.valid & cupy.isfinite(flux) & (flux > 0))
    stars = stars[_any_near(key[rows], low[:, stars], high[:, stars])]
    # The order in which they are summed.
    stars = stars[cupy.lexsort(cupy.stack([v[stars] for v in (error, flux, pos.y, pos.x)]))]
    stars = stars[cupy.argsort(key[stars])]
    half_size = box_half_size(r, subpix)
    # Of a target's own stamp, its aperture sees the core.
    core = None if neighbours else half_size
    n_rows, n_columns = psf.core_shape(core, own_widths=False)
    table = _WARPS * 8 * (2 * half_size + 1) ** 2
    tabulated = table <= KERNELS["aperture_overlaps"].max_shared
    if len(stars):
        first, last = _ranges(key[stars], low[:, rows], high[:, rows])
        centre = to_device((np.arange(subpix) + 0.5) / subpix - 0.5)
        step = workspace_items(8 * n_rows * n_columns)
        x, y = pos.x[stars], pos.y[stars]
        arguments = (
            x, y, flux[stars], error[stars], stars.astype(cupy.int32), pos.x[rows], pos.y[rows],
            rows.astype(cupy.int32), first, last, np.int32(len(rows)),
        )  # fmt: skip
        for begin, end, start, stop in _chunks(first, last, len(stars), step):
            launch(
                "aperture_overlaps",
                blocks(stop - start, _WARPS),
                (
                    psf_stamps(psf, x[begin:end], y[begin:end], core), np.int32(n_rows),
                    np.int32(n_columns), np.int32(begin), np.int32(end), *arguments,
                    np.int32(start), np.int32(stop), np.float64(distance), np.float64(r), centre,
                    np.int32(subpix), np.int32(half_size), np.int32(tabulated), enclosed, light,
                    variance,
                ),
                table if tabulated else 0,
            )  # fmt: skip
    return Overlaps(*(_restored(v, by_key) for v in (enclosed, light, variance)))


def _ranges(key: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """Begin and end of the sorted keys from `low` to `high`."""
    begin, end = cupy.searchsorted(key, low), cupy.searchsorted(key, high, side="right")
    return tuple(cupy.ascontiguousarray(v.astype(cupy.int32)) for v in (begin, end))


def _any_near(key: Any, low: Any, high: Any) -> Any:
    """Whether any of the sorted keys lies in one of the three ranges of each star."""
    begin, end = _ranges(key, low, high)
    return (end > begin).any(axis=0)


def _chunks(first: Any, last: Any, n_stars: int, step: int) -> list[tuple[int, int, int, int]]:
    """Begin and end of chunks of stars, and of the apertures that these may be near."""
    begin = cupy.arange(0, n_stars, step, dtype=cupy.int32)
    start = cupy.searchsorted(last[2], begin, side="right")
    stop = cupy.searchsorted(first[0], cupy.minimum(begin + step, n_stars))
    start, stop = to_host(cupy.stack([start, stop])).tolist()
    return [
        (k * step, min((k + 1) * step, n_stars), *apertures)
        for k, apertures in enumerate(zip(start, stop, strict=True))
    ]


def _restored(values: Any, order: Any) -> Any:
    """Sorted values in the order before."""
    restored = cupy.empty(len(values))
    restored[order] = values
    return restored
