"""PSF fits with SEP's conventions, against SEP."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from gpuphot.models.sep import FitOptions, PSFFits

from .psfs import make_psf, model_of
from .scenes import positions_of

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
        data, bad = ops.load_image(ops.to_device(self.image.copy()), self.mask)
        level = np.zeros(self.image.shape)
        level[3, 5] = np.nan  # such a pixel is not masked
        return ops.sep_frame(data, bad, ops.to_device(level), ops.to_device(self.err))

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


def assert_same_fits(found, expected, rtol=1e-9):
    """Equal integers; floats that differ by rounding, in units of their errors and of pixels."""
    np.testing.assert_array_equal(found.flag, expected.flag)
    np.testing.assert_array_equal(found.n_iter, expected.n_iter)
    for name in ("flux", "fluxerr", "x", "y", "chi2"):
        values, truth = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(values, truth, rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("psf", PSFS)
def test_fits_of_single_sources_agree_with_sep(rng, ops, psf, case):
    psf, (gain, options) = PSFS[psf], options_of(OPTIONS[case])
    field = Field(rng, psf)
    pos = positions_of(ops, field.x, field.y)
    found = ops.sep_psf_fit(field.frame(ops), pos, model_of(psf), gain, options)
    assert_same_fits(on_host(ops, found), field.expected(ops, psf, gain, options))
