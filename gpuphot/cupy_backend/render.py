"""Model images; twin of ``numpy_backend.render``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from gpuphot.models.psf import PSFModel

from .launch import blocks, launch, workspace_items
from .stamps import psf_stamps

_TILE = 16


def render_psf_image(shape: tuple[int, int], psf: PSFModel, x: Any, y: Any, flux: Any) -> Any:
    """Image of stars: the sum of their stamps, each times its flux."""
    image = cupy.zeros(shape)
    x, y, flux, row, column = _sorted_stars(shape, psf, x, y, flux)
    add_stamps(
        image, lambda part: psf_stamps(psf, x[part], y[part]), psf.stamp_shape, row, column, flux
    )
    return image


def add_stamps(
    image: Any,
    make_stamps: Callable[[slice], Any],
    stamp_shape: tuple[int, int],
    row: Any,
    column: Any,
    flux: Any,
) -> None:
    """Add the stamps of stars to an image, in the order of the stars.

    Parameters
    ----------
    image : (H, W) float64 array
    make_stamps : callable
        Gives the stamps of a run of stars.
    stamp_shape : (int, int)
        Rows and columns of a stamp.
    row, column : (n,) int32 arrays
        First pixels of the stamps, the rows rising.
    flux : (n,) float64 array
    """
    height, width = image.shape
    n_rows, n_columns = stamp_shape
    top = cupy.arange(blocks(height, _TILE), dtype=cupy.int32) * _TILE
    first = cupy.searchsorted(row, top - n_rows, side="right")
    last = cupy.searchsorted(row, top + _TILE, side="left")
    step = workspace_items(8 * n_rows * n_columns)
    for begin in range(0, len(row), step):
        end = min(begin + step, len(row))
        launch(
            "render_tiles",
            blocks(height, _TILE) * blocks(width, _TILE),
            (
                make_stamps(slice(begin, end)), np.int32(n_rows), np.int32(n_columns), row, column,
                flux, first, last, np.int64(begin), np.int64(end), np.int32(height),
                np.int32(width), image,
            ),
        )  # fmt: skip


def _sorted_stars(
    shape: tuple[int, int], psf: PSFModel, x: Any, y: Any, flux: Any
) -> tuple[Any, ...]:
    """Positions, fluxes and first pixels of stamps in the canonical order.

    Stars that put no light into the image come last, in a row below the image.
    """
    height, width = shape
    n_rows, n_columns = psf.stamp_shape
    row, column = cupy.rint(y) - n_rows // 2, cupy.rint(x) - n_columns // 2
    inside = (row > -n_rows) & (row < height) & (column > -n_columns) & (column < width)
    seen = inside & cupy.isfinite(flux) & (flux != 0)
    keys = (cupy.where(seen, flux, 0), cupy.where(seen, x, 0), cupy.where(seen, y, cupy.inf))
    order = cupy.lexsort(cupy.stack(keys))
    row = cupy.where(seen, row, height + _TILE)[order].astype(cupy.int32)
    column = cupy.where(seen, column, 0)[order].astype(cupy.int32)
    return x[order], y[order], flux[order], row, column
