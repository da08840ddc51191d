"""How the work is cut: chunks of sources that fit the cache, and the pixels around them.

No result depends on the size of a chunk: every source is computed from its own pixels alone, in
an order that only its own radius decides.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

WORKSPACE = 1 << 17
"""Elements of the largest temporary array of a chunk; a few of them should fit the L2 cache."""

BAND = 1 << 16
"""Pixels of a band of image rows. A constant: matrix products may round differently for bands of
another height, and no bit may depend on how the work is cut."""

MAX_BAND_ROWS = 1024
"""Rows of a band of a narrow image; the weights of its spline grow with their square."""


def chunks(count: int, elements_per_item: int, workspace: int | None = None) -> Iterator[slice]:
    """Slices of `count` items, each of about `workspace` elements, by default `WORKSPACE`."""
    step = max(1, (workspace or WORKSPACE) // max(1, elements_per_item))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def runs(elements: NDArray) -> Iterator[slice]:
    """Slices of items of so many elements each, of about `WORKSPACE` elements or one item."""
    end = np.cumsum(elements)
    start = 0
    while start < len(elements):
        done = end[start] - elements[start]
        stop = max(start + 1, int(np.searchsorted(end, done + WORKSPACE, side="right")))
        yield slice(start, stop)
        start = stop


def ranges(begin: NDArray, n: NDArray) -> NDArray[np.intp]:
    """The integers from each `begin` on, n of them, one range after the other."""
    offset = np.cumsum(n) - n
    return np.arange(int(n.sum())) + np.repeat(begin - offset, n)


def bands(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of the rows of an image, each of about `BAND` pixels."""
    step = min(MAX_BAND_ROWS, max(1, BAND // shape[1]))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def windows(
    planes: NDArray, frame: NDArray, row: NDArray, column: NDArray, height: int, width: int
) -> NDArray:
    """Copies of the pixels in one window per source.

    Parameters
    ----------
    planes : (F, H, W) array
    frame, row, column : (n,) integer arrays
        Plane and first pixel of each window, which must lie in the image.
    height, width : int
        Size of the windows.

    Returns
    -------
    (n, height * width) array
    """
    view = sliding_window_view(planes, (height, width), axis=(1, 2))
    return view[frame, row, column].reshape(len(frame), height * width)
