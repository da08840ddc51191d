"""PSF fits with SEP's conventions, against SEP."""

from __future__ import annotations

import importlib
from dataclasses import fields, replace

import numpy as np
import pytest

from gpuphot.models.sep import FitOptions, PSFFits
from gpuphot.numpy_backend import primitives as numpy_ops
from gpuphot.numpy_backend.sep_fit import find_groupable

from .psfs import make_psf, model_of
from .scenes import positions_of

pytestmark = pytest.mark.fresh_seed

sep_x = pytest.importorskip("sep_x")

PSFS = {
    "sampled 0.5": make_psf(42, 38, 0.5, 0),
    "sampled 1": make_psf(19, 21, 1.0, 1),
    "sampled 0.45, degree 2": make_psf(45, 41, 0.45, 2),
}
OPTIONS = {
    "plain": {},
    "gain": {"gain": 1.7},
    "fit radius": {"fit_radius": 4.3},
    "damped": {"damp_snthresh": 40.0, "gain": 3.0},
    "damped within a radius": {"damp_snthresh": 20.0, "fit_radius": 3.0},
    "three steps": {"maxiter": 3},
    "fluxes only": {"fit_positions": False},
    "fluxes only, within a radius, gain": {"fit_positions": False, "fit_radius": 3.6, "gain": 0.8},
}
SHAPE = 100, 120
"""Of the images."""


def options_of(case):
    """Gain and `FitOptions` of a case."""
    case = dict(case)
    gain = case.pop("gain", None)
    defaults = {
        "maxiter": 20, "fit_positions": True, "fit_radius": 0.0, "damp_snthresh": 0.0,
        "group_factor": 2.0,
    }  # fmt: skip
    return gain, FitOptions(**defaults | case)


def as_sep(psf):
    keys = "sampling", "degree", "x0", "y0", "sx", "sy", "fwhm"
    return sep_x.PSF(psf["data"], **{key: psf[key] for key in keys})


class Field:
    """Stars, some of them negative or without flux; masks, edges, noiseless and missing pixels."""

    def __init__(self, rng, psf, n=120, shape=SHAPE):
        height, width = shape
        x, y = rng.uniform(-9, width + 9, n), rng.uniform(-9, height + 9, n)
        flux = 10 ** rng.uniform(1, 5, n)
        flux[: n // 10] *= -0.1
        flux[n // 10 : n // 5] = 0
        image = rng.normal(0, 3, shape)
        sep_x.model_psf(image, x, y, flux, as_sep(psf))
        self.err = rng.uniform(2, 4, shape)
        self.err[rng.random(shape) < 0.003] = 0
        self.mask = rng.random(shape) < 0.004
        self.mask[height // 2 : height // 2 + 30, width // 2 : width // 2 + 28] = True
        image[rng.integers(0, height, 3), rng.integers(0, width, 3)] = np.nan
        shift = rng.normal(0, 0.4, (2, n)) * rng.choice([0.3, 1, 6], n)
        x, y = x + shift[0], y + shift[1]
        x[::7], y[::7] = np.rint(x[::7]), np.rint(2 * y[::7]) / 2
        x[1], y[2], x[3] = np.nan, np.inf, -np.inf
        x[4:8] = 1e300, -1e10, 2.0**31, -(2.0**31) - 10
        x[8:10] = width // 2 + 14, width // 2 + 12
        y[8:10] = height // 2 + 15, height // 2 + 16
        self.image, self.x, self.y = image, x, y

    def frame(self, ops):
        level = np.zeros(self.image.shape)
        level[3, 5] = np.nan  # such a pixel is not masked
        return ops.sep_frame(*map(ops.to_device, (self.image, self.mask, level, self.err)))

    def expected(self, ops, psf, gain, options, grouped=False):
        """SEP's own results, rows by fields of `PSFFits`."""
        frame = self.frame(ops)
        data, err, bad = (ops.to_host(v)[0] for v in (frame.data, frame.err, frame.bad))
        valid = np.isfinite(self.x) & np.isfinite(self.y)
        order = np.lexsort((self.y, self.x))
        order = order[valid[order]]
        found = sep_x.psf_fit(
            data, self.x[order], self.y[order], as_sep(psf), err=err, gain=gain,
            mask=(bad & 3).astype(np.uint8), grouped=grouped, group_factor=options.group_factor,
            maxiter=options.maxiter, fit_positions=options.fit_positions,
            fit_radius=options.fit_radius, damp_snthresh=options.damp_snthresh,
        )  # fmt: skip
        result = np.full((7, len(self.x)), np.nan)
        result[[4, 6]] = 0
        result[:, order] = found
        return PSFFits(*result)


def on_host(ops, fits):
    return PSFFits(*(ops.to_host(getattr(fits, field.name)) for field in fields(fits)))


def assert_same_fits(found, expected, n_unlike=0, rtol=1e-9):
    """Equal but for rounding, in units of errors and pixels; some rows may be unlike.

    Fits that hardly know their position can magnify rounding in every step.
    """
    alike = (found.flag == expected.flag) & (found.n_iter == expected.n_iter)
    scales = {
        "flux": np.nan_to_num(expected.fluxerr) + np.abs(np.nan_to_num(expected.flux)),
        "fluxerr": np.nan_to_num(expected.fluxerr),
        "x": 1,
        "y": 1,
        "chi2": np.nan_to_num(expected.chi2),
    }
    for name, scale in scales.items():
        values, truth = getattr(found, name), getattr(expected, name)
        with np.errstate(invalid="ignore"):
            near = (values == truth) | (np.abs(values - truth) <= rtol * scale)
        alike &= near | (np.isnan(values) & np.isnan(truth))
    assert np.count_nonzero(~alike) <= n_unlike, np.flatnonzero(~alike)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("psf", PSFS)
def test_fits_of_single_sources_agree_with_sep(rng, ops, psf, case):
    psf, (gain, options) = PSFS[psf], options_of(OPTIONS[case])
    field = Field(rng, psf)
    pos = positions_of(ops, field.x, field.y)
    found = ops.sep_psf_fit(field.frame(ops), pos, model_of(psf), gain, options)
    assert_same_fits(on_host(ops, found), field.expected(ops, psf, gain, options), n_unlike=1)


@pytest.mark.parametrize("psf", [make_psf(130, 124, 0.5, 1), make_psf(2, 3, 1.0, 0)])
@pytest.mark.parametrize("case", ["gain", "fluxes only"])
def test_stamps_of_any_size_are_fitted(rng, ops, psf, case):
    gain, options = options_of(OPTIONS[case])
    field = Field(rng, psf, n=30)
    pos = positions_of(ops, field.x, field.y)
    found = ops.sep_psf_fit(field.frame(ops), pos, model_of(psf), gain, options)
    assert_same_fits(on_host(ops, found), field.expected(ops, psf, gain, options), n_unlike=1)


@pytest.mark.parametrize("n_pixels", [0, 1, 2, 3])
@pytest.mark.parametrize("case", ["plain", "damped", "fluxes only"])
def test_few_pixels_do_what_they_do_in_sep(rng, ops, n_pixels, case):
    psf, (gain, options) = PSFS["sampled 0.5"], options_of(OPTIONS[case])
    field = Field(rng, psf)
    column, row = (v.ravel() for v in np.meshgrid(np.arange(11, 110, 24), np.arange(11, 90, 22)))
    field.x, field.y = column + rng.uniform(-0.5, 0.5, (2, len(row)))
    field.image = rng.normal(0, 3, SHAPE)
    sep_x.model_psf(field.image, field.x, field.y, np.full(len(row), 3e4), as_sep(psf))
    field.mask[:], field.err[:] = True, 3
    for _ in range(n_pixels):
        shift = rng.integers(-3, 4, (2, len(row)))
        field.mask[row + shift[0], column + shift[1]] = False
    pos = positions_of(ops, field.x, field.y)
    found = on_host(ops, ops.sep_psf_fit(field.frame(ops), pos, model_of(psf), gain, options))
    expected = field.expected(ops, psf, gain, options)
    assert_same_fits(found, expected, n_unlike=0 if n_pixels == 0 else len(row) // 3, rtol=1e-6)


@pytest.mark.parametrize("damping", [0.0, 5.0, 40.0])
def test_pixels_at_the_border_of_stamps_do_not_count(rng, ops, damping):
    psf = PSFS["sampled 1"]
    gain, options = options_of({"damp_snthresh": damping})
    field = Field(rng, psf, n=24)
    field.image, field.mask[:], field.err[:] = rng.normal(0, 3, SHAPE), False, 3
    height, width = SHAPE
    field.y[:12], field.x[:12] = height + 7.8, rng.uniform(12, width - 12, 12)
    field.x[12:], field.y[12:] = -9.7, rng.uniform(12, height - 12, 12)
    pos = positions_of(ops, field.x, field.y)
    found = on_host(ops, ops.sep_psf_fit(field.frame(ops), pos, model_of(psf), gain, options))
    assert_same_fits(found, field.expected(ops, psf, gain, options))


def test_drifting_positions_go_back(rng, ops):
    psf = PSFS["sampled 0.5"]
    gain, options = options_of({})
    field = Field(rng, psf, n=200)
    field.image = rng.normal(0, 3, SHAPE)  # nothing to be found
    pos = positions_of(ops, field.x, field.y)
    found = on_host(ops, ops.sep_psf_fit(field.frame(ops), pos, model_of(psf), gain, options))
    expected = field.expected(ops, psf, gain, options)
    n_back = np.count_nonzero((expected.x == field.x) & (expected.n_iter > 1))
    assert n_back > 5
    assert_same_fits(found, expected, n_unlike=2)


@pytest.mark.parametrize("case", ["damped", "fluxes only"])
def test_order_and_number_of_rows_change_no_bit(rng, ops, case):
    psf, (gain, options) = PSFS["sampled 0.45, degree 2"], options_of(OPTIONS[case])
    field = Field(rng, psf, n=60)
    frame, model = field.frame(ops), model_of(psf)

    def fit(rows):
        pos = positions_of(ops, field.x[rows], field.y[rows])
        return on_host(ops, ops.sep_psf_fit(frame, pos, model, gain, options))

    expected, order = fit(np.arange(60)), rng.permutation(60)[:40]
    for found, truth in zip(vars(fit(order)).values(), vars(expected).values(), strict=True):
        np.testing.assert_array_equal(found, truth[order])


def test_rows_without_position_have_no_results(ops, rng):
    psf, (gain, options) = PSFS["sampled 1"], options_of({})
    field = Field(rng, psf)
    pos = positions_of(ops, [np.nan, 20.0, np.inf], [20.0, -np.inf, 3.0])
    found = on_host(ops, ops.sep_psf_fit(field.frame(ops), pos, model_of(psf), gain, options))
    for name, values in vars(found).items():
        assert np.all(values == 0 if name in ("flag", "n_iter") else np.isnan(values)), name
        assert values.dtype == (np.int64 if name in ("flag", "n_iter") else np.float64)


def test_no_source_is_no_error(ops, rng):
    psf, (gain, options) = PSFS["sampled 1"], options_of({})
    frame, pos = Field(rng, psf).frame(ops), positions_of(ops, [], [])
    assert len(ops.sep_psf_fit(frame, pos, model_of(psf), gain, options).flux) == 0


@pytest.mark.parametrize("fit_radius", [0.0, 0.4, 4.0])
def test_sources_without_pixels_are_found(rng, ops, fit_radius):
    psf = PSFS["sampled 0.45, degree 2"]
    _, options = options_of({"fit_radius": fit_radius})
    field = Field(rng, psf)
    field.err[rng.random(SHAPE) < 0.1] = np.inf
    pos = positions_of(ops, field.x, field.y)
    alone = importlib.import_module(ops.sep_psf_fit.__module__)
    found = ops.to_host(alone.find_groupable(field.frame(ops), pos, model_of(psf), options))
    fluxes_only = replace(options, fit_positions=False)
    expected = field.expected(ops, psf, None, fluxes_only)
    valid = ops.to_host(pos.valid)
    np.testing.assert_array_equal(found, valid & (expected.flag.astype(int) & 64 == 0))


class TestGroupsInNumPy:
    """Guards around SEP's grouped fits."""

    @pytest.mark.parametrize("case", ["plain", "damped", "fluxes only, within a radius, gain"])
    def test_order_of_rows_changes_no_bit(self, rng, case):
        psf, (gain, options) = PSFS["sampled 0.5"], options_of(OPTIONS[case])
        field = Field(rng, psf, n=200)
        frame, model = field.frame(numpy_ops), model_of(psf)
        order = rng.permutation(200)
        expected, shuffled = (
            numpy_ops.sep_grouped_psf_fit(
                frame, positions_of(numpy_ops, field.x[rows], field.y[rows]), model, gain, options
            )
            for rows in (np.arange(200), order)
        )
        for found, truth in zip(vars(shuffled).values(), vars(expected).values(), strict=True):
            np.testing.assert_array_equal(found, truth[order])

    def test_groups_are_those_of_sep(self, rng):
        psf, (gain, options) = PSFS["sampled 0.5"], options_of({"gain": 2.0})
        field = Field(rng, psf)
        field.x, field.y = rng.uniform(5, 115, 120), rng.uniform(5, 95, 120)
        field.mask[:] = False
        pos = positions_of(numpy_ops, field.x, field.y)
        found = numpy_ops.sep_grouped_psf_fit(
            field.frame(numpy_ops), pos, model_of(psf), gain, options
        )
        expected = field.expected(numpy_ops, psf, gain, options, grouped=True)
        for values, truth in zip(vars(found).values(), vars(expected).values(), strict=True):
            np.testing.assert_array_equal(values, truth)

    @pytest.mark.parametrize("case", ["plain", "fluxes only"])
    def test_sources_without_pixels_stay_out_of_groups(self, rng, case):
        psf, (gain, options) = PSFS["sampled 0.5"], options_of(OPTIONS[case])
        field = Field(rng, psf)
        field.x, field.y = rng.uniform(-16, 30, 120), rng.uniform(5, 95, 120)
        frame, model = field.frame(numpy_ops), model_of(psf)
        pos = positions_of(numpy_ops, field.x, field.y)
        found = numpy_ops.sep_grouped_psf_fit(frame, pos, model, gain, options)
        groupable = find_groupable(frame, pos, model, options)
        assert 3 < np.count_nonzero(~groupable) < 60
        alone = numpy_ops.sep_psf_fit(frame, pos, model, gain, options)
        inside = positions_of(numpy_ops, field.x[groupable], field.y[groupable])
        grouped = numpy_ops.sep_grouped_psf_fit(frame, inside, model, gain, options)
        for name, values in vars(found).items():
            np.testing.assert_array_equal(values[~groupable], getattr(alone, name)[~groupable])
            np.testing.assert_array_equal(values[groupable], getattr(grouped, name))
