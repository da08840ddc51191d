"""Medians and clipped means of the pixels in annuli, as SEP defines them.

Chunks of n sources share a template of T pixels, those that an annulus of their size may hold.
Arrays have the shape (T, n), so that whatever belongs to a source, a row or a column is spread
over the pixels in runs; only what is sorted has the shape (n, T).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.frame import Bad, Frame, Positions
from gpuphot.models.sep import MARGIN, SUBPIX, AnnulusMeans

from .chunks import chunks
from .clipping import part_within, values_at
from .sums import row_sums

STD_PER_MAD = 1.4826
"""SEP's standard deviation of pixels with a median absolute deviation of 1."""

EVERY = 8
"""Every so many pixels tell where about the median is."""

WHOLE = SUBPIX**2 + 1
"""Stands for the count of a pixel that is not sampled."""

# Samples are added up one by one: all of them together are not exactly 1.
_WEIGHT = np.append(np.cumsum(np.append(0, np.full(SUBPIX**2, (1 / SUBPIX) ** 2))), 1.0)
_COUNT_BITS = 5
_INDEX_BITS = 32 - _COUNT_BITS
_COUNT_MASK = (1 << _COUNT_BITS) - 1
_LAST = np.int64((1 << 63) - (1 << _COUNT_BITS))


def sep_annulus_median(
    frame: Frame, pos: Positions, r_in: NDArray[np.float64], r_out: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weighted medians of annuli, the third result of ``sep_x.stats_circann``.

    A pixel weighs as many of its 5 x 5 sub-pixels as have their centre in the annulus. The median
    is the smallest value that, with all smaller ones, has at least half of the weight. Masked and
    non-finite pixels do not take part.

    Parameters
    ----------
    frame : Frame
    pos : Positions
    r_in, r_out : (N,) float64 arrays
        In pixels.

    Returns
    -------
    (N,) float64 array
        NaN where the annulus holds no usable pixel, unless ``0 <= r_in <= r_out``, and for rows
        that are not valid.
    """
    level = np.full(len(pos), np.nan)
    for annuli in _annuli(frame, pos, r_in, r_out):
        level[annuli.rows] = _weighted_medians(annuli.pixels(frame.data), _sample_counts(annuli))
    return level


def sep_annulus_means(
    frame: Frame,
    pos: Positions,
    r_in: NDArray[np.float64],
    r_out: NDArray[np.float64],
    clip_sigma: float,
    clip_iters: int,
    gain: float | None,
) -> AnnulusMeans:
    """Clipped means of annuli, what the ``bkgann`` of SEP subtracts.

    Takes the pixels whose centre is in the annulus, without masked and non-finite ones. Each
    round of clipping rejects what is more than `clip_sigma` standard deviations away from the
    median; these are estimated from the median absolute deviation.

    Parameters
    ----------
    frame : Frame
    pos : Positions
    r_in, r_out : (N,) float64 arrays
        In pixels.
    clip_sigma : float
        Positive.
    clip_iters : int
        Rounds at most. If 0, the error is that of the noise; otherwise it is only the Poisson
        noise of the counts in the annulus, which is how SEP has it.
    gain : float or None
        Electrons per count, for the Poisson noise; None for none.

    Returns
    -------
    AnnulusMeans
    """
    level, error = np.full((2, len(pos)), np.nan)
    area = np.zeros(len(pos))
    for annuli in _annuli(frame, pos, r_in, r_out):
        rows, d2 = annuli.rows, annuli.d2
        member = (d2 > annuli.r_in**2) & (d2 < annuli.r_out**2)
        n = np.count_nonzero(member, axis=0)
        values = np.where(member, annuli.pixels(frame.data), np.float32(np.inf))
        ordered = np.ascontiguousarray(values.T)
        ordered.sort(axis=1)
        mean, total = _clipped_mean(ordered, n, clip_sigma, clip_iters)
        variance = np.zeros(len(n))
        if clip_iters == 0:
            with np.errstate(over="ignore"):
                noise = np.where(member, annuli.pixels(frame.err) ** 2, np.float32(0))
            variance = row_sums(noise.T.astype(np.float64))
        if gain is not None and gain > 0:
            variance += np.maximum(total, 0) / gain
        level[rows], area[rows] = mean, n
        with np.errstate(invalid="ignore"):
            error[rows] = np.sqrt(variance) / n
    return AnnulusMeans(level, error, area)


# ---- Medians


def _sample_counts(annuli: _Annuli) -> NDArray[np.uint8]:
    """Sub-pixels (T, n) of each pixel that are in the annulus, or `WHOLE`."""
    d2, r_in, r_out = annuli.d2, annuli.r_in, annuli.r_out
    visited = (d2 > _surely_inside2(r_in)) & (d2 < (r_out + MARGIN) ** 2)
    counts = np.where(visited, np.uint8(WHOLE), np.uint8(0))
    flat = counts.ravel()
    edge = np.flatnonzero(visited & (d2 > _surely_inside2(r_out)))
    flat[edge] = _samples_within(annuli, edge, r_out**2)
    edge = np.flatnonzero(visited & (d2 < (r_in + MARGIN) ** 2))
    # Those on the inner circle do not belong to the annulus either.
    hole = _samples_within(annuli, edge, np.nextafter(r_in**2, np.inf))
    flat[edge] = np.maximum(np.minimum(flat[edge], SUBPIX**2), hole) - hole
    return counts


def _surely_inside2(r: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(r - MARGIN, 0) ** 2


def _samples_within(
    annuli: _Annuli, edge: NDArray[np.intp], r2: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Sub-pixels of some pixels, counted in (T, n), whose squared distance is less than `r2`."""
    counts = np.empty(len(edge), np.uint8)
    n = len(r2)
    for part in chunks(len(edge), SUBPIX**2):
        pixel, source = np.divmod(edge[part], n)
        x2 = _squared_samples(annuli.dx.ravel().take(annuli.column.take(pixel) * n + source))
        y2 = _squared_samples(annuli.dy.ravel().take(annuli.row.take(pixel) * n + source))
        inside = (x2 + y2[:, None] < r2.take(source)).view(np.uint8).reshape(SUBPIX**2, -1)
        np.add.reduce(inside, axis=0, out=counts[part])
    return counts


def _squared_samples(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances along one axis (SUBPIX, pixels) of the samples of pixels at `offset`."""
    step = 1 / SUBPIX
    samples = np.empty((SUBPIX, len(offset)))
    samples[0] = offset + 0.5 * (step - 1)
    for k in range(1, SUBPIX):  # added one by one, which is how they round
        np.add(samples[k - 1], step, out=samples[k])
    return np.square(samples, out=samples)


def _weighted_medians(
    values: NDArray[np.float32], counts: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Weighted medians (n,) of values (T, n)."""
    level, found = _medians_of_the_middle(values, counts)
    others = np.flatnonzero(~found)
    level[others] = _medians_of_all(values[:, others], counts[:, others])
    return level


def _medians_of_the_middle(
    values: NDArray[np.float32], counts: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Weighted medians for which only values in the middle are sorted, and where they are found.

    Weights are integers here. Where one half of them lies below and one above, it is the rounding
    of SEP's sums that decides, so that nothing is found.
    """
    n_pixels, n = values.shape
    weight = np.minimum(counts, np.uint8(SUBPIX**2))
    total = np.add.reduce(weight, axis=0, dtype=np.int64)
    low, high = _middle_of_some(values[::EVERY], counts[::EVERY])
    below = np.add.reduce(weight * (values < low), axis=0, dtype=np.int64)
    inside = (values >= low) & (values <= high) & (counts > 0)
    source, pixel = np.divmod(np.flatnonzero(np.ascontiguousarray(inside.T)), n_pixels)
    n_inside = np.bincount(source, minlength=n)
    index = pixel * n + source
    keys = np.full((n, n_inside.max(initial=0) + 1), _LAST)
    keys[np.arange(keys.shape[1]) < n_inside[:, None]] = _keys(
        values.ravel()[index], pixel, counts.ravel()[index]
    )
    keys.sort(axis=1)
    reached = below[:, None] + np.cumsum(np.minimum(keys & _COUNT_MASK, SUBPIX**2), axis=1)
    n_below = np.count_nonzero(2 * reached < total[:, None], axis=1)
    rows, middle = np.arange(n), np.minimum(n_below, keys.shape[1] - 1)
    found = (2 * below < total) & (2 * reached[rows, middle] > total)
    return _values_of(keys[rows, middle]), found


def _middle_of_some(
    values: NDArray[np.float32], counts: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bounds around the middle of samples (T, n), which hold most likely that of more pixels."""
    ordered = np.ascontiguousarray(np.where(counts > 0, values, np.float32(np.inf)).T)
    ordered.sort(axis=1)
    n = np.count_nonzero(counts, axis=0)
    rows, margin = np.arange(len(n)), np.ceil(1.5 * np.sqrt(n)).astype(np.intp)
    first, last = np.maximum(n // 2 - margin, 0), np.minimum(n // 2 + margin, np.maximum(n - 1, 0))
    return ordered[rows, first], ordered[rows, last]


def _medians_of_all(values: NDArray[np.float32], counts: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Weighted medians (n,) of values (T, n), in the order in which SEP adds the weights up."""
    half = 0.5 * np.cumsum(_WEIGHT.take(counts), axis=0)[-1]
    keys = np.ascontiguousarray(_keys(values, np.arange(len(values))[:, None], counts).T)
    keys.sort(axis=1)
    weight = _WEIGHT.take(keys & _COUNT_MASK)
    n_below = np.count_nonzero(np.cumsum(weight, axis=1, out=weight) < half[:, None], axis=1)
    n = np.count_nonzero(counts, axis=0)
    middle = keys[np.arange(len(keys)), np.clip(n_below, 0, np.maximum(n - 1, 0))]
    return np.where(n > 0, _values_of(middle), np.nan)


def _keys(
    values: NDArray[np.float32], index: NDArray[np.intp], counts: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Integers that sort as the values do, and by the index if these are equal.

    Their lowest bits are the count; those of count 0 come last. (In an annulus of more than 2**27
    pixels the order of equal values is another one than SEP's.)
    """
    bits = (values + np.float32(0)).view(np.int32)  # there is only one zero
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    keys = bits.astype(np.int64)
    keys <<= 32
    keys |= (index & ((1 << _INDEX_BITS) - 1)) << _COUNT_BITS
    keys |= counts
    np.copyto(keys, _LAST, where=counts == 0)
    return keys


def _values_of(keys: NDArray[np.int64]) -> NDArray[np.float64]:
    bits = (keys >> 32).astype(np.int32)
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    return bits.view(np.float32).astype(np.float64)


# ---- Clipped means


@np.errstate(invalid="ignore")
def _clipped_mean(
    ordered: NDArray[np.float32], n: NDArray[np.intp], clip_sigma: float, clip_iters: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of what clipping leaves, and sum before clipping, of the first n values of each row."""
    first, last = _clip(ordered, n, clip_sigma, clip_iters)
    reference = values_at(ordered, np.arange(len(n)), np.maximum(n - 1, 0) // 2)
    reference[n == 0] = 0
    index = np.arange(ordered.shape[1])
    deviation = ordered - reference[:, None]
    deviation[index >= n[:, None]] = 0
    total = row_sums(deviation) + reference * n
    deviation[(index < first[:, None]) | (index >= last[:, None])] = 0
    return reference + row_sums(deviation) / (last - first), total


def _clip(
    ordered: NDArray[np.float32], n: NDArray[np.intp], clip_sigma: float, clip_iters: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The half-open interval of the sorted values that survives."""
    first, last = np.zeros_like(n), n.copy()
    rows = np.flatnonzero(n)
    for _ in range(clip_iters):
        begin, end = first[rows], last[rows]
        median = values_at(ordered, rows, (begin + end - 1) // 2)
        std = STD_PER_MAD * _median_deviation(ordered, rows, begin, end, median)
        low, high = median - clip_sigma * std, median + clip_sigma * std
        outlying = (values_at(ordered, rows, begin) < low) | (
            values_at(ordered, rows, end - 1) > high
        )
        changed = np.flatnonzero(outlying & (std > 0))
        if not len(changed):
            break
        rows = rows[changed]
        first[rows], last[rows] = part_within(
            ordered, rows, begin[changed], end[changed], low[changed], high[changed]
        )
    return first, last


def _median_deviation(
    ordered: NDArray[np.float32],
    rows: NDArray[np.intp],
    begin: NDArray[np.intp],
    end: NDArray[np.intp],
    median: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Lower median of the absolute deviations from the lower median of [begin, end).

    The smaller half of the deviations belongs to neighbours, of which the first is sought.
    """
    half = (end - begin - 1) // 2
    low, high = begin, begin + half
    for _ in range(int(half.max(initial=0)).bit_length()):
        middle = (low + high) // 2
        beyond = np.minimum(middle + half + 1, end - 1)
        to_the_left = median - values_at(ordered, rows, middle)
        closer = (to_the_left > values_at(ordered, rows, beyond) - median) & (low < high)
        low = np.where(closer, middle + 1, low)
        high = np.where(closer, high, middle)
    left, right = values_at(ordered, rows, low), values_at(ordered, rows, low + half)
    return np.maximum(median - left, right - median)


# ---- Pixels


@dataclass(frozen=True)
class _Template:
    """Pixels that an annulus may hold, wherever in its pixel a source lies.

    `x` and `y` are the columns and the rows that there are, counted from the pixel that a source
    lies on or, if `is_image`, from the first one of the image. Pixel t is in column
    ``x[column[t]]`` and row ``y[row[t]]``.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    column: NDArray[np.intp]
    row: NDArray[np.intp]
    is_image: bool


def _make_template(shape: tuple[int, int], r_in: float, r_out: float) -> _Template:
    """A template for the annulus, or of the whole image if its box is far larger than that."""
    half = math.ceil(r_out) + 1
    if half * half > shape[0] * shape[1]:
        y, x = (np.arange(float(size)) for size in shape)
        row, column = np.indices(shape).reshape(2, -1)
        return _Template(x, y, column, row, is_image=True)
    offset = np.arange(-half, half + 1.0)
    d = np.hypot(offset, offset[:, None])
    # A pixel is visited up to `MARGIN` from the rim, and a source as far from its pixel's centre.
    row, column = np.nonzero((d >= r_in - 2 * MARGIN) & (d <= r_out + 2 * MARGIN))
    return _Template(offset, offset, column, row, is_image=False)


@dataclass(frozen=True)
class _Annuli:
    """The T pixels of a template around n sources.

    Attributes
    ----------
    rows : (n,) array
        The sources.
    r_in, r_out : (n,) arrays
    dx, dy : (columns, n) and (rows, n) arrays
        Distances of the template's columns and rows from the sources.
    column, row : (T,) arrays
        The column and the row of each pixel.
    d2 : (T, n) array
        Squared distances of the pixels from the sources; infinite for those that are not in the
        image or not usable.
    index : (T, n) array
        Of the pixels in the planes of the frame.
    """

    rows: NDArray[np.intp]
    r_in: NDArray[np.float64]
    r_out: NDArray[np.float64]
    dx: NDArray[np.float64]
    dy: NDArray[np.float64]
    column: NDArray[np.intp]
    row: NDArray[np.intp]
    d2: NDArray[np.float64]
    index: NDArray[np.intp]

    def pixels(self, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pixels (T, n) of planes (F, H, W)."""
        return planes.ravel().take(self.index)


def _annuli(
    frame: Frame, pos: Positions, r_in: NDArray[np.float64], r_out: NDArray[np.float64]
) -> Iterator[_Annuli]:
    """The annuli that reach the image, in chunks of the same template."""
    rows = pos.order[_reaches_image(frame, pos, r_in, r_out)[pos.order]]
    sizes, size = np.unique(np.floor(r_in[rows]) + 1j * np.ceil(r_out[rows]), return_inverse=True)
    any_bad = bool((frame.bad & Bad.UNUSABLE).any())
    for k, radii in enumerate(sizes):
        template = _make_template(frame.shape, radii.real, radii.imag)
        members = rows[size == k]
        for part in chunks(len(members), len(template.column)):
            i = members[part]
            yield _look_around(frame, pos, i, r_in[i], r_out[i], template, any_bad)


def _reaches_image(
    frame: Frame, pos: Positions, r_in: NDArray[np.float64], r_out: NDArray[np.float64]
) -> NDArray[np.bool_]:
    height, width = frame.shape
    with np.errstate(invalid="ignore", over="ignore"):
        dx = pos.x - np.clip(pos.x, -0.5, width - 0.5)
        dy = pos.y - np.clip(pos.y, -0.5, height - 0.5)
        reaches = (r_in >= 0) & (r_out >= r_in) & (np.hypot(dx, dy) < r_out + 1)
        # SEP finds no pixel where the end of its box is beyond the range of its integers.
        for position in (pos.x, pos.y):
            reaches &= position + r_out + 1.4999999 < 2.0**63
        return pos.valid & reaches


def _look_around(
    frame: Frame,
    pos: Positions,
    i: NDArray[np.intp],
    r_in: NDArray[np.float64],
    r_out: NDArray[np.float64],
    template: _Template,
    any_bad: bool,
) -> _Annuli:
    height, width = frame.shape
    x, column = _along_axis(template.x, pos.x[i], width, template.is_image)
    y, row = _along_axis(template.y, pos.y[i], height, template.is_image)
    first = (pos.frame[i] * height + row) * width
    index = first.take(template.row, axis=0) + column.take(template.column, axis=0)
    with np.errstate(over="ignore"):
        d2 = (x * x).take(template.column, axis=0) + (y * y).take(template.row, axis=0)
    if any_bad:
        np.copyto(d2, np.inf, where=(frame.bad.ravel().take(index) & Bad.UNUSABLE) != 0)
    return _Annuli(i, r_in, r_out, x, y, template.column, template.row, d2, index)


def _along_axis(
    offset: NDArray[np.float64], position: NDArray[np.float64], length: int, is_image: bool
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Distances (offsets, n) from the sources, and indices of the pixels along one axis.

    A distance is infinite where there is no pixel, and the index any pixel's.
    """
    pixel = offset[:, None] + (0 if is_image else np.rint(position))
    distance = pixel - position
    distance[(pixel < 0) | (pixel >= length)] = np.inf
    return distance, np.clip(pixel, 0, length - 1).astype(np.intp)
