"""The local background in an annulus: the mode of its pixels, or a polynomial through them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.frame import Bad, Frame, Positions

from .aperture import overlaps_image
from .blocks import cholesky_solve
from .chunks import chunks
from .clipping import CLIP_SIGMA, SortedSamples
from .sums import row_sums

MAX_POLYNOMIAL_ROUNDS = 3
MIN_POLYNOMIAL_PIXELS = 10
SINGULAR_PIVOT = 1e-10
"""Below this smallest pivot of the scaled normal matrix the pixels do not determine the
polynomial, for instance because they all lie on a line."""

NEGLIGIBLE = 1e-14
"""Residuals this small beside the values are rounding errors, which are not clipped."""

N_LOOKED_AT = 64


def annulus_mode(frame: Frame, pos: Positions, r_in: float, r_out: float) -> NDArray[np.float64]:
    """Sigma-clipped mode of the pixels in an annulus, ``3 median - 2 mean``.

    Takes the pixels with ``r_in <= d < r_out`` from their centre to the source, without masked
    and non-finite ones; rejects what lies beyond 3 standard deviations of the median, at most
    10 times.

    Parameters
    ----------
    frame : Frame
    pos : Positions
    r_in, r_out : float
        In pixels, ``0 < r_in < r_out``.

    Returns
    -------
    (N,) float64 array
        NaN where the annulus holds no usable pixel or the position is not valid.
    """
    level = np.full(len(pos), np.nan)
    template = _make_template(frame.shape, r_in, r_out)
    for i, pixels in _annuli(frame, pos, r_out, template):
        # Rounded as in photutils, whose masks count from the edge of the outer circle's box: that
        # decides which side of a rim a pixel lies on if its distance equals the radius.
        dx = _from_box(template.x, pixels.origin_x, pos.x[i], r_out)
        dy = _from_box(template.y, pixels.origin_y, pos.y[i], r_out)
        d2 = _add_squares(dx, dy)
        keep = pixels.usable & (d2 >= r_in * r_in) & (d2 < r_out * r_out)
        samples = SortedSamples(pixels.values, keep)
        first, last, _, _ = samples.clip()
        median, mean, _ = samples.median_mean_std(first, last)
        level[i] = samples.reference + 3 * median - 2 * mean
    return level


def annulus_polynomial(
    frame: Frame, pos: Positions, r_in: float, r_out: float, order: int
) -> NDArray[np.float64]:
    """Value at the source of a polynomial surface through the pixels of an annulus.

    Least squares over the pixels with ``r_in <= d <= r_out``, without masked and non-finite
    ones; up to 3 rounds reject residuals beyond 3 standard deviations, as long as enough pixels
    are left. Fewer than 10 pixels, or pixels that do not determine the polynomial, give their
    mean instead.

    Parameters
    ----------
    frame : Frame
    pos : Positions
    r_in, r_out : float
        In pixels, ``0 < r_in < r_out``.
    order : {1, 2}
        A plane or a quadratic surface.

    Returns
    -------
    (N,) float64 array
        NaN where the annulus holds no usable pixel or the position is not valid.
    """
    level = np.full(len(pos), np.nan)
    template = _make_template(frame.shape, r_in, r_out)
    surface = _Surface(template.x, template.y, r_out, order)
    for i, pixels in _annuli(frame, pos, r_out, template):
        phase_x, phase_y = pos.x[i] - pixels.origin_x, pos.y[i] - pixels.origin_y
        d2 = _add_squares(template.x - phase_x[:, None], template.y - phase_y[:, None])
        d = np.sqrt(d2, out=d2)
        keep = pixels.usable & (d >= r_in) & (d <= r_out)
        coefficients = _clipped_fit(surface, pixels.values, keep)
        level[i] = surface.value_at(coefficients, phase_x, phase_y)
    return level


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _clipped_fit(
    surface: _Surface, values: NDArray[np.float64], keep: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Coefficients (terms, n) of the surfaces through the values that survive clipping.

    `values` and `keep` have the shape (n, T).
    """
    count = np.count_nonzero(keep, axis=1)
    weight = keep.astype(np.float64)
    offset = _typical_value(values, keep)
    values = np.where(keep, values - offset[:, None], 0)
    moments = surface.moments(weight)
    initial = surface.fit(moments, values)
    coefficients = initial.copy()
    active = np.flatnonzero(count >= MIN_POLYNOMIAL_PIXELS)
    for _ in range(MAX_POLYNOMIAL_ROUNDS):
        # A view where all rows are active, as at first.
        rows = slice(None) if len(active) == len(values) else active
        fitted = values[rows]
        residual = fitted - surface.evaluate(coefficients[:, rows])
        residual *= weight[rows]
        variance = _variance(residual, count[active])
        rounding = NEGLIGIBLE**2 * row_sums(fitted, fitted) / count[active]
        limit = np.where(variance > rounding, CLIP_SIGMA * np.sqrt(variance), np.inf)
        row, pixel = np.nonzero(np.abs(residual, out=residual) > limit[:, None])
        weight[active[row], pixel] = 0
        values[active[row], pixel] = 0
        n_rejected = np.bincount(row, minlength=len(active))
        changed = n_rejected > 0
        active = active[changed]
        if not len(active):
            break
        count[active] -= n_rejected[changed]
        moments[:, active] -= surface.moments_of(row, pixel)
        enough = count[active] >= MIN_POLYNOMIAL_PIXELS
        exhausted, active = active[~enough], active[enough]
        coefficients[:, exhausted] = initial[:, exhausted]
        coefficients[:, active] = surface.fit(moments[:, active], values[active])
    coefficients[0] += offset
    return coefficients


def _typical_value(values: NDArray[np.float64], keep: NDArray[np.bool_]) -> NDArray[np.float64]:
    """One of the middle kept values of each row, or 0 if none of those looked at is kept.

    Values are fitted relative to it, so that a bright sky costs no precision. An outlier would
    cost more, and a mean would turn values that are all alike into rounding errors.
    """
    looked_at = np.s_[:, :: max(1, values.shape[1] // N_LOOKED_AT)]
    kept = keep[looked_at]
    ordered = np.sort(np.where(kept, values[looked_at], np.inf), axis=1)
    count = np.count_nonzero(kept, axis=1)
    middle = np.maximum(count - 1, 0) // 2
    return np.where(count > 0, ordered[np.arange(len(count)), middle], 0)


def _variance(values: NDArray[np.float64], n: NDArray[np.intp]) -> NDArray[np.float64]:
    """Population variance of rows that hold n values and zeros otherwise."""
    mean = row_sums(values) / n
    return np.maximum(row_sums(values, values) / n - mean * mean, 0)


class _Surface:
    """A polynomial in the offsets of annulus pixels from the source's own pixel.

    Parameters
    ----------
    offset_x, offset_y : (T,) float64 arrays
        Pixels that any source may use, relative to the pixel it lies on.
    scale : float
        Unit of the offsets, chosen so that all terms are of order 1.
    order : int
    """

    def __init__(self, offset_x: NDArray, offset_y: NDArray, scale: float, order: int) -> None:
        self._scale = scale
        self._powers = _powers(order)
        self._terms = _monomials(self._powers, offset_x / scale, offset_y / scale)
        # The normal matrix holds moments: sums of monomials of up to twice the order.
        powers = _powers(2 * order)
        self._moment_terms = _monomials(powers, offset_x / scale, offset_y / scale)
        self._moment_of_pair = np.array(
            [[powers.index((a + c, b + d)) for c, d in self._powers] for a, b in self._powers]
        )

    def moments(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums (moments, n) of the monomials over the pixels of weight 1 in each row."""
        return np.stack([row_sums(weight, term) for term in self._moment_terms])

    def moments_of(self, row: NDArray[np.intp], pixel: NDArray[np.intp]) -> NDArray[np.float64]:
        """The same over a few pixels, given row by row, for the rows that are named."""
        first = np.flatnonzero(np.diff(row, prepend=-1))
        return np.add.reduceat(self._moment_terms[:, pixel], first, axis=1)

    def fit(self, moments: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Least-squares coefficients (terms, n) of values (n, T), which are 0 where not kept.

        Where there are too few of them, or they do not determine the polynomial, a constant:
        their mean.
        """
        count = moments[0]
        rhs = np.stack([row_sums(values, term) for term in self._terms])
        coefficients, pivot = cholesky_solve(moments[self._moment_of_pair], rhs)
        constant = ~((count >= MIN_POLYNOMIAL_PIXELS) & (pivot > SINGULAR_PIVOT))
        coefficients[:, constant] = 0
        coefficients[0, constant] = rhs[0, constant] / count[constant]
        return coefficients

    def evaluate(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """The surfaces of n sources on their T pixels."""
        return np.einsum("kn,kp->np", coefficients, self._terms)

    def value_at(
        self, coefficients: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The surface of each source at one point of its own."""
        terms = _monomials(self._powers, x / self._scale, y / self._scale)
        return (coefficients * terms).sum(axis=0)


def _monomials(powers: list[tuple[int, int]], x: NDArray, y: NDArray) -> NDArray[np.float64]:
    return np.stack([x**a * y**b for a, b in powers])


def _powers(order: int) -> list[tuple[int, int]]:
    """Powers (of x, of y) of a polynomial, constant first."""
    return [(n - b, b) for n in range(order + 1) for b in range(n + 1)]


@dataclass(frozen=True)
class _Template:
    """Pixels that an annulus may hold, wherever in its pixel a source lies.

    Offsets `x, y` (T,) count from the pixel that a source lies on or, if `is_image`, from the
    first pixel of the image.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    is_image: bool


def _from_box(
    offset: NDArray[np.float64],
    origin: NDArray[np.float64],
    position: NDArray[np.float64],
    r_out: float,
) -> NDArray[np.float64]:
    """Distances (n, T) along one axis, summed from the lower edge of the box around r_out."""
    first = np.floor(position - r_out + 0.5)
    distance = offset + (origin - first)[:, None]
    distance += (first - 0.5 - position)[:, None]
    distance += 0.5
    return distance


def _add_squares(dx: NDArray[np.float64], dy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances; both arguments are overwritten."""
    dx *= dx
    dy *= dy
    dx += dy
    return dx


def _make_template(shape: tuple[int, int], r_in: float, r_out: float) -> _Template:
    """Offsets that cover the annulus, or the whole image if its box is far larger than that."""
    half = math.ceil(r_out) + 1
    if half * half > shape[0] * shape[1]:
        y, x = np.indices(shape, dtype=np.float64).reshape(2, -1)
        return _Template(x, y, is_image=True)
    half_diagonal = 0.7072
    y, x = np.indices((2 * half + 1, 2 * half + 1)).reshape(2, -1) - float(half)
    d = np.hypot(x, y)
    inside = (d >= r_in - half_diagonal) & (d <= r_out + half_diagonal)
    return _Template(x[inside], y[inside], is_image=False)


@dataclass(frozen=True)
class _AnnulusPixels:
    """The template's T pixels around a chunk of n sources.

    The offsets count from the pixels `origin_x, origin_y` (n,). `values` and `usable` (in the
    image, not masked, finite) have the shape (n, T).
    """

    origin_x: NDArray[np.float64]
    origin_y: NDArray[np.float64]
    values: NDArray[np.float64]
    usable: NDArray[np.bool_]


def _annuli(
    frame: Frame, pos: Positions, r_out: float, template: _Template
) -> Iterator[tuple[NDArray[np.intp], _AnnulusPixels]]:
    """The pixels of the annuli, chunk by chunk, with the rows of the sources they belong to."""
    rows = pos.order[overlaps_image(frame, pos, r_out)[pos.order]]
    row, column = np.rint(pos.y[rows]), np.rint(pos.x[rows])
    if template.is_image:
        row, column = np.zeros_like(row), np.zeros_like(column)
    height, width = frame.shape
    any_bad = bool(frame.bad.any())
    cut = _crosses(row, template.y, height) | _crosses(column, template.x, width)
    for crosses_edge in (False, True):
        members = np.flatnonzero(cut == crosses_edge)
        for part in chunks(len(members), len(template.x)):
            i = members[part]
            values, usable = _read_pixels(
                frame, pos.frame[rows[i]], row[i], column[i], template, crosses_edge, any_bad
            )
            yield rows[i], _AnnulusPixels(column[i], row[i], values, usable)


def _read_pixels(
    frame: Frame,
    plane: NDArray,
    row: NDArray,
    column: NDArray,
    template: _Template,
    crosses_edge: bool,
    any_bad: bool,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values (n, T) of the template's pixels around each position, and which are usable.

    Pixels outside the image, which only `crosses_edge` allows for, are not usable; without
    `any_bad` all others are.
    """
    height, width = frame.shape
    first = ((plane * height + row) * width + column).astype(np.intp)
    index = first[:, None] + (template.y * width + template.x).astype(np.intp)
    usable = np.ones(index.shape, np.bool_)
    if crosses_edge:
        x, y = column[:, None] + template.x, row[:, None] + template.y
        usable = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        index[~usable] = 0
    values = frame.data.ravel().take(index)
    if any_bad:
        usable &= (frame.bad.ravel().take(index) & Bad.UNUSABLE) == 0
    return values, usable


def _crosses(position: NDArray, offset: NDArray, length: int) -> NDArray[np.bool_]:
    return (position + offset.min() < 0) | (position + offset.max() >= length)
