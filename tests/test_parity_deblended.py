"""measure_aperture_deblended against stdpipe 0.4.1 itself, on random scenes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import gpuphot
from gpuphot.models.sep import SepFlag

from .psfs import awkward_positions, load_psf
from .scenes import FWHM, add_stars

pytestmark = pytest.mark.fresh_seed

SHAPE = 240, 300
N_STARS = 340
R = 3.37  # no sub-pixel lies exactly on the rim, where rounding decides


def in_double(psf):
    """The model with planes that no product rounds to single precision."""
    return psf | {"data": np.asarray(psf["data"], np.float64)}


class Field:
    """A crowded image and what is known of its stars; some seeds and errors are useless."""

    def __init__(self, rng, n=N_STARS):
        self.x, self.y = awkward_positions(rng, n, *SHAPE)
        # The reference leaves out either of two samples at one position, not always the right one.
        _, first = np.unique(np.stack([self.x, self.y]), axis=1, return_index=True)
        self.x[np.setdiff1d(np.arange(n), first)] += 0.3
        flux = 10 ** rng.uniform(2.5, 5, n)
        self.image = rng.normal(0, 3, SHAPE)
        add_stars(self.image, self.x, self.y, flux)
        self.err = rng.uniform(2, 4, SHAPE)
        self.mask = rng.random(SHAPE) < 0.002
        trend = 1.2 + 0.1 * np.sin(self.x / 90) * np.cos(self.y / 70)
        self.flux_psf = flux * rng.normal(1, 0.02, n)
        self.flux_seed = self.flux_psf / trend / rng.normal(1, 0.02, n)
        self.flux_seed[::17] *= rng.uniform(0.1, 4, len(self.flux_seed[::17]))
        # Samples at equal distances, as on a lattice, have an order of their own in the reference.
        for lattice in (slice(n // 10, n // 5), slice(4 * n // 10, n // 2)):
            self.flux_seed[lattice] *= 0.2  # outliers, which are not fitted
        self.flux_psf_err = 0.01 * flux
        self.flux_seed[3:6] = np.nan, 0, -100
        self.flux_psf[6:9] = np.nan, 0, -100
        self.flux_psf_err[9:12] = np.nan, np.inf, 0
        self.x[12], self.y[13] = -8.0, SHAPE[0] + 20.0  # light from beyond the edges

    def arguments(self):
        known = {name: getattr(self, name) for name in ("flux_seed", "flux_psf", "flux_psf_err")}
        return (self.image, self.x, self.y, R), known


@pytest.fixture
def field(rng):
    return Field(rng)


def both(field, backend, psf, **options):
    module = pytest.importorskip("stdpipe.photometry_measure")
    arguments, known = field.arguments()
    known = known | options
    ours = gpuphot.measure_aperture_deblended(
        *arguments, psf, **known, diagnostics=True, backend=backend
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = module.measure_aperture_deblended(*arguments, psf, **known, diagnostics=True)
    return ours, theirs


def assert_agrees(ours, theirs, allowed=1e-9, masked=False):
    """Fluxes within `allowed` of the light in the aperture or of the models, the flags exactly.

    Apertures off the image are NaN here, and the target's own model there; with a mask, fluxes
    and models of masked targets differ on purpose.
    """
    assert ours.colnames == [*theirs.colnames, "fracflux"]
    compared = np.isfinite(ours["flux_ap_raw"]) & ~(masked & (np.asarray(ours["flags"]) & 32 > 0))
    assert compared.sum() > 0.8 * len(ours)
    np.testing.assert_array_equal(ours["flags"][compared], theirs["flags"][compared])
    own = np.asarray(theirs["flux_total_model"]) * np.asarray(theirs["self_frac"])
    light = (np.asarray(theirs["flux_ap_raw"]), np.asarray(theirs["flux_model"]), own)
    scale = np.fmax.reduce(np.abs(light)) + 1
    total = np.abs(np.asarray(theirs["flux_total_model"])) + 1
    scales = {
        "flux_total_model": total, "self_frac": 1, "flux_ratio_model": 1, "mag": 1, "magerr": 1,
        "fluxerr": np.asarray(theirs["fluxerr"]) + 1e-300,
    }  # fmt: skip
    for name in theirs.colnames:
        u, v = (np.asarray(table[name], float)[compared] for table in (ours, theirs))
        np.testing.assert_array_equal(np.isnan(u), np.isnan(v), name)
        size = np.broadcast_to(scales.get(name, scale), len(ours))[compared]
        if name in ("mag", "magerr"):
            flux = np.asarray(theirs["flux"])[compared]
            with np.errstate(invalid="ignore", divide="ignore"):
                size = np.fmax(1, scale[compared] / np.abs(flux))
                size = size * np.fmax(1, np.asarray(theirs["fluxerr"])[compared] / np.abs(flux))
        good = np.isfinite(v)
        worst = np.max((np.abs(u - v) / size)[good], initial=0)
        assert worst <= allowed, (name, worst)


@pytest.mark.parametrize("options", [{}, {"gain": 1.7}, {"propagate_neighbour_errors": False}])
def test_default(field, backend, options):
    psf = in_double(load_psf("constant"))
    assert_agrees(*both(field, backend, psf, err=field.err, **options))


@pytest.mark.parametrize(
    "name", ["constant", "degree 2, sampled 0.5, odd", "degree 2, sampled 0.53"]
)
def test_models_in_single_precision(field, backend, name):
    """The reference multiplies them in single precision."""
    assert_agrees(*both(field, backend, load_psf(name), err=field.err), allowed=5e-8)


def test_model_that_varies(field, backend):
    psf = in_double(load_psf("degree 2, sampled 0.53"))
    assert_agrees(*both(field, backend, psf, err=field.err))


@pytest.mark.parametrize(
    "options",
    [
        {"aperture_correction": "fixed"},
        {"aperture_correction": "none"},
        {"min_for_field_fit": 10_000},
        {"ratio_clip": (0.9, 1.25), "outlier_clip": 2.0},
        {"correction_field_kwargs": {"k": 60, "scales": (40.0, 80.0), "robust_iters": 1}},
        {"correction_field_kwargs": {"backend": "grid", "grid_shape": (6, 5)}},
        {"overlap_subpixel": 1},
        {"overlap_subpixel": 7},
        {"bg": 12.5},
        {"bad_flag": 0x41000},
    ],
    ids=str,
)
def test_options(field, backend, options):
    psf = in_double(load_psf("constant"))
    assert_agrees(*both(field, backend, psf, err=field.err, **options))


def test_without_noise(field, backend):
    assert_agrees(*both(field, backend, in_double(load_psf("constant"))))


def test_aperture_in_units_of_the_fwhm(field, backend):
    assert_agrees(
        *both(field, backend, in_double(load_psf("constant")), err=field.err, fwhm=FWHM / 3)
    )


def test_targets(field, backend, rng):
    psf = in_double(load_psf("constant"))
    rows = rng.integers(0, N_STARS, 90)
    assert_agrees(*both(field, backend, psf, err=field.err, target=rows))
    chosen = rng.random(N_STARS) < 0.3
    assert_agrees(*both(field, backend, psf, err=field.err, target=chosen))


def test_mask(field, backend):
    """Targets without masked pixels are as in the reference, those with are better."""
    psf = in_double(load_psf("constant"))
    ours, theirs = both(field, backend, psf, err=field.err, mask=field.mask)
    masked = np.asarray(ours["flags"]) & SepFlag.HAS_MASKED > 0
    assert 2 < masked.sum() < 120
    assert_agrees(ours, theirs, masked=True)
    for name in ("flags", "fluxerr", "flux_ap_raw"):
        np.testing.assert_allclose(ours[name][masked], theirs[name][masked], rtol=1e-9)
