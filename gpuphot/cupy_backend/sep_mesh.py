"""SEP's background; twin of ``numpy_backend.sep_mesh``."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from gpuphot.models import sep_mesh as model
from gpuphot.models.background import cell_shape

from .kernels.registry import KERNELS
from .launch import blocks, launch, to_device, to_host

_CELLS_PER_BLOCK = 4


def sep_background(data: Any, bad: Any, bg_size: int) -> tuple[Any, Any]:
    """Background and its standard deviation on every pixel, as SEP estimates them."""
    cell = cell_shape(data.shape, bg_size)
    return _maps(model.smooth_mesh(to_host(_cell_statistics(data, bad, cell))), data.shape, cell)


def _cell_statistics(data: Any, bad: Any, cell: tuple[int, int]) -> Any:
    """Level and standard deviation of every cell, (2, ny, nx) float32; NaN in bad cells."""
    (height, width), (cell_height, cell_width) = data.shape, cell
    cells = cupy.empty((2, blocks(height, cell_height), blocks(width, cell_width)), cupy.float32)
    n_cells = cells.size // 2
    image = (
        data, bad, np.int32(height), np.int32(width), np.int32(cell_height), np.int32(cell_width),
    )  # fmt: skip
    mean, zero, scale = (cupy.empty(n_cells, cupy.float32) for _ in range(3))
    n_levels = cupy.empty(n_cells, cupy.int32)
    levels = mean, zero, scale, n_levels
    launch(
        "sep_cell_levels",
        blocks(n_cells, _CELLS_PER_BLOCK),
        (*image, np.int32(n_cells), *levels),
    )
    launch("sep_cell_mode", n_cells, (*image, *levels, cells[0], cells[1]))
    return cells


def _maps(
    mesh: NDArray[np.float32], shape: tuple[int, int], cell: tuple[int, int]
) -> tuple[Any, Any]:
    """The splines through the nodes of a mesh on every pixel of an image."""
    (height, width), (ny, nx) = shape, mesh.shape[1:]
    sizes = np.int32(height), np.int32(ny), np.int32(nx)
    nodes, derivatives = (cupy.empty((2, nx, height), cupy.float32) for _ in range(2))
    launch(
        "sep_mesh_rows",
        blocks(2 * height, KERNELS["sep_mesh_rows"].block),
        (
            to_device(mesh), to_device(model.second_derivatives(mesh)),
            *map(to_device, model.row_weights(height, cell[0])),
            to_device(model.spline_factors(nx)), *sizes, nodes, derivatives,
        ),
    )  # fmt: skip
    background, rms = (cupy.empty(shape, cupy.float32) for _ in range(2))
    launch(
        "sep_mesh_maps",
        height * blocks(width, KERNELS["sep_mesh_maps"].block),
        (
            nodes, derivatives, *map(to_device, model.column_weights(width, cell[1])),
            np.int32(height), np.int32(width), np.int32(nx), background, rms,
        ),
    )  # fmt: skip
    return background, rms
