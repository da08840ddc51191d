"""Optimal sums in SEP's way, of single sources and of groups, against SEP itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import pytest
import sep_x
from scipy.special import erf

from gpuphot.models.sep import AnnulusMeans

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


def sep_frame_of(ops, field, background):
    image, mask, err = map(ops.to_device, (field.image, field.mask, field.err))
    return ops.sep_frame(image, mask, ops.to_device(np.asarray(background)), err)


def prepared(ops, field):
    frame = sep_frame_of(ops, field, 0.0)
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
    background = np.zeros(SHAPE)
    background[row, column] = np.nan
    frame = sep_frame_of(ops, field, background)
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


def bright_field(rng, **options):
    """A field whose sources all have annuli with pixels, and more light than noise."""
    field = make_field(rng, **options)
    x, y = np.clip(field.x, -5, SHAPE[1] + 4), np.clip(field.y, -5, SHAPE[0] + 4)
    return replace(field, x=x, y=y, image=field.image + 20)


@pytest.mark.parametrize("gain", [None, 1.7])
def test_backgrounds_of_single_sources(rng, ops, gain):
    field = bright_field(rng)
    rin, rout = field.r + 3, field.r + 14
    background = annulus_of(ops, *annuli(field, gain, rin, rout))
    expected = field.sep(gain=gain, bkgann=(rin, rout))
    assert_same(measure(ops, field, gain, background), expected)


def test_sources_without_background(rng, ops):
    field = bright_field(rng)
    level, error, area = annuli(field, 1.7, field.r + 3, field.r + 14)
    level[5], error[5], area[5] = np.nan, np.nan, 0
    flux, fluxerr, flag = measure(ops, field, 1.7, annulus_of(ops, level, error, area))
    assert np.flatnonzero(np.isnan(flux)).tolist() == [5]
    assert np.flatnonzero(np.isnan(fluxerr)).tolist() == [5]
    np.testing.assert_array_equal(flag, field.sep()[2])


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
    flux = inverse @ (light @ ((image[usable].astype(float) - level) * weight))
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


def usable(field):
    """Rows whose circles have usable pixels."""
    return field.sep()[1] > 0


def falls_back(field, identity):
    """Rows in groups that SEP measures member by member, for one of them has no usable pixel."""
    return np.isin(identity, identity[~usable(field)])


@pytest.mark.parametrize("factor", [0.7, 1.2])
@pytest.mark.parametrize("gain", [None, 1.7])
def test_backgrounds_of_groups(rng, ops, factor, gain):
    field = bright_field(rng, separate=0.7)
    rin, rout = field.r + 3, field.r + 14
    background = annulus_of(ops, *annuli(field, gain, rin, rout))
    result, identity, size = group_and_measure(ops, field, factor, gain, background)
    options = {"grouped": True, "group_radius_factor": factor, "gain": gain, "bkgann": (rin, rout)}
    rows = np.flatnonzero((size <= 32) & ~(falls_back(field, identity) & (size > 1)))
    some = replace(field, **{v: getattr(field, v)[rows] for v in ("x", "y", "r", "fwhm")})
    expected = some.sep(**options | {"bkgann": (rin[rows], rout[rows])})
    assert_same([v[rows] for v in result], expected, 1e-9)


def test_background_is_subtracted_from_members_on_their_own(rng, ops):
    """From those of groups with a member without usable pixels, too, unlike SEP."""
    field = bright_field(rng, separate=0.7)
    n = len(field.x)
    background = annulus_of(ops, np.full(n, 4.0), np.full(n, 0.5), np.full(n, 100.0))
    (flux, _, flag), identity, size = group_and_measure(ops, field, 1.0, None, background)
    rows = np.flatnonzero(falls_back(field, identity) & (size > 1) & (size <= 32))
    assert len(rows)
    alone, _, flag_alone = field.sep(rows)
    response, _, _ = field.sep(rows, data=np.ones(SHAPE, np.float32))
    assert np.abs(flux[rows] - (alone - 4 * response)).max() < 1e-10 * np.abs(alone).max()
    np.testing.assert_array_equal(flag[rows], flag_alone)


def test_members_without_background(rng, ops):
    """Weigh nothing in that of their group, and are NaN."""
    field = crowd(rng, 12, 2.0, (20, 20))
    level, error, area = rng.normal(3, 1, 12), rng.uniform(0, 1, 12), rng.uniform(20, 60, 12)
    level[4], error[4], area[4] = np.nan, np.nan, 0
    annulus = annulus_of(ops, level, error, area)
    (flux, fluxerr, _), identity, _ = group_and_measure(ops, field, 3.0, None, annulus)
    assert set(identity) == {1}
    assert np.flatnonzero(np.isnan(flux)).tolist() == [4]
    assert np.flatnonzero(np.isnan(fluxerr)).tolist() == [4]
    seen = np.arange(12) != 4
    mean = np.average(level[seen], weights=area[seen])
    expected, noise = solve_directly(field, np.arange(12), mean)
    assert (np.abs(flux - expected) / noise)[seen].max() < 1e-9
    of_mean = np.sqrt(np.sum((area * error)[seen] ** 2)) / area[seen].sum()
    response, _, _ = field.sep(data=np.ones((20, 20), np.float32))
    np.testing.assert_allclose(fluxerr[seen], np.hypot(noise, of_mean * response)[seen], rtol=1e-9)
    annulus = annulus_of(ops, np.full(12, np.nan), np.full(12, np.nan), np.zeros(12))
    (flux, fluxerr, _), _, _ = group_and_measure(ops, field, 3.0, None, annulus)
    assert np.isnan(flux).all()
    assert np.isnan(fluxerr).all()


def test_background_and_gain_of_a_large_group(rng, ops):
    field = crowd(rng, 45, 2.0, (34, 32))
    rows = np.arange(45)
    background = annulus_of(ops, np.full(45, 3.0), np.full(45, 0.2), np.full(45, 80.0))
    (flux, fluxerr, _), _, _ = group_and_measure(ops, field, 3.0, 2.0, background)
    expected, noise = solve_directly(field, rows, 3.0)
    response, _, _ = field.sep(data=np.ones((34, 32), np.float32))
    variance = noise**2 + np.maximum(expected, 0) / 2 + 0.2**2 / 45 * response**2
    assert (np.abs(flux - expected) / noise).max() < 1e-9
    np.testing.assert_allclose(fluxerr, np.sqrt(variance), rtol=1e-9)


@pytest.mark.parametrize("n", [6, 45])
def test_coincident_members_have_no_flux(rng, ops, n):
    """And leave the others alone."""
    field = crowd(rng, n, 2.0, (34, 32) if n > 32 else (14, 14))
    rows = np.append(np.arange(n), 2)
    twin = replace(field, **{v: getattr(field, v)[rows] for v in ("x", "y", "r", "fwhm")})
    twin.x[n] += 1e-6
    (flux, fluxerr, flag), _, _ = group_and_measure(ops, twin, 4.0)
    assert np.flatnonzero(np.isnan(flux)).tolist() == [2, n]
    np.testing.assert_array_equal(np.isnan(fluxerr), np.isnan(flux))
    np.testing.assert_array_equal(flag, twin.sep()[2])
    expected, noise = solve_directly(field, np.arange(n))
    others = np.arange(n) != 2
    assert (np.abs(flux[:n] - expected) / noise)[others].max() < 1e-5
    np.testing.assert_allclose(fluxerr[:n][others], noise[others], rtol=1e-5)


def test_members_that_nearly_coincide(rng, ops):
    """Each flux is poor, and still that of SEP."""
    field = crowd(rng, 6, 2.0, (14, 14))
    field.x[3], field.y[3] = field.x[1] + 0.05, field.y[1] - 0.06
    result, _, _ = group_and_measure(ops, field, 4.0)
    assert_same(result, field.sep(grouped=True, group_radius_factor=4.0), 1e-7)


def test_a_crowd_on_one_spot_is_given_up(rng, ops):
    field = crowd(rng, 200, 0.0, (30, 30))
    field.x[:], field.y[:] = 12 + rng.normal(0, 0.1, (2, 200))
    (flux, _, flag), _, size = group_and_measure(ops, field, 2.0)
    assert set(size) == {200}
    assert np.isnan(flux).all()
    np.testing.assert_array_equal(flag, field.sep()[2])


def test_noise_that_is_undefined_separates_a_group(rng, ops):
    field = make_field(rng, separate=0.7)
    field.err[::9, ::7] = np.nan
    result, _, size = group_and_measure(ops, field)
    rows = np.flatnonzero(size <= 32)
    assert_same([v[rows] for v in result], field.sep(rows, grouped=True), 1e-9)


def test_close_pairs_where_noise_is_undefined(rng, ops):
    field = crowd(rng, 6, 2.0, (14, 14))
    field.x[3], field.y[3] = field.x[1] + 0.01, field.y[1]
    row, column = np.clip(np.round([field.y[1], field.x[1]]), 0, 13).astype(int)
    field.err[row, column], field.mask[row, column] = np.nan, False
    result, _, _ = group_and_measure(ops, field, 4.0)
    assert_same(result, field.sep(), 1e-9)


def test_pixels_without_data_spoil_their_group_only(rng, ops):
    field = make_field(rng, separate=0.7, n=60)
    rows = np.flatnonzero(usable(field))[:4]
    row, column = (np.clip(np.round(v[rows]), 0, 129).astype(int) for v in (field.y, field.x))
    background = np.zeros(SHAPE)
    background[row, column] = np.nan
    frame = sep_frame_of(ops, field, background)
    r, fwhm = ops.to_device(field.r), ops.to_device(field.fwhm)
    pos = positions_of(ops, field.x, field.y)
    groups = ops.link_groups(pos, r)
    sums = ops.sep_grouped_optimal_sums(frame, pos, groups, r, fwhm, None, radius_factor=1.0)
    image = field.planes[0]
    image[row, column] = np.nan
    small = np.flatnonzero(ops.to_host(groups.size) <= 32)
    result = [v[small] for v in on_host(ops, sums)]
    assert_same(result, field.sep(small, data=image, grouped=True), 1e-9)


def test_missing_positions_radii_and_widths_in_groups(rng, ops):
    field = make_field(rng, separate=0.7)
    field.x[3], field.y[4], field.x[6] = np.nan, np.inf, 1e300
    field.r[5], field.fwhm[5] = np.nan, np.nan
    field.r[7] = -1.0
    missing = [3, 4, 5, 7]
    (flux, fluxerr, flag), _, size = group_and_measure(ops, field)
    assert np.isnan(flux[missing]).all()
    assert np.isnan(fluxerr[missing]).all()
    assert not flag[missing].any()
    rows = np.setdiff1d(np.flatnonzero(size <= 32), missing)
    assert_same((flux[rows], fluxerr[rows], flag[rows]), field.sep(rows, grouped=True), 1e-9)


def test_no_groups(rng, ops):
    field = make_field(rng)
    nothing = replace(field, **dict.fromkeys(("x", "y", "r", "fwhm"), np.empty(0)))
    assert all(len(v) == 0 for v in group_and_measure(ops, nothing)[0])
    nowhere = replace(field, x=np.full(len(field.x), np.nan))
    flux, fluxerr, flag = group_and_measure(ops, nowhere, 1.0, 2.0)[0]
    assert np.isnan(flux).all()
    assert np.isnan(fluxerr).all()
    assert not flag.any()


@pytest.mark.fresh_seed
@pytest.mark.parametrize("separate", [0.05, 1.0])
def test_permuted_rows_have_the_same_bits(rng, ops, separate):
    field = make_field(rng, n=200, separate=separate)
    n = len(field.x)
    level, error, area = rng.normal(3, 1, n), rng.uniform(0, 1, n), rng.uniform(20, 60, n)
    order = rng.permutation(n)
    columns = {v: getattr(field, v)[order] for v in ("x", "y", "r", "fwhm")}
    permuted = replace(field, **columns)
    for how in (measure, lambda *a: group_and_measure(a[0], a[1], 1.0, *a[2:])[0]):
        result = how(ops, field, 2.0, annulus_of(ops, level, error, area))
        other = how(ops, permuted, 2.0, annulus_of(ops, level[order], error[order], area[order]))
        for one, two in zip(result, other, strict=True):
            np.testing.assert_array_equal(one[order], two)


@pytest.mark.fresh_seed
def test_large_groups_do_not_depend_on_what_is_in_memory(rng, ops, backend):
    field = crowd(rng, 120, 1.5, (50, 50))
    expected, _, _ = group_and_measure(ops, field)
    where = {
        "numpy": ("gpuphot.numpy_backend.sep_group_optimal.BAND", 2000),
        "cupy": ("gpuphot.cupy_backend.launch.MAX_WORKSPACE", 20_000),
    }
    with mock.patch(*where[backend]):
        result, _, _ = group_and_measure(ops, field)
    for one, two in zip(result, expected, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.fresh_seed
def test_group_of_many_with_one_wide_member(rng, ops, backend):
    """In parts that do not see the whole group."""
    if backend != "numpy":
        pytest.skip("too large for kernels that are executed by the CPU")
    field = crowd(rng, 800, 1.2, (155, 155))
    field.fwhm[7], field.r[7] = 12.0, 15.0
    (flux, fluxerr, _), identity, size = group_and_measure(ops, field)
    members = np.flatnonzero((identity == identity[np.argmax(size)]) & usable(field))
    assert len(members) > 400
    expected, error = solve_directly(field, members)
    assert np.abs((flux[members] - expected) / error).max() < 1e-9
    others = members != 7
    difference = np.abs(fluxerr[members] / error - 1)
    # A block sees of the group what its ordinary members reach; the wide one links farther.
    assert np.quantile(difference[others], 0.99) < 1e-9
    assert difference[others].max() < 1e-7
    assert difference[~others] < 1e-6
