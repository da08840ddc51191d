"""PSF fits of groups with SEP's conventions: against SEP, and large groups against the truth."""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from gpuphot.models.sep import MAX_FIT_GROUP, PSFFits

from .psfs import make_psf, model_of
from .scenes import positions_of

sep_x = pytest.importorskip("sep_x")

from .test_sep_fit import Field, as_sep, on_host, options_of  # noqa: E402

pytestmark = pytest.mark.fresh_seed

CASES = {
    "plain": (make_psf(34, 30, 0.5, 0), {}),
    "gain, degree 2": (make_psf(33, 35, 0.45, 2), {"gain": 1.7}),
    "fit radius": (make_psf(15, 17, 1.0, 1), {"fit_radius": 4.3, "gain": 3.0}),
    "large fit radius": (make_psf(20, 19, 0.8, 0), {"fit_radius": 5.0}),
    "damped": (make_psf(34, 30, 0.5, 0), {"damp_snthresh": 40.0, "gain": 3.0}),
    "damped within a radius": (
        make_psf(15, 17, 1.0, 1),
        {"damp_snthresh": 20.0, "fit_radius": 3.0},
    ),
    "three steps": (make_psf(34, 30, 0.5, 0), {"maxiter": 3}),
    "fluxes only": (make_psf(33, 35, 0.45, 2), {"fit_positions": False}),
    "fluxes only, within a radius, gain": (
        make_psf(34, 30, 0.5, 0),
        {"fit_positions": False, "fit_radius": 3.6, "gain": 0.8},
    ),
}
SHAPE = 110, 240


class GroupedField(Field):
    """A chain of stars, a clump, pairs, single stars, some at the border; masks and bad pixels."""

    def __init__(self, rng, psf, n_chain=40, shape=SHAPE, n_missing=30):
        height, width = shape
        along = np.arange(n_chain)
        chain = 14 + 5.2 * along, 30 + 12 * np.sin(along / 4)
        clump = np.stack([30 + rng.uniform(-7, 7, 7), 80 + rng.uniform(-7, 7, 7)])
        column, row = (v.ravel() for v in np.meshgrid(np.arange(65, 230, 26), [72, 99]))
        single = np.stack([column, row]) + rng.uniform(-4, 4, (2, len(row)))
        angle = rng.uniform(0, 2 * np.pi, len(row) - 4)
        partners = single[:, 4:] + rng.uniform(2.5, 6) * np.stack([np.cos(angle), np.sin(angle)])
        border = np.array([[5.5, 8.0, width - 0.7, 120.0, 124.0], [3.0, 5.5, 4.2, 1.1, -0.8]])
        x, y = np.concatenate([chain, clump, single, partners, border], axis=1)
        n = len(x)
        image = rng.normal(0, 3, shape)
        sep_x.model_psf(image, x, y, 10 ** rng.uniform(2.7, 4.5, n), as_sep(psf))
        self.err = np.full(shape, 3.0)
        self.err[rng.integers(0, height, n_missing), rng.integers(0, width, n_missing)] = 0
        self.mask = np.zeros(shape, bool)
        self.mask[rng.integers(0, height, n_missing), rng.integers(0, width, n_missing)] = True
        x, y = np.stack([x, y]) + rng.normal(0, 0.2, (2, n))
        x[:4], y[:6] = np.rint(x[:4]), np.rint(2 * y[:6]) / 2
        self.image, self.x, self.y = image, x, y

    def only(self, rows):
        """The same with some of the stars."""
        part = copy.copy(self)
        part.x, part.y = self.x[rows], self.y[rows]
        return part


def fit(ops, field, psf, gain, options):
    pos = positions_of(ops, field.x, field.y)
    found = ops.sep_grouped_psf_fit(field.frame(ops), pos, model_of(psf), gain, options)
    return on_host(ops, found)


def assert_replays(found, expected, n_unlike=0):
    """Equal up to rounding for nearly all, close for all but some that are hardly determined."""
    unlike = (found.flag != expected.flag) | (found.n_iter != expected.n_iter)
    error, flux = np.nan_to_num(expected.fluxerr), np.abs(np.nan_to_num(expected.flux))
    allowed = {
        "flux": (1e-5 * error + 1e-6 * flux, 1e-2 * error + 1e-6 * flux),
        "fluxerr": (1e-6 * error, 1e-3 * error),
        "x": (1e-5, 1e-2),
        "y": (1e-5, 1e-2),
        "chi2": (1e-6 * np.nan_to_num(expected.chi2), 1e-2 * np.nan_to_num(expected.chi2)),
    }
    off = np.zeros(len(flux), np.bool_)
    for name, (near, close) in allowed.items():
        values, truth = getattr(found, name), getattr(expected, name)
        np.testing.assert_array_equal(np.isnan(values), np.isnan(truth), name)
        excess = np.nan_to_num(np.abs(values - truth))
        off |= excess > near
        unlike |= excess > close
    assert np.count_nonzero(off | unlike) <= 0.01 * len(off) + n_unlike, np.flatnonzero(off)
    assert np.count_nonzero(unlike) <= n_unlike, np.flatnonzero(unlike)


@pytest.mark.parametrize("case", CASES)
def test_groups_agree_with_sep(rng, ops, case):
    psf, case = CASES[case]
    gain, options = options_of(case)
    field = GroupedField(rng, psf)
    expected = field.expected(ops, psf, gain, options, grouped=True)
    assert_replays(fit(ops, field, psf, gain, options), expected, n_unlike=1)


@pytest.mark.fresh_seed
@pytest.mark.parametrize("case", ["gain, degree 2", "fluxes only"])
def test_largest_group_that_sep_fits_at_once(rng, ops, case):
    psf, case = CASES[case]
    gain, options = options_of(case)
    field = GroupedField(rng, psf, shape=(110, 380), n_chain=MAX_FIT_GROUP)
    field = field.only(slice(0, MAX_FIT_GROUP))
    expected = field.expected(ops, psf, gain, options, grouped=True)
    assert_replays(fit(ops, field, psf, gain, options), expected)


@pytest.mark.parametrize("case", ["plain", "damped", "fluxes only"])
def test_pixels_without_value_do_what_they_do_in_sep(rng, ops, case):
    psf, case = CASES[case]
    gain, options = options_of(case)
    field = GroupedField(rng, psf)
    # One at the border is missing already; Field.frame puts it there.
    near = np.flatnonzero(np.hypot(field.x - 5, field.y - 3) < 5)
    assert len(near) == 2
    for err in (3.0, 0.0):
        field.err[3, 5] = err
        expected = field.expected(ops, psf, gain, options, grouped=True)
        assert_replays(fit(ops, field, psf, gain, options), expected, n_unlike=1)


@pytest.mark.fresh_seed
@pytest.mark.parametrize("case", ["plain", "fluxes only"])
def test_groups_with_too_few_pixels(rng, ops, case):
    psf = make_psf(2, 3, 1.0, 0)
    gain, options = options_of(CASES[case][1])
    field = GroupedField(rng, psf)
    corner = rng.uniform(-0.45, 1.4, (2, 3))
    field.x, field.y = np.concatenate([[field.x, field.y], corner], axis=1)
    field.image[:4, :4] += 1000
    expected = field.expected(ops, psf, gain, options, grouped=True)
    # Most of these fits have as many unknowns as pixels: only that they end is certain.
    assert_replays(fit(ops, field, psf, gain, options), expected, n_unlike=len(field.x) // 2)


@pytest.mark.parametrize("case", ["plain", "fluxes only"])
def test_sources_without_pixels_are_fitted_alone(rng, ops, case):
    psf, case = CASES[case]
    gain, options = options_of(case)
    field = GroupedField(rng, psf)
    field.mask[60:100, 20:45] = True
    field.y[40:42] = -30.0
    field.x[42], field.x[43] = np.nan, 1e300
    single = field.expected(ops, psf, gain, replace(options, fit_positions=False))
    alone = ~np.isfinite(field.x) | (single.flag.astype(int) & 64 != 0)
    assert 3 < np.count_nonzero(alone) < 15
    found = fit(ops, field, psf, gain, options)
    for rows, grouped in ((alone, False), (~alone, True)):
        expected = field.only(rows).expected(ops, psf, gain, options, grouped=grouped)
        part = PSFFits(*(values[rows] for values in vars(found).values()))
        assert_replays(part, expected, n_unlike=1)


@pytest.mark.parametrize("case", ["damped", "fluxes only, within a radius, gain"])
def test_order_of_rows_changes_no_bit(rng, ops, case):
    psf, case = CASES[case]
    gain, options = options_of(case)
    field = GroupedField(rng, psf)
    expected, order = fit(ops, field, psf, gain, options), rng.permutation(len(field.x))
    shuffled = fit(ops, field.only(order), psf, gain, options)
    for found, truth in zip(vars(shuffled).values(), vars(expected).values(), strict=True):
        np.testing.assert_array_equal(found, truth[order])


def test_no_source_is_no_error(rng, ops):
    psf, case = CASES["plain"]
    gain, options = options_of(case)
    assert len(fit(ops, GroupedField(rng, psf).only([]), psf, gain, options).flux) == 0


def test_coincident_sources_do_not_spoil_others(rng, ops):
    psf, case = CASES["gain, degree 2"]
    gain, options = options_of(case)
    field = GroupedField(rng, psf)
    clean = fit(ops, field, psf, gain, options)
    field.x, field.y = (np.append(v, v[[60, 60]]) for v in (field.x, field.y))
    found = fit(ops, field, psf, gain, options)
    assert np.all(np.isfinite(found.flux))
    far = np.flatnonzero(np.hypot(field.x - field.x[60], field.y - field.y[60])[:-2] > 60)
    np.testing.assert_array_equal(found.flux[far], clean.flux[far])


# Large groups: SEP's tiles do not find the solution, so that the truth is what counts.

LARGE_PSF = make_psf(13, 13, 1.0, 0)
ERR = 10.0


class LargeGroup(GroupedField):
    """Stars in one large group, of known fluxes, at known distances of each other."""

    def __init__(self, rng, kind):
        if kind == "chain":
            along = np.arange(80)
            shape, x, y = (60, 420), 12 + 5.0 * along, 30 + 12 * np.sin(along / 5)
        else:
            shape = 94, 108
            row, column = (v.ravel() for v in np.mgrid[:11, :14])
            x, y = np.stack([14 + 6.0 * column, 14 + 6.5 * row]) + rng.uniform(-1, 1, (2, 154))
        self.true_x, self.true_y = x, y
        self.flux = 10 ** rng.uniform(3.5, 4.5, len(x))
        self.image = rng.normal(0, ERR, shape)
        sep_x.model_psf(self.image, x, y, self.flux, as_sep(LARGE_PSF))
        self.err, self.mask = np.full(shape, ERR), np.zeros(shape, bool)
        self.mask[20:22, 40:42] = True
        self.x, self.y = x, y

    def displaced(self, rng):
        part = copy.copy(self)
        part.x, part.y = np.stack([self.x, self.y]) + rng.normal(0, 0.15, (2, len(self.x)))
        return part

    def joint_fluxes(self):
        """Fluxes of all stars at the same time where they are, by least squares."""
        models = np.zeros((len(self.x), *self.image.shape))
        for k, model in enumerate(models):
            sep_x.model_psf(model, self.x[[k]], self.y[[k]], np.ones(1), as_sep(LARGE_PSF))
        models[:, self.mask] = 0
        models = models.reshape(len(self.x), -1) / ERR
        normal, pixels = models @ models.T, self.image.astype(np.float32).ravel() / ERR
        covariance = np.linalg.inv(normal)
        return covariance @ (models @ pixels), np.sqrt(np.diag(covariance))


def pulls(found, field):
    return (found.flux - field.flux) / found.fluxerr


@pytest.fixture
def rounds(ops, monkeypatch):
    """Sets how often the blocks of large groups are fitted."""
    module = importlib.import_module(ops.sep_grouped_psf_fit.__module__)
    return lambda n: monkeypatch.setattr(module, "_ROUNDS", n)


def on_gpu(test):
    """Large groups are SEP's own affair in NumPy."""
    return pytest.mark.parametrize("backend", ["cupy"], indirect=True)(test)


@pytest.mark.fresh_seed
@on_gpu
@pytest.mark.parametrize("kind", ["chain", "clump"])
def test_fluxes_of_large_groups_are_those_of_all_members_at_once(rng, ops, kind):
    gain, options = options_of({"fit_positions": False})
    field = LargeGroup(rng, kind)
    found = fit(ops, field, LARGE_PSF, gain, options)
    flux, fluxerr = field.joint_fluxes()
    assert np.all(np.abs(found.flux - flux) < 1e-3 * fluxerr)
    np.testing.assert_allclose(found.fluxerr, fluxerr, rtol=1e-3)


@pytest.mark.fresh_seed
@on_gpu
@pytest.mark.parametrize("kind", ["chain", "clump"])
@pytest.mark.parametrize("fit_radius", [0.0, 4.0])
def test_large_groups_are_fitted_without_bias(rng, ops, kind, fit_radius):
    gain, options = options_of({"fit_radius": fit_radius})
    field = LargeGroup(rng, kind).displaced(rng)
    found = fit(ops, field, LARGE_PSF, gain, options)
    of_sep = field.expected(ops, LARGE_PSF, gain, options, grouped=True)
    off, off_of_sep = pulls(found, field), pulls(of_sep, field)
    assert abs(np.mean(off)) < 5 * np.std(off) / np.sqrt(len(off))
    # Errors of SEP are those at fixed positions: fitted ones add to them where stars blend.
    assert 0.8 < np.std(off) < 1.3
    assert np.std(off) < 1.02 * np.std(off_of_sep)
    away, away_of_sep = (
        np.hypot(fits.x - field.true_x, fits.y - field.true_y) for fits in (found, of_sep)
    )
    assert np.median(away) < 1.02 * np.median(away_of_sep)
    assert 0.9 < np.median(found.chi2) < 1.1


@pytest.mark.fresh_seed
@pytest.mark.parametrize("backend", ["numpy"], indirect=True)
@pytest.mark.parametrize("kind", ["chain", "clump"])
def test_large_groups_scatter_more_than_their_errors_in_sep(rng, ops, kind):
    """Where positions are fitted, by a factor of about 2; fluxes alone are as good as they say."""
    field = LargeGroup(rng, kind)
    for options, least, most in (({"fit_positions": False}, 0.8, 1.25), ({}, 1.2, 4.0)):
        gain, options = options_of(options)
        start = field.displaced(rng) if options.fit_positions else field
        off = pulls(fit(ops, start, LARGE_PSF, gain, options), field)
        assert abs(np.mean(off)) < 5 * np.std(off) / np.sqrt(len(off))
        assert least < np.std(off) < most


@pytest.mark.fresh_seed
@on_gpu
@pytest.mark.parametrize("kind", ["chain", "clump"])
def test_further_rounds_change_little(rng, ops, rounds, kind):
    gain, options = options_of({"fit_radius": 4.0})
    field = LargeGroup(rng, kind).displaced(rng)
    found = fit(ops, field, LARGE_PSF, gain, options)
    rounds(4)
    change = np.abs(fit(ops, field, LARGE_PSF, gain, options).flux - found.flux) / found.fluxerr
    assert np.median(change) < 1e-3
    # The stamp of a star that hardly moves any more can still move, by a whole pixel.
    assert np.percentile(change, 95) < 1e-2


@pytest.mark.fresh_seed
@on_gpu
def test_order_of_rows_and_memory_change_no_bit_of_large_groups(rng, ops, rounds):
    rounds(1)
    gain, options = options_of({"fit_radius": 4.0, "gain": 2.0})
    field = LargeGroup(rng, "chain").displaced(rng)
    expected, order = fit(ops, field, LARGE_PSF, gain, options), rng.permutation(len(field.x))
    with mock.patch("gpuphot.cupy_backend.launch.MAX_WORKSPACE", 300_000):
        shuffled = fit(ops, field.only(order), LARGE_PSF, gain, options)
    for found, truth in zip(vars(shuffled).values(), vars(expected).values(), strict=True):
        np.testing.assert_array_equal(found, truth[order])


@pytest.mark.fresh_seed
@on_gpu
def test_more_stars_than_pixels_are_no_error(rng, ops, rounds):
    rounds(1)
    gain, options = options_of({"fit_positions": False})
    field = LargeGroup(rng, "chain")
    field.x, field.y = rng.uniform(50, 53, (2, 150))
    field.y[:100], field.x[:100] = 20 + rng.uniform(0, 0.4, 100), 60.0
    found = fit(ops, field, LARGE_PSF, gain, options)
    assert np.all(np.isfinite(found.flux))
    assert np.all(found.flux >= 0)
