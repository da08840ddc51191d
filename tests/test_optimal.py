"""Optimal sums, and measure_objects with optimal=True: against least squares, and in bad company.

Rounding errors of a fit are some 1e-16 of the brightest star's flux times the condition of the
normal equations, and 1e-12 of an error in all but the worst groups. Tolerances of 1e-9 leave room
for those; where members can hardly be told apart, the tests give their own.
"""

from __future__ import annotations

import functools
import tracemalloc
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.linalg
from astropy.table import MaskedColumn, Table
from scipy.sparse import coo_array, csr_array, hstack

import gpuphot
from gpuphot import Flag
from gpuphot.models.frame import OptimalSums
from gpuphot.models.groups import CROWD, MAX_CROWD
from gpuphot.models.psf import PSFModel
from gpuphot.numpy_backend.stamps import psf_stamps

from .psfs import DATA, REAL, make_psf
from .scenes import frame_of, positions_of

FWHM = 2.5
MODELS = {
    "Gaussian": PSFModel.gaussian(FWHM),
    "sampled 0.5": PSFModel.from_psfex_dict(make_psf(51, 51, 0.5, 2)),
    "wide": PSFModel.from_psfex_dict(make_psf(19, 45, 1.0, 1)),
    "high": PSFModel.from_psfex_dict(make_psf(27, 13, 1.0, 1)),
}
SINGULAR = Flag.NO_FIT | Flag.POOR_FIT
LOST = Flag.INVALID | Flag.NO_FIT
OPTIMAL = ("flux", "fluxerr", "npix_optimal", "chi2_optimal", "norm_optimal")


# ---- fields --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """Stars on an image, what belongs to its pixels, and the local backgrounds; on the host."""

    image: np.ndarray
    x: np.ndarray
    y: np.ndarray
    mask: np.ndarray
    err: np.ndarray
    bg: np.ndarray

    @property
    def usable(self):
        return np.isfinite(self.image) & ~self.mask & np.isfinite(self.err) & (self.err > 0)


def field_of(image, x, y, mask=None, err=3.0, bg=0.0):
    mask = np.zeros(image.shape, bool) if mask is None else mask
    err = np.broadcast_to(err, image.shape)
    return Field(image, np.asarray(x), np.asarray(y), mask, err, np.broadcast_to(bg, len(x)))


def draw(psf, x, y, flux, shape):
    """Image of stars that look as the model says."""
    image = np.zeros(shape)
    for star, place in zip(psf_stamps(psf, x, y), places(psf, x, y, shape), strict=True):
        image[place.image] += flux[place.star] * star[place.stamp]
    return image


@dataclass(frozen=True)
class Place:
    """Where the stamp of a star meets the image: pixels of both."""

    star: int
    stamp: tuple[slice, slice]
    image: tuple[slice, slice]


def places(psf, x, y, shape):
    for k in range(len(x)):
        stamp, image = [], []
        for centre, size, length in zip((y[k], x[k]), psf.stamp_shape, shape, strict=True):
            first = int(np.rint(centre)) - size // 2
            start, stop = (min(max(v, 0), length) for v in (first, first + size))
            image.append(slice(start, stop))
            stamp.append(slice(start - first, stop - first))
        yield Place(k, tuple(stamp), tuple(image))


@pytest.fixture
def field(rng):
    """A crowded field: half-integer positions, borders, masks, bad pixels, uneven noise."""
    n, shape = 40, (70, 90)
    x, y = rng.uniform(-4, shape[1] + 4, n), rng.uniform(-4, shape[0] + 4, n)
    x[:10], y[5:15] = np.floor(x[:10]) + 0.5, np.floor(y[5:15]) + 0.5
    x[20:25], y[20:25] = rng.uniform(10, 60, (2, 5))
    x[30:35], y[30:35] = x[20:25] + rng.uniform(1, 2, 5), y[20:25] + rng.uniform(-2, 2, 5)
    image = draw(MODELS["Gaussian"], x, y, 10 ** rng.uniform(2, 4, n), shape)
    image += rng.normal(5, 2, shape)
    for value in (np.nan, np.inf):
        image[rng.integers(0, shape[0], 6), rng.integers(0, shape[1], 6)] = value
    err = rng.uniform(1, 4, shape)
    for value in (np.nan, np.inf, 0.0):
        err[rng.integers(0, shape[0], 6), rng.integers(0, shape[1], 6)] = value
    bg = rng.normal(5, 1, n)
    bg[::7] = np.nan
    return Field(image, x, y, rng.random(shape) < 0.05, err, bg)


# ---- the reference -------------------------------------------------------------------------------


def design(field, psf, r, members):
    """Stamps of a group's members on the pixels of the group.

    Returns
    -------
    (n_pixels, K) array
    pixels : (n_pixels,) indices into the flat image
    reaches : (K,) bool array, whether a member's stamp meets the image
    """
    shape = field.image.shape
    row, column = np.indices(shape)
    light, union = np.zeros((len(members), *shape)), np.zeros(shape, bool)
    reaches = np.zeros(len(members), bool)
    x, y = field.x[members], field.y[members]
    for stamp, place in zip(psf_stamps(psf, x, y), places(psf, x, y, shape), strict=True):
        k = place.star
        light[k][place.image] = stamp[place.stamp]
        reaches[k] = light[k][place.image].size > 0
        dx, dy = column[place.image] - x[k], row[place.image] - y[k]
        union[place.image] |= np.sqrt(dx * dx + dy * dy) <= r
    union &= field.usable
    return light[:, union].T, np.flatnonzero(union), reaches


def fit_group(field, psf, r, members, expected):
    """Enter the least-squares fit of a group, by QR factorisation, into the expected sums.

    Returns the condition number of the scaled stamps, with which rounding errors grow.
    """
    stamps, pixels, reaches = design(field, psf, r, members)
    members, stamps = members[reaches], stamps[:, reaches]
    expected.npix[members] = len(pixels)
    if not len(pixels):
        return 1.0
    level = field.bg[members]
    level = level[np.isfinite(level)].mean() if np.isfinite(level).any() else 0.0
    data, err = field.image.ravel()[pixels] - level, field.err.ravel()[pixels]
    seen = stamps.any(axis=0)
    columns = [stamps[:, seen], np.ones((len(pixels), int(level != 0)))]
    flux, fluxerr, residual, condition = least_squares(np.hstack(columns), data, err)
    n_seen = np.count_nonzero(seen)
    n_terms = n_seen + (level != 0)
    expected.flux[members[seen]], expected.fluxerr[members[seen]] = flux[:n_seen], fluxerr[:n_seen]
    expected.norm[members] = stamps.sum(axis=0)
    if len(pixels) > n_terms:
        expected.chi2[members] = np.sum((residual / err) ** 2) / (len(pixels) - n_terms)
    return condition


def least_squares(columns, data, err):
    """Solution, its errors, residuals, and the condition number of the scaled columns."""
    if len(data) < columns.shape[1]:
        return np.full(columns.shape[1], np.nan), np.full(columns.shape[1], np.nan), data, np.inf
    scale = np.sqrt((columns * columns).sum(axis=0))
    q, triangle = np.linalg.qr(columns / scale)
    weights = scipy.linalg.solve_triangular(triangle, q.T)
    solution = weights @ data
    errors = np.sqrt(((weights * err) ** 2).sum(axis=1))
    return (
        solution / scale, errors / scale, data - columns @ (solution / scale),
        np.linalg.cond(triangle),
    )  # fmt: skip


def nothing(n):
    flux, fluxerr, chi2, norm = np.full((4, n), np.nan)
    return OptimalSums(flux, fluxerr, np.zeros(n, int), chi2, norm, np.zeros(n, bool))


def prepared(ops, field):
    """Frame, positions and local backgrounds on the device."""
    frame = frame_of(ops, field.image, ops.to_device(field.mask), err=field.err)
    return frame, positions_of(ops, field.x, field.y), ops.to_device(np.array(field.bg))


def on_host(ops, sums):
    return OptimalSums(**{name: ops.to_host(values) for name, values in vars(sums).items()})


def fit(ops, field, psf, r, radius=1e3):
    """Sums of the groups of a field, and the groups."""
    frame, pos, bg = prepared(ops, field)
    groups = ops.link_groups(pos, radius / 2)
    sums = on_host(ops, ops.grouped_optimal_sums(frame, pos, groups, psf, r, bg))
    return sums, ops.to_host(groups.id), ops.to_host(groups.size)


def assert_fits(sums, expected, rows=slice(None), tolerance=1e-9):
    """Fluxes within the tolerance of their errors, all else within that of itself; npix equal."""
    for name in ("flux", "fluxerr", "chi2", "norm"):
        u, v = getattr(sums, name)[rows], getattr(expected, name)[rows]
        np.testing.assert_array_equal(np.isnan(u), np.isnan(v), name)
        scale = expected.fluxerr[rows] if name == "flux" else np.maximum(np.abs(v), 1e-6)
        excess = np.abs(u - v) / scale
        assert np.nanmax(excess, initial=0) <= tolerance, (name, np.nanmax(excess))
    np.testing.assert_array_equal(sums.npix[rows], expected.npix[rows])


# ---- against least squares -----------------------------------------------------------------------


@pytest.mark.parametrize("r", [0.4, 3.3, 50.0])
@pytest.mark.parametrize("name", MODELS)
def test_single_sources_are_fitted_to_the_pixels_around_theirs(field, ops, name, r):
    psf = MODELS[name]
    frame, pos, bg = prepared(ops, field)
    sums = on_host(ops, ops.optimal_sums(frame, pos, psf, r, bg))
    expected = nothing(len(field.x))
    offset = np.indices(psf.stamp_shape) - np.array(psf.stamp_shape)[:, None, None] // 2
    near = np.sqrt((offset**2).sum(axis=0)) <= r
    at = zip(
        psf_stamps(psf, field.x, field.y),
        places(psf, field.x, field.y, field.image.shape), field.bg, strict=True,
    )  # fmt: skip
    for stamp, place, level in at:
        k, used = place.star, near & field.usable[place.image] if whole(place, psf) else []
        if not np.any(used):
            continue
        light, err = stamp[used], field.err[place.image][used]
        data = field.image[place.image][used] - level
        power, npix = np.sum(light**2), len(light)
        flux = np.sum(light * data) / power
        expected.flux[k] = flux
        expected.fluxerr[k] = np.sqrt(np.sum((light * err) ** 2)) / power
        expected.norm[k], expected.npix[k] = np.sum(light), npix
        if npix > 1:
            expected.chi2[k] = np.sum(((data - flux * light) / err) ** 2) / (npix - 1)
    has_level = np.isfinite(field.bg)
    assert 0 < np.count_nonzero(np.isfinite(expected.flux)) < len(field.x)
    assert_fits(sums, expected, has_level, 1e-11)
    assert np.isnan(sums.flux[~has_level]).all()
    assert not sums.singular.any()


def whole(place, psf):
    """Whether the whole stamp lies in the image."""
    return all(part == slice(0, n) for part, n in zip(place.stamp, psf.stamp_shape, strict=True))


CASES = {
    "linked at twice the radius": (4.5, 9.0, False),
    "with a constant": (4.5, 9.0, True),
    "small radius, linked further": (1.5, 7.0, True),
    "linked at less than the radius": (5.5, 3.5, False),
    "radius beyond the stamps": (30.0, 6.0, False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_groups_are_fitted_as_least_squares_does(field, ops, name, case):
    """At borders, with masked and bad pixels, uneven noise, members without local background.

    A pixel belongs to every group that reaches it. Groups with a condition number above 1e3, of
    stars that hardly lie on the image or on its good pixels, are not compared.
    """
    psf, (r, radius, with_constant) = MODELS[name], CASES[case]
    if not with_constant:
        field = replace(field, bg=np.zeros(len(field.x)))
    sums, group, size = fit(ops, field, psf, r, radius)
    expected, compared = nothing(len(field.x)), np.zeros(len(field.x), bool)
    for each in np.unique(group[size > 1]):
        members = np.flatnonzero(group == each)
        condition = fit_group(field, psf, r, members, expected)
        compared[members] = condition < 1e3
        assert condition > 1e3 or not sums.singular[members].any()
    assert np.count_nonzero(compared) > 6
    assert_fits(sums, expected, compared | (size < 2))


@pytest.mark.fresh_seed
@pytest.mark.parametrize("n", [2, 3, 15, 16, 17, 33, 64, 65, 70])
@pytest.mark.parametrize("level", [0.0, 5.0])
def test_groups_of_any_size(rng, ops, n, level):
    """Solved element by element, by halves, and in blocks."""
    x, y = separate_positions(rng, n, (60, 66), 1.0)
    image = draw(MODELS["Gaussian"], x, y, 10 ** rng.uniform(2, 4.5, n), (60, 66))
    field = field_of(
        image + rng.normal(level, 3, image.shape), x, y, rng.random(image.shape) < 0.03,
        rng.uniform(2, 4, image.shape), level,
    )  # fmt: skip
    sums, _, size = fit(ops, field, MODELS["Gaussian"], 4.5)
    assert set(size) == {n}
    expected = nothing(n)
    fit_group(field, MODELS["Gaussian"], 4.5, np.arange(n), expected)
    assert_fits(sums, expected)


def separate_positions(rng, n, shape, distance, margin=0.0):
    """Random positions on an image that keep a distance from each other."""
    x, y = np.empty((2, n))
    for k in range(n):
        near = True
        while near:
            x[k] = rng.uniform(margin, shape[1] - 1 - margin)
            y[k] = rng.uniform(margin, shape[0] - 1 - margin)
            near = np.any(np.hypot(x[:k] - x[k], y[:k] - y[k]) < distance)
    return x, y


def test_true_fluxes_are_found_up_to_the_border(rng, ops):
    """stdpipe fits groups at the border one by one, and only whole stamps."""
    x, y = separate_positions(rng, 12, (40, 50), 1.5)
    x[:4], y[:4] = (-0.4, 49.3, 20.0, 24.0), (10.0, 12.5, -0.5, 39.4)
    flux = 10 ** rng.uniform(2, 4, 12)
    for psf in MODELS.values():
        field = field_of(draw(psf, x, y, flux, (40, 50)), x, y)
        sums, *_ = fit(ops, field, psf, 6.0)
        np.testing.assert_allclose(sums.flux, flux, rtol=1e-9, atol=1e-8)
        assert np.all(sums.chi2 < 1e-20)


@pytest.mark.parametrize("x", [(50.5, 58.5), (51.5, 59.5)])
@pytest.mark.parametrize("y", [(40.0, 40.0), (40.5, 41.5)])
def test_stars_at_half_integers_are_where_they_are(ops, x, y):
    """stdpipe places the first pair one pixel off, and measures 864 of 1000."""
    x, y, psf = np.array(x), np.array(y), PSFModel.gaussian(3.0)
    field = field_of(draw(psf, x, y, np.full(2, 1000.0), (80, 100)), x, y)
    sums, *_ = fit(ops, field, psf, 9.0)
    np.testing.assert_allclose(sums.flux, 1000, rtol=1e-12)


def test_groups_do_not_know_of_each_other(field, ops):
    """Linked at less than the radius, they share pixels; each is fitted as if it were alone."""
    field = replace(field, bg=np.zeros(len(field.x)))
    psf = MODELS["Gaussian"]
    together, group, size = fit(ops, field, psf, 8.0, 4.0)
    for each in np.unique(group[size > 1]):
        rows = group == each
        part = replace(field, x=field.x[rows], y=field.y[rows], bg=field.bg[rows])
        alone, *_ = fit(ops, part, psf, 8.0, 4.0)
        for name, values in vars(alone).items():
            np.testing.assert_array_equal(values, getattr(together, name)[rows], name)


def test_noise_does_not_change_fluxes_but_errors(field, ops):
    """All pixels weigh the same. Fluxes are exact to 1e-10 of their errors, whatever these are."""
    flat = replace(field, err=np.where(field.usable, 1.0, np.nan))
    one, *_ = fit(ops, field, MODELS["wide"], 4.0, 8.0)
    other, *_ = fit(ops, flat, MODELS["wide"], 4.0, 8.0)
    np.testing.assert_array_equal(np.isnan(one.flux), np.isnan(other.flux))
    assert np.nanmax(np.abs(one.flux - other.flux) / other.fluxerr) < 1e-10
    assert np.all((one.fluxerr > other.fluxerr)[np.isfinite(one.flux)])


# ---- large groups --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crowd:
    """A field whose stars are all in one group, its stamps on all pixels, and the true fluxes."""

    field: Field
    psf: PSFModel
    r: float
    stamps: csr_array
    pixels: np.ndarray


@functools.lru_cache(maxsize=1)
def make_crowd(seed, shape, density, fwhm):
    rng = np.random.default_rng(seed)
    n = round(density * shape[0] * shape[1])
    x, y = separate_positions(rng, n, shape, 0.1 * fwhm)
    psf, r = PSFModel.gaussian(fwhm), 1.5 * fwhm
    image = draw(psf, x, y, 10 ** rng.uniform(2, 4.5, n), shape) + rng.normal(10, 3, shape)
    field = field_of(
        image, x, y, rng.random(shape) < 0.01, rng.uniform(2, 4, shape), rng.normal(10, 1, n)
    )
    number, inside = np.arange(image.size).reshape(shape), np.zeros(shape, bool)
    row, star, light = [], [], []
    for stamp, place in zip(psf_stamps(psf, x, y), places(psf, x, y, shape), strict=True):
        pixels = number[place.image]
        row.append(pixels.ravel())
        star.append(np.full(pixels.size, place.star))
        light.append(stamp[place.stamp].ravel())
        low, left = (part.start for part in place.image)
        dy = np.arange(low, place.image[0].stop)[:, None] - y[place.star]
        dx = np.arange(left, place.image[1].stop) - x[place.star]
        inside[place.image] |= np.sqrt(dx * dx + dy * dy) <= r
    pixels = np.flatnonzero(inside & field.usable)
    where = np.concatenate(row), np.concatenate(star)
    stamps = coo_array((np.concatenate(light), where), shape=(image.size, n)).tocsr()
    return Crowd(field, psf, r, stamps[pixels], pixels)


def solve_directly(crowd, with_constant):
    """Sums of a crowd by a dense factorisation of its sparse normal equations."""
    field, columns = crowd.field, crowd.stamps
    level = field.bg.mean() if with_constant else 0.0
    if with_constant:
        columns = hstack([columns, np.ones((len(crowd.pixels), 1))]).tocsr()
    data = field.image.ravel()[crowd.pixels] - level
    err = field.err.ravel()[crowd.pixels]
    noise = columns.multiply(err[:, None]).tocsr()
    factor = scipy.linalg.cholesky((columns.T @ columns).toarray(), lower=True)
    solution = np.zeros(columns.shape[1])
    for _ in range(3):  # The first time solves, the others polish
        left = columns.T @ (data - columns @ solution)
        solution += scipy.linalg.cho_solve((factor, True), left)
    inverse, _ = scipy.linalg.lapack.dpotri(factor, lower=True)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    spread = (noise.T @ noise) @ inverse
    n = len(field.x)
    chi2 = np.sum(((data - columns @ solution) / err) ** 2) / (len(data) - columns.shape[1])
    return OptimalSums(
        flux=solution[:n],
        fluxerr=np.sqrt(np.einsum("ij,ij->j", inverse, spread))[:n],
        npix=np.full(n, len(data)),
        chi2=np.full(n, chi2),
        norm=np.asarray(crowd.stamps.sum(axis=0)),
        singular=np.zeros(n, bool),
    )


def fit_crowd(ops, crowd, with_constant):
    field = crowd.field
    if not with_constant:
        field = replace(field, bg=np.zeros(len(field.x)))
    sums, _, size = fit(ops, field, crowd.psf, crowd.r, 30.0)
    assert set(size) == {len(size)}
    return sums


@pytest.fixture
def large(request, backend):
    """Skips what would take the kernels very long on a CPU."""
    if backend == "cupy" and not request.config.getoption("--backend"):
        pytest.skip("too large for kernels that are executed by the CPU")


@pytest.mark.fresh_seed
@pytest.mark.parametrize("with_constant", [False, True])
def test_blocks_solve_a_group(seed, ops, backend, with_constant, monkeypatch):
    """Cores of 32 pixels, each solved with what is around it, as if they were one."""
    crowd = make_crowd(seed, (44, 130), 0.05, 1.6)
    sums = fit_crowd(ops, crowd, with_constant)
    monkeypatch.setattr(f"gpuphot.{backend}_backend.blocks.MAX_DENSE", 1000)
    at_once = fit_crowd(ops, crowd, with_constant)
    assert np.any(sums.flux != at_once.flux)
    assert_fits(sums, at_once)
    assert_fits(sums, solve_directly(crowd, with_constant))
    assert not sums.singular.any()


@pytest.mark.fresh_seed
@pytest.mark.parametrize("with_constant", [False, True])
def test_blocks_solve_a_group_of_three_thousand(
    seed, ops, backend, large, with_constant, monkeypatch
):
    """0.045 stars a pixel with a FWHM of 3 pixels, as in the densest of fields."""
    crowd = make_crowd(seed, (258, 258), 0.045, 3.0)
    sums = fit_crowd(ops, crowd, with_constant)
    assert_fits(sums, solve_directly(crowd, with_constant))
    assert not sums.singular.any()
    if with_constant:
        monkeypatch.setattr(f"gpuphot.{backend}_backend.blocks.MAX_DENSE", 10_000)
        assert_fits(sums, fit_crowd(ops, crowd, with_constant))


@pytest.mark.fresh_seed
def test_blocks_with_too_many_members_are_given_up(rng, ops, backend, monkeypatch):
    """Here above 25, the stars within 15 pixels of a core in the left third of the image."""
    monkeypatch.setattr(f"gpuphot.{backend}_backend.blocks.MAX_DENSE", 4)
    monkeypatch.setattr(f"gpuphot.{backend}_backend.blocks.MAX_BLOCK", 25)
    x, y = separate_positions(rng, 45, (31, 32), 1.0)
    x[30:] = np.linspace(40, 124, 15)
    field = field_of(rng.normal(0, 3, (32, 128)), x, y)
    sums, *_ = fit(ops, field, PSFModel.gaussian(1.6), 2.4)
    assert np.array_equal(sums.singular, np.isnan(sums.flux))
    assert sums.singular[:30].all()
    assert not sums.singular[x > 80].any()


@pytest.mark.fresh_seed
def test_memory_of_a_crowded_group_does_not_grow_with_its_pairs(rng, ops, backend):
    """400 stars with 25,000 pairs of overlapping stamps, whose 250 pixels would take 100 MB."""
    if backend != "numpy":
        pytest.skip("the memory of this backend is not traced")
    x, y = separate_positions(rng, 400, (60, 70), 0.5)
    field = field_of(rng.normal(0, 3, (60, 70)), x, y)
    frame, pos, bg = prepared(ops, field)
    groups = ops.link_groups(pos, 9.0)
    tracemalloc.start()
    ops.grouped_optimal_sums(frame, pos, groups, PSFModel.gaussian(3.0), 9.0, bg)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e7


# ---- members that cannot be told apart -----------------------------------------------------------


def crowd_around(rng, spot, n, level=0.0, shape=(64, 72)):
    """Stars apart from each other and from a spot at (30.3, 30.2), and then those of the spot.

    None lies in the same square of 8 x 8 pixels as the spot, which may be too crowded.
    """
    x, y = separate_positions(rng, n, shape, 2.0, 4.0)
    far = np.hypot(x - 30.3, y - 30.2) > 3
    far &= (np.rint(x) // CROWD != 3) | (np.rint(y) // CROWD != 3)
    x, y, n = x[far], y[far], np.count_nonzero(far)
    flux = np.append(10 ** rng.uniform(2, 4, n), 3000.0)
    x, y = np.append(x, 30.3), np.append(y, 30.2)
    image = draw(MODELS["Gaussian"], x, y, flux, shape) + rng.normal(level, 3, shape)
    once = field_of(image, x, y, bg=level)
    dx, dy = np.reshape(spot, (-1, 2)).T
    often = field_of(image, np.append(x[:-1], 30.3 + dx), np.append(y[:-1], 30.2 + dy), bg=level)
    return once, often, flux[:-1]


def assert_spot_is_given_up(sums, n):
    """The spot's members are; n others are not."""
    assert np.isnan(sums.flux[n:]).all()
    assert np.isnan(sums.fluxerr[n:]).all()
    assert sums.singular[n:].all()
    assert not sums.singular[:n].any()
    assert np.isfinite(sums.flux[:n]).all()
    assert np.isfinite(sums.chi2[:n]).all()


SPOTS = {
    "twins": [(0, 0), (0, 0)],
    "triplets": [(0, 0), (0, 0), (0, 0)],
    "sixteen": np.zeros((16, 2)),
    "twins 1e-6 pixels apart": [(0, 0), (1e-6, 0)],
    "twins 1e-5 pixels apart": [(0, 0), (-1e-5, 1e-5)],
    "triplets 1e-6 pixels apart": [(0, 0), (1e-6, 1e-6), (-1e-6, 1e-6)],
}


@pytest.mark.parametrize("n", [1, 6, 60, 90])
@pytest.mark.parametrize("level", [0.0, 5.0])
@pytest.mark.parametrize("spot", SPOTS)
def test_coincident_members_cost_only_themselves(rng, ops, n, level, spot):
    """The others have the values that they have beside one star in place of several.

    Up to 1e-6 of their errors, if not for the differences between all but coincident stamps.
    """
    once, often, flux = crowd_around(rng, SPOTS[spot], n, level)
    sums, *_ = fit(ops, often, MODELS["Gaussian"], 4.0)
    assert_spot_is_given_up(sums, len(flux))
    expected, *_ = fit(ops, once, MODELS["Gaussian"], 4.0)
    rows = np.arange(len(flux))
    np.testing.assert_array_equal(sums.npix[rows], expected.npix[rows])
    for name in ("flux", "fluxerr"):
        difference = getattr(sums, name)[rows] - getattr(expected, name)[rows]
        assert np.all(np.abs(difference) <= 1e-6 * expected.fluxerr[rows]), name


@pytest.mark.fresh_seed
@pytest.mark.parametrize("level", [0.0, 5.0])
@pytest.mark.parametrize("spread", [1e-7, 1e-4, 1e-2, 0.1, 0.5])
@pytest.mark.parametrize("copies", [3, 5, 8, 16, 40])
def test_clumps_do_not_spoil_the_rest_of_their_group(rng, ops, level, spread, copies):
    """Their fluxes are true within 6 errors; one of the clump is where its light comes from.

    Centroiding moves all that was detected in a saturated star to about the same place.
    """
    for _ in range(5):
        spot = rng.uniform(-spread, spread, (copies, 2))
        spot[0] = 0
        _, often, flux = crowd_around(rng, spot, 12, level)
        sums, *_ = fit(ops, often, MODELS["Gaussian"], 4.0)
        n = len(flux)
        assert np.array_equal(np.isnan(sums.flux), sums.singular)
        assert not sums.singular[:n].any()
        assert np.all(np.abs(sums.flux[:n] - flux) < 6 * sums.fluxerr[:n])


@pytest.mark.fresh_seed
@pytest.mark.parametrize("level", [0.0, 5.0])
def test_crowds_are_given_up(rng, ops, level):
    """More than half a star a pixel in a square of 8 x 8; up to that many stars are measured."""
    shape = (64, 72)
    crowd = separate_positions(rng, MAX_CROWD + 1, (CROWD, CROWD), 0.6)
    x, y = separate_positions(rng, 40, shape, 2.0)
    outside = (np.rint(x) // CROWD != 3) | (np.rint(y) // CROWD != 4)
    x, y = np.append(crowd[0] + 3 * CROWD, x[outside]), np.append(crowd[1] + 4 * CROWD, y[outside])
    flux = 10 ** rng.uniform(2, 4, len(x))
    for left_out in (0, 1):
        psf, rows = PSFModel.gaussian(1.6), slice(left_out, None)
        image = draw(psf, x[rows], y[rows], flux[rows], shape) + rng.normal(level, 3, shape)
        sums, *_ = fit(ops, field_of(image, x[rows], y[rows], bg=level), psf, 4.0)
        crowded = np.arange(len(x))[rows] < (0 if left_out else MAX_CROWD + 1)
        np.testing.assert_array_equal(sums.singular, crowded)
        np.testing.assert_array_equal(np.isnan(sums.flux), crowded)
        np.testing.assert_array_equal(np.isnan(sums.fluxerr), crowded)
        if left_out:
            assert np.all(np.abs(sums.flux - flux[rows]) < 6 * sums.fluxerr)


@pytest.mark.fresh_seed
def test_a_star_beside_a_crowd_is_fitted_for_the_sake_of_others(ops):
    """Though it lies in the square of the crowd, and after it."""
    x, y = np.append(np.full(40, 25.0), [31.2, 34.5]), np.append(np.full(40, 25.0), [30.5, 31.0])
    image = draw(MODELS["Gaussian"], x[-2:], y[-2:], np.array([3e4, 500.0]), (60, 64))
    sums, *_ = fit(ops, field_of(image, x, y), MODELS["Gaussian"], 4.0)
    assert sums.singular.tolist() == 41 * [True] + [False]
    assert abs(sums.flux[-1] - 500) < 1e-6 * 500
    assert np.all(sums.npix[:-1] == 0)
    assert np.isnan(sums.chi2[:-1]).all()


@pytest.mark.fresh_seed
@pytest.mark.parametrize("spread", [0.0, 1e-8])
def test_thousands_on_one_spot_take_no_more_than_a_few(rng, ops, spread):
    """On NumPy, 2 MB of memory and 0.1 s; the group's matrix would have 200 MB."""
    _, often, flux = crowd_around(rng, rng.uniform(-spread, spread, (5000, 2)), 12)
    tracemalloc.start()
    sums, _, size = fit(ops, often, MODELS["Gaussian"], 4.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert_spot_is_given_up(sums, len(flux))
    assert set(size) == {len(often.x)}
    assert peak < 2e7


# ---- measure_objects -----------------------------------------------------------------------------

SHAPE = (60, 80)
# Two groups, a single source, and one whose stamp crosses the border.
X = np.array([20.2, 24.0, 22.4, 50.0, 54.6, 60.3, 3.0])
Y = np.array([30.0, 31.5, 34.9, 20.4, 20.5, 47.9, 47.0])
FLUX = np.array([900.0, 700.0, 800.0, 500.0, 600.0, 1000.0, 900.0])


@pytest.fixture
def image(rng):
    return draw(PSFModel.gaussian(FWHM), X, Y, FLUX, SHAPE) + rng.normal(0, 1, SHAPE)


@pytest.fixture
def measure(backend, image):
    """Optimal extraction on the backend under test, by default of all stars."""

    def call(obj=None, image=image, **options):
        obj = Table({"x": X, "y": Y}) if obj is None else obj
        options = {"fwhm": FWHM, "aper": 1.6, "bg": 0.0, "err": 1.0, "optimal": True, **options}
        return gpuphot.measure_objects(obj, image, backend=backend, **options)

    return call


def assert_same(one, other, rows=slice(None), names=OPTIMAL):
    for name in names:
        np.testing.assert_array_equal(one[name][rows], other[name][rows], name)


def columns(table, *names):
    return [np.asarray(table[name]) for name in names]


def test_fluxes_groups_and_flags(measure):
    result = measure()
    assert result["group_id"].tolist() == [1, 1, 1, 2, 2, 3, 4]
    assert result["group_size"].tolist() == [3, 3, 3, 2, 2, 1, 1]
    assert result["flags"].tolist() == [0, 0, 0, 0, 0, 0, Flag.NO_FIT]
    flux, fluxerr, chi2 = columns(result[:-1], "flux", "fluxerr", "chi2_optimal")
    assert np.all(np.abs(flux - FLUX[:-1]) < 6 * fluxerr)
    assert np.all(np.abs(chi2 - 1) < 0.6)
    np.testing.assert_allclose(result["mag"][:-1], -2.5 * np.log10(flux), rtol=1e-14)
    magerr = 2.5 / np.log(10) * fluxerr / flux
    np.testing.assert_allclose(result["magerr"][:-1], magerr, rtol=1e-14)
    assert np.isnan(result["mag"][-1])


def test_single_source_near_the_border_is_not_fitted(measure):
    """Though its aperture lies inside; without groups, nor is any other."""
    result = measure(Table({"x": [3.0, 20.0], "y": [47.0, 55.0]}), group_sources=False)
    assert result["flags"].tolist() == [Flag.NO_FIT] * 2
    assert np.isnan(result["flux"]).all()
    assert np.isnan(result["fluxerr"]).all()
    assert result["npix_optimal"].tolist() == [0, 0]
    assert np.isfinite(result["npix_aper"]).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_rows_without_position_are_not_fitted(measure, grouped):
    x = MaskedColumn(np.insert(X, 1, [np.nan, 21.0, np.inf]), mask=np.arange(10) == 2)
    result = measure(
        Table({"x": x, "y": np.insert(Y, 1, 31.0 + np.zeros(3))}), group_sources=grouped
    )
    lost, others = slice(1, 4), np.delete(np.arange(10), [1, 2, 3])
    assert result["flags"][lost].tolist() == [LOST] * 3
    assert np.isnan(result["flux"][lost]).all()
    assert result["npix_optimal"][lost].tolist() == [0] * 3
    expected = measure(group_sources=grouped)
    assert_same(result[others], expected, names=(*OPTIMAL, "flags"))
    if grouped:
        assert result["group_id"][lost].tolist() == [-1] * 3
        assert result["group_size"][lost].tolist() == [0] * 3
        assert_same(result[others], expected, names=("group_id", "group_size"))


def test_rows_without_local_background_have_no_flux_but_fit_their_group(measure):
    """The others are fitted beside them, with the mean of the backgrounds that there are."""
    mask = np.zeros(SHAPE, bool)
    ring = np.hypot(*(np.indices(SHAPE) - np.array([30.0, 20.2])[:, None, None]))
    mask[(ring > 9.9) & (ring < 11.1)] = True
    result = measure(bkgann=(4.0, 4.4), mask=mask)
    assert np.isnan(result["bg_local"]).tolist() == [True] + 6 * [False]
    assert (result["flags"] & LOST).tolist() == [LOST, 0, 0, 0, 0, 0, Flag.NO_FIT]
    flux, fluxerr = columns(result[1:-1], "flux", "fluxerr")
    assert np.isnan(result["flux"][0])
    assert np.isnan(result["fluxerr"][0])
    assert np.all(np.abs(flux - FLUX[1:-1]) < 8 * fluxerr)
    alone = measure(bkgann=(4.0, 4.4), mask=mask, group_sources=False)
    assert np.isnan(alone["flux"]).tolist() == [True] + 5 * [False] + [True]


@pytest.mark.parametrize("grouped", [False, True])
def test_apertures_off_the_image_are_flagged(measure, grouped):
    """In a group that reaches onto the image, and alone; the group does not mind."""
    obj = Table({"x": np.append(X, [84.9, 84.9, 1e6]), "y": np.append(Y, [47.0, 20.0, 5.0])})
    options = {"group_sources": grouped, "grouper_radius": 31.0}
    result, expected = measure(obj, **options), measure(**options)
    assert result["flags"][7:].tolist() == [LOST] * 3
    assert np.isnan(result["flux"][7:]).all()
    assert np.isfinite(result["flux"][:6]).all()
    np.testing.assert_allclose(result["flux"][:7], expected["flux"], rtol=1e-5)
    assert result["flags"][:6].tolist() == [0] * 6


@pytest.mark.parametrize("grouped", [False, True])
def test_sources_without_a_usable_pixel_are_not_fitted(measure, grouped):
    """One of a group, a whole group, a single one; a masked star leaves the others as they are."""
    mask, err = np.zeros(SHAPE, bool), np.ones(SHAPE)
    mask[12:30, 40:66] = True
    err[40:56, 52:69] = np.nan
    result = measure(mask=mask, err=err, group_sources=grouped)
    assert result["flags"][3:5].tolist() == [Flag.MASKED | Flag.NO_FIT] * 2
    assert result["flags"][5] == Flag.NO_FIT
    lost = result[3:6]
    assert lost["npix_optimal"].tolist() == [0, 0, 0]
    for name in ("flux", "fluxerr", "chi2_optimal", "norm_optimal"):
        assert np.isnan(lost[name]).all()
    assert_same(result, measure(group_sources=grouped), slice(0, 3))


def test_a_masked_member_leaves_its_group_as_it_is(measure):
    obj = Table({"x": np.append(X, 33.0), "y": np.append(Y, 45.0)})
    mask = np.zeros(SHAPE, bool)
    mask[36:, 24:43] = True
    options = {"mask": mask, "grouper_radius": 15.0}
    result, expected = measure(obj, **options), measure(**options)
    assert result["group_size"][[0, 7]].tolist() == [4, 4]
    assert result["flags"][7] == Flag.MASKED | Flag.NO_FIT
    assert np.isnan(result["flux"][7])
    assert np.isnan(result["fluxerr"][7])
    assert result["norm_optimal"][7] == 0
    assert result["npix_optimal"][7] == result["npix_optimal"][0]
    assert_same(result[:7], expected, names=("npix_optimal", "norm_optimal"))
    np.testing.assert_allclose(result["flux"][:7], expected["flux"], rtol=1e-12)
    np.testing.assert_allclose(result["fluxerr"][:7], expected["fluxerr"], rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -1.0])
@pytest.mark.parametrize("grouped", [False, True])
def test_pixels_without_proper_noise_count_as_masked(measure, rng, value, grouped):
    bad = rng.random(SHAPE) < 0.1
    bad[np.rint(Y).astype(int), np.rint(X).astype(int) + 1] = True
    result = measure(err=np.where(bad, value, 1.0), group_sources=grouped)
    expected = measure(mask=bad, group_sources=grouped)
    assert_same(result, expected)
    assert np.all(result["npix_optimal"][:6] < measure(group_sources=grouped)["npix_optimal"][:6])
    assert not np.any(result["flags"] & Flag.MASKED)


def test_noise_of_zero_everywhere_gives_no_flux(measure):
    for grouped in (False, True):
        result = measure(err=0.0, group_sources=grouped)
        assert np.isnan(result["flux"]).all()
        assert result["flags"].tolist() == [Flag.NO_FIT] * 7


@pytest.mark.parametrize("grouped", [False, True])
def test_a_poor_fit_is_flagged_and_keeps_its_flux(measure, image, grouped):
    """All members of a group, for its chi-squared is one."""
    image = image.copy()
    image[22, 49] += 3000
    result = measure(image=image, group_sources=grouped)
    poor = [False, False, False, True, grouped, False]
    assert ((np.asarray(result["flags"]) & Flag.POOR_FIT) > 0).tolist() == [*poor, False]
    assert np.array_equal(np.asarray(result["chi2_optimal"][:6]) > 1000, poor)
    assert np.isfinite(result["flux"][:6]).all()


def test_inseparable_sources_have_both_flags(measure):
    obj = Table({"x": np.append(X, [X[0], X[5], X[5]]), "y": np.append(Y, [Y[0], Y[5], Y[5]])})
    result = measure(obj)
    twins = np.isin(np.arange(10), [0, 7, 5, 8, 9])
    assert ((result["flags"] & SINGULAR) == SINGULAR).tolist() == twins.tolist()
    assert np.isnan(result["flux"][twins]).all()
    assert np.isnan(result["fluxerr"][twins]).all()
    flux, expected = result["flux"][1:5], measure()["flux"][1:5]
    np.testing.assert_allclose(flux, expected, atol=1e-5)
    alone = measure(obj, grouper_radius=0)
    assert set(alone["group_size"]) == {1}
    assert np.isfinite(alone["flux"][twins]).all()


@pytest.mark.parametrize("radius", [0, -3.0])
def test_without_a_radius_no_sources_are_grouped(measure, radius):
    result, alone = measure(grouper_radius=radius), measure(group_sources=False)
    assert result["group_id"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert set(result["group_size"]) == {1}
    assert_same(result, alone, names=(*OPTIMAL, "flags"))
    assert "group_id" not in alone.colnames


def test_groups_are_linked_at_twice_the_aperture_by_default(measure):
    assert_same(measure(), measure(grouper_radius=2 * 1.6 * FWHM), names=("group_id", *OPTIMAL))
    assert_same(measure(aper=4.0, fwhm=None, psf=FWHM), measure(), names=("group_id", *OPTIMAL))


# ---- widths --------------------------------------------------------------------------------------


class Widths:
    """A callable FWHM with a summary, which returns what it is told."""

    def __init__(self, values, summary=FWHM):
        self.values, self.summary, self.positions = values, summary, []

    def __float__(self):
        return self.summary

    def __call__(self, x, y):
        self.positions.append((np.array(x), np.array(y)))
        return self.values


BAD_WIDTHS = {"NaN": np.nan, "inf": np.inf, "0": 0.0, "negative": -2.0, "-inf": -np.inf}


@pytest.mark.parametrize("bad", [*BAD_WIDTHS, "huge", "larger than the image"])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_bad_width_costs_only_its_own_row(measure, bad, grouped):
    """In a group of three, for instance, the others are fitted beside it as before."""
    value = BAD_WIDTHS.get(bad, {"huge": 1e300}.get(bad, 11.0))
    for k in (1, 5):
        widths = np.full(7, FWHM)
        widths[k] = value
        result = measure(fwhm=Widths(widths), group_sources=grouped)
        expected = measure(group_sources=grouped)
        others = np.arange(7) != k
        assert_same(result, expected, others, names=(*OPTIMAL, "flags"))
        assert result["flags"][k] == Flag.NO_FIT
        assert np.isnan(result["flux"][k])
        assert np.isnan(result["fluxerr"][k])


@pytest.mark.parametrize("widest", [4.0, 9.5])
def test_groups_have_the_median_width_of_their_members(measure, widest):
    """With three members, it does not matter how wide the widest is."""
    widths = Widths(np.array([2.2, 3.1, widest, 2.0, 3.0, 2.7, 2.4]))
    result = measure(fwhm=widths)
    for rows, width in ((slice(0, 3), 3.1), (slice(3, 5), 2.5), (slice(5, 6), 2.7)):
        expected = measure(psf=width)
        assert_same(result, expected, rows)
    assert result["flags"][:6].tolist() == [0] * 6


def test_single_sources_have_their_own_width(measure):
    widths = np.array([2.2, 3.1, 1.1, 2.0, 4.0, 2.7, 2.4])
    result = measure(fwhm=Widths(widths), group_sources=False)
    for k in range(7):
        assert_same(result, measure(psf=widths[k], group_sources=False), slice(k, k + 1))


def test_widths_are_asked_for_the_positions_that_there_are(measure):
    x = MaskedColumn(np.append(X, [np.nan, 5.0]), mask=[False] * 8 + [True])
    widths = Widths(np.full(7, FWHM))
    result = measure(Table({"x": x, "y": np.append(Y, [5.0, 5.0])}), fwhm=widths)
    ((x_asked, y_asked),) = widths.positions
    np.testing.assert_array_equal(x_asked, X)
    np.testing.assert_array_equal(y_asked, Y)
    assert_same(result[:7], measure())


@pytest.mark.parametrize("value", [FWHM, np.array(FWHM), np.float32(FWHM)])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_callable_may_return_one_width_for_all(measure, value, grouped):
    assert_same(measure(fwhm=Widths(value), group_sources=grouped), measure(group_sources=grouped))


@pytest.mark.parametrize("grouped", [False, True])
def test_no_width_at_all_leaves_a_table_without_fluxes(measure, grouped):
    result = measure(fwhm=Widths(np.full(7, np.nan)), group_sources=grouped)
    assert result["flags"].tolist() == [Flag.NO_FIT] * 7
    assert np.isnan(result["flux"]).all()


def test_a_psf_is_not_replaced_by_widths(measure):
    def fwhm(x, y):
        assert np.ndim(x) == 0  # only at the image centre, for the unit of the radii
        return FWHM

    assert_same(measure(fwhm=fwhm, psf=3.1), measure(psf=3.1))


# ---- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grouped", [False, True])
def test_a_psf_larger_than_the_image_fits_nothing(measure, grouped):
    for psf in (make_psf(65, 25, 1.0, 0), make_psf(25, 91, 1.0, 0), 30):
        result = measure(psf=psf, group_sources=grouped)
        assert result["flags"].tolist() == [Flag.NO_FIT] * 7
        assert np.isnan(result["flux"]).all()
        assert result["npix_optimal"].tolist() == [0] * 7
        if grouped:
            assert result["group_size"].tolist() == [3, 3, 3, 2, 2, 1, 1]


def test_all_ways_to_give_a_model_are_one(measure):
    psf = make_psf(25, 25, 1.0, 2)
    as_model, as_dict = measure(psf=PSFModel.from_psfex_dict(psf)), measure(psf=psf)
    assert np.isfinite(as_model["flux"][:5]).all()
    assert_same(as_model, as_dict)
    gaussian = measure(psf=PSFModel.gaussian(3))
    for value in (3, 3.0, np.float32(3), np.int64(3)):
        assert_same(measure(psf=value), gaussian)
    assert_same(measure(psf=FWHM), measure())


@pytest.mark.parametrize("name", REAL)
def test_a_psfex_file_is_a_model(measure, image, name):
    path = DATA / REAL[name]
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    obj, image = Table({"x": X + 40, "y": Y + 40}), np.pad(image, 40)
    expected = measure(obj, image, psf=gpuphot.load_psf(path))
    assert np.isfinite(expected["flux"]).all()
    for given in (path, str(path)):
        assert_same(measure(obj, image, psf=given), expected)


def test_models_of_photutils_are_models(measure):
    """An oversampled Gaussian, constant and on a grid, is about as good as its formula."""
    psf = pytest.importorskip("photutils.psf")
    nddata = pytest.importorskip("astropy.nddata")
    (fine,) = psf_stamps(PSFModel.gaussian(4 * FWHM), np.zeros(1), np.zeros(1))
    samples = fine * 16
    corners = [(0.0, 0.0), (80.0, 0.0), (0.0, 60.0), (80.0, 60.0)]
    grid = nddata.NDData(np.stack([samples] * 4), meta={"grid_xypos": corners, "oversampling": 4})
    expected = measure()[:6]
    for model in (psf.ImagePSF(samples, oversampling=4), psf.GriddedPSFModel(grid)):
        result = measure(psf=model)[:6]
        np.testing.assert_allclose(result["flux"], expected["flux"], rtol=0.1)
        assert not np.any(result["flags"])
