"""Optimal sums in SEP's way, of single sources and of groups, against SEP itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import sep_x
from scipy.special import erf

from gpuphot.models.sep import AnnulusMeans, SepFlag

from .scenes import add_stars, positions_of

SHAPE = 130, 150


@dataclass(frozen=True)
class Field:
    """An image, its noise and mask, and sources with circles and widths of their own."""

    image: np.ndarray
    err: np.ndarray
    mask: np.ndarray
    x: np.ndarray
    y: np.ndarray
    r: np.ndarray
    fwhm: np.ndarray

    @property
    def planes(self):
        """Of single precision, as SEP reads them; masked pixels that are not finite are 0."""
        data = np.where(np.isfinite(self.image), self.image, 0).astype(np.float32)
        return data, self.err.astype(np.float32), self.mask | ~np.isfinite(self.image)

    def sep(self, rows=slice(None), data=None, **options):
        """SEP's own results."""
        image, err, mask = self.planes
        image = image if data is None else data
        return sep_x.sum_circle_optimal(
            image, self.x[rows], self.y[rows], self.r[rows], self.fwhm[rows], err=err, mask=mask,
            **options,
        )  # fmt: skip


def make_field(rng, n=120, shape=SHAPE, separate=0.2, masked=0.01):
    """Sources on and off the edges, on integer and half-integer positions, some in a masked block.

    None of them nearer to another one than `separate`.
    """
    height, width = shape
    x, y = rng.uniform(-8, width + 8, 3 * n), rng.uniform(-8, height + 8, 3 * n)
    x[:20], y[:20] = np.round(x[:20]), np.round(y[:20])
    x[20:40], y[20:40] = np.floor(x[20:40]) + 0.5, np.floor(y[20:40]) + 0.5
    distance = np.hypot(*(np.triu(v[:, None] - v, 1) for v in (x, y)))
    alone = ~((distance > 0) & (distance < separate)).any(axis=0)
    x, y = x[alone][:n], y[alone][:n]
    order = rng.permutation(n)
    x, y = x[order], y[order]
    image = rng.normal(3, 5, shape)
    add_stars(image, x, y, 10 ** rng.uniform(1.5, 4, n))
    image[rng.integers(0, height, 8), rng.integers(0, width, 8)] = np.nan
    err = rng.uniform(3, 7, shape)
    err[rng.integers(0, height, 30), rng.integers(0, width, 30)] = 0
    mask = rng.random(shape) < masked
    mask[50:65, 60:75] = True
    fwhm = rng.uniform(1.8, 4.5, n)
    return Field(image, err, mask, x, y, rng.uniform(0.8, 1.6, n) * fwhm, fwhm)


def prepared(ops, field):
    data, bad = ops.load_image(ops.to_device(field.image), ops.to_device(field.mask))
    frame = ops.sep_frame(data, bad, 0.0, ops.to_device(field.err))
    return frame, positions_of(ops, field.x, field.y)


def on_host(ops, sums):
    return tuple(ops.to_host(v) for v in (sums.flux, sums.fluxerr, sums.flag))


def annulus_of(ops, level, error, area):
    return AnnulusMeans(*(ops.to_device(np.asarray(v, float)) for v in (level, error, area)))


def measure(ops, field, gain=None, annulus=None):
    frame, pos = prepared(ops, field)
    r, fwhm = ops.to_device(field.r), ops.to_device(field.fwhm)
    return on_host(ops, ops.sep_optimal_sums(frame, pos, r, fwhm, gain, annulus))


def assert_same(result, expected, tolerance=1e-11):
    """Fluxes within the tolerance of their errors or of themselves; flags equal."""
    (flux, fluxerr, flag), (flux_0, fluxerr_0, flag_0) = result, expected
    assert flag.dtype == np.int64
    np.testing.assert_array_equal(flag, flag_0)
    np.testing.assert_allclose(fluxerr, fluxerr_0, rtol=tolerance)
    np.testing.assert_array_equal(np.isnan(flux), np.isnan(flux_0))
    limit = tolerance * np.maximum(np.abs(flux_0), np.nan_to_num(fluxerr_0))
    assert np.nanmax((np.abs(flux - flux_0) - limit), initial=-1) <= 0


# ---- single sources ------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [None, 1.7])
def test_single_sources_agree_with_sep(rng, ops, gain):
    field = make_field(rng)
    assert_same(measure(ops, field, gain), field.sep(gain=gain))


def test_radii_from_none_to_larger_than_the_image(rng, ops):
    field = make_field(rng)
    field.r[:12] = 0, 0.3, 0.7, 0.71, 1, 1e-9, 40, 70, 300, 1e7, 1e300, np.inf
    field.fwhm[12:20] = 0.01, 0.1, 0.5, 30, 1e3, 1e12, 1e-300, np.inf
    rows = np.flatnonzero(field.fwhm > 1e-200)
    result = [v[rows] for v in measure(ops, field)]
    assert_same(result, field.sep(rows))


def test_positions_far_off_the_image(rng, ops):
    field = make_field(rng)
    field.x[:8] = -1e3, 1e4, 1e9, -1e12, 1e19, 1e300, 5, -1e19
    field.y[:8] = 5, 6, -1e10, 4, 3, 2, 1e18, 1e5
    assert_same(measure(ops, field), field.sep())


def test_missing_positions_radii_and_widths(rng, ops):
    field = make_field(rng)
    field.x[3], field.y[4] = np.nan, np.inf
    field.r[5:7], field.fwhm[8:12] = (np.nan, -1.0), (np.nan, 0.0, -3.0, np.nan)
    missing = [3, 4, 5, 6, 8, 9, 10, 11]
    flux, fluxerr, flag = measure(ops, field)
    assert np.isnan(flux[missing]).all()
    assert np.isnan(fluxerr[missing]).all()
    assert not flag[missing].any()
    rows = np.setdiff1d(np.arange(len(field.x)), missing)
    assert_same((flux[rows], fluxerr[rows], flag[rows]), field.sep(rows))


def test_noise_that_makes_no_sense(rng, ops):
    field = make_field(rng)
    field.err[::7, ::5], field.err[3::11, ::9], field.err[5::13] = np.nan, np.inf, -2.0
    assert_same(measure(ops, field, 2.0), field.sep(gain=2.0))


def test_pixels_of_the_background_that_are_missing(rng, ops):
    """Only the background is not finite: the pixel is not masked, and spoils the flux."""
    field = make_field(rng)
    row, column = np.round([field.y[30], field.x[30]]).astype(int) % SHAPE
    data, bad = ops.load_image(ops.to_device(field.image), ops.to_device(field.mask))
    background = np.zeros(SHAPE)
    background[row, column] = np.nan
    frame = ops.sep_frame(data, bad, ops.to_device(background), ops.to_device(field.err))
    r, fwhm = ops.to_device(field.r), ops.to_device(field.fwhm)
    pos = positions_of(ops, field.x, field.y)
    result = on_host(ops, ops.sep_optimal_sums(frame, pos, r, fwhm, None))
    image = field.planes[0]
    image[row, column] = np.nan
    expected = field.sep(data=image)
    assert_same(result, expected)


def test_no_sources(ops, rng):
    field = make_field(rng)
    nothing = Field(field.image, field.err, field.mask, *np.empty((4, 0)))
    for values in measure(ops, nothing, 1.0):
        assert len(values) == 0


def with_annuli(ops, field, rng):
    """Annuli of SEP, and fields whose sources all have one."""
    image, _, mask = field.planes
    rin, rout = field.r + 3, field.r + 8
    *_, level, _ = sep_x.stats_circann(image, field.x, field.y, rin, rout, mask=mask, subpix=1)
    return level


@pytest.mark.parametrize("gain", [None, 1.7])
def test_backgrounds_of_single_sources(rng, ops, gain):
    field = make_field(rng)
    n = len(field.x)
    level, error, area = rng.normal(3, 1, n), rng.uniform(0, 2, n), rng.uniform(50, 200, n)
    level[7] = error[7] = np.nan
    area[7] = 0
    result = measure(ops, field, gain, annulus_of(ops, level, error, area))
    flux, fluxerr, flag = field.sep(gain=gain)
    response, _, _ = field.sep(data=np.ones(SHAPE, np.float32))
    expected = flux - level * response, np.hypot(fluxerr, error * response), flag
    assert_same(result, expected)


# ---- groups --------------------------------------------------------------------------------------


def group_and_measure(ops, field, factor=1.0, gain=None, annulus=None):
    """Sums of groups, and the sizes of these."""
    frame, pos = prepared(ops, field)
    r, fwhm = ops.to_device(field.r), ops.to_device(field.fwhm)
    groups = ops.link_groups(pos, ops.to_device(factor * field.r))
    sums = ops.sep_grouped_optimal_sums(
        frame, pos, groups, r, fwhm, gain, annulus, radius_factor=factor
    )
    return on_host(ops, sums), ops.to_host(groups.id), ops.to_host(groups.size)


def annuli(field, gain, rin, rout):
    """Level, error and area of SEP's annuli, by definition where SEP does not return them."""
    image, _, mask = field.planes
    rows, columns = np.indices(image.shape)
    *_, level, _ = sep_x.stats_circann(image, field.x, field.y, rin, rout, mask=mask, subpix=1)
    error, area = np.zeros(len(level)), np.zeros(len(level))
    for k in range(len(level)):
        d2 = (columns - field.x[k]) ** 2 + (rows - field.y[k]) ** 2
        inside = (d2 > rin[k] ** 2) & (d2 < rout[k] ** 2) & ~mask
        total, area[k] = image[inside].sum(dtype=float), inside.sum()
        if gain and total > 0:
            error[k] = np.sqrt(total / gain) / area[k]
    return level, error, area


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.3])
@pytest.mark.parametrize("gain", [None, 1.7])
def test_groups_agree_with_sep(rng, ops, factor, gain):
    field = make_field(rng, separate=0.7)
    result, _, size = group_and_measure(ops, field, factor, gain)
    small = size <= 32
    rows = np.flatnonzero(small)
    expected = field.sep(rows, grouped=True, group_radius_factor=factor, gain=gain)
    assert_same([v[small] for v in result], expected, 1e-9)


def gaussian_on(field, k):
    """Gaussian of source k on the image, 0 where its circle has none of 5 x 5 sub-pixels."""
    (height, width), sigma = field.image.shape, field.fwhm[k] / 2.354820045
    dx, dy = np.arange(width) - field.x[k], np.arange(height) - field.y[k]
    near_x, near_y = (np.square(v[:, None] + np.arange(-2, 3) / 5).min(axis=1) for v in (dx, dy))
    inside = near_y[:, None] + near_x < field.r[k] ** 2
    scale = 1 / (np.sqrt(2) * sigma)
    across, along = (erf((v + 0.5) * scale) - erf((v - 0.5) * scale) for v in (dx, dy))
    return np.where(inside, 0.25 * along[:, None] * across, 0)


def solve_directly(field, members, level=0.0):
    """Fluxes and errors of a group from its normal equations, by dense algebra."""
    image, err, mask = field.planes
    variance = (err * err).astype(float)
    usable = ~mask & (variance > 0)
    light = np.stack([gaussian_on(field, k)[usable] for k in members])
    weight = 1 / np.sqrt(variance[usable])
    light *= weight
    inverse = np.linalg.inv(light @ light.T)
    flux = inverse @ (light @ ((image[usable] - level) * weight))
    return flux, np.sqrt(np.diag(inverse))


def crowd(rng, n, spacing, shape):
    """A field of one group: stars at random but for a least distance, out to the edges."""
    height, width = shape
    x, y = np.empty(0), np.empty(0)
    while len(x) < n:
        u, v = rng.uniform(-1, width), rng.uniform(-1, height)
        if not len(x) or np.hypot(x - u, y - v).min() > spacing:
            x, y = np.append(x, u), np.append(y, v)
    image = rng.normal(3, 5, shape)
    add_stars(image, x, y, 10 ** rng.uniform(1.5, 4, n))
    fwhm = rng.uniform(2.0, 4.0, n)
    err = rng.uniform(3, 7, shape)
    err[rng.integers(0, height, 20), rng.integers(0, width, 20)] = 0
    return Field(image, err, rng.random(shape) < 0.01, x, y, rng.uniform(1, 1.4, n) * fwhm, fwhm)


@pytest.mark.parametrize(("n", "shape"), [(38, (28, 30)), (200, (64, 72))])
def test_large_groups_are_solved_exactly(rng, ops, n, shape):
    field = crowd(rng, n, 2.0, shape)
    (flux, fluxerr, flag), identity, size = group_and_measure(ops, field)
    members = np.flatnonzero((identity == identity[np.argmax(size)]) & (field.sep()[1] > 0))
    assert len(members) > 32
    expected, error = solve_directly(field, members)
    assert np.abs((flux[members] - expected) / error).max() < 1e-9
    np.testing.assert_allclose(fluxerr[members], error, rtol=1e-9)
    np.testing.assert_array_equal(flag, field.sep()[2])
