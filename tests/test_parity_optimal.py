"""Optimal extraction against stdpipe 0.4.1 itself, on random scenes."""

from __future__ import annotations

import numpy as np
import pytest

import gpuphot
from gpuphot import Flag
from gpuphot.models.psf import as_psf_model

from .psfs import make_psf
from .reference import stdpipe_measure_objects

FWHM = 2.5
PSFS = {
    "Gaussian": FWHM,
    "sampled 1": make_psf(25, 25, 1.0, 2),
    "sampled 0.5": make_psf(51, 51, 0.5, 2),
    "sampled 1/3, block sums": make_psf(45, 45, 1 / 3, 1),
}
COLUMNS = ("flux", "fluxerr", "chi2_optimal", "norm_optimal")
WELL_CONDITIONED = 1e-9
"""Of an error. The reference loses digits to the condition number of its normal matrix, too."""


def width(x, y):
    """A FWHM that varies over the image."""
    return 2.0 + np.asarray(x) / 300 + np.asarray(y) / 240


def fit_both(scene, backend, **options):
    options = {
        "optimal": True,
        "mask": scene.mask,
        "bg": np.zeros(scene.image.shape),
        "err": np.full(scene.image.shape, 2.0),
        **options,
    }
    ours = gpuphot.measure_objects(scene.table, scene.image, backend=backend, **options)
    return ours, stdpipe_measure_objects(scene.table, scene.image, **options)


def comparable(ours, half_size, shape):
    """Rows that the reference does not fit in a way of its own.

    It places stamps at half-integer positions one pixel off, fits groups at the border one by
    one, and splits the light of sources that cannot be told apart arbitrarily. Of those that
    hardly can, whose errors are thousands of times the others', it loses digits.
    """
    x, y = np.asarray(ours["x"]), np.asarray(ours["y"])
    own_way = (x == np.floor(x) + 0.5) | (y == np.floor(y) + 0.5)
    margin = half_size + 1
    own_way |= (x < margin) | (y < margin)
    own_way |= (x > shape[1] - 1 - margin) | (y > shape[0] - 1 - margin)
    singular = (Flag.NO_FIT | Flag.POOR_FIT) & np.asarray(ours["flags"]) == 0x1800
    own_way |= singular
    fluxerr = np.asarray(ours["fluxerr"])
    own_way |= fluxerr > 1e4 * np.nanmedian(fluxerr)
    groups = np.asarray(ours["group_id"])
    in_groups = np.isin(groups, groups[own_way]) & (np.asarray(ours["group_size"]) > 1)
    lost = np.isnan(ours["bg_local"]) | ~np.isfinite(x) | ~np.isfinite(y)
    return ~in_groups & ~lost


def assert_agrees(ours, reference, rows):
    ours, reference = ours[rows], reference[rows]
    for name in ("npix_optimal", "group_id", "group_size"):
        if name in reference.colnames:
            np.testing.assert_array_equal(ours[name], reference[name], name)
            assert ours[name].dtype == reference[name].dtype == np.int64
    fluxerr = np.asarray(reference["fluxerr"])
    for name in COLUMNS:
        u, v = np.asarray(ours[name]), np.asarray(reference[name])
        np.testing.assert_array_equal(np.isnan(u), np.isnan(v), name)
        scale = np.maximum(np.abs(v), fluxerr) if name == "flux" else np.abs(v)
        excess = np.abs(u - v) - WELL_CONDITIONED * np.maximum(scale, 1e-3)
        assert np.all(excess[np.isfinite(v)] <= 0), name
    off_image = np.isnan(ours["npix_aper"])
    ignored = np.where(off_image, int(Flag.INVALID), 0)
    np.testing.assert_array_equal(ours["flags"] & ~ignored, reference["flags"] & ~ignored)


@pytest.mark.parametrize("r", [2.1, 5.5])
@pytest.mark.parametrize("name", PSFS)
def test_single_sources(scene, backend, name, r):
    ours, reference = fit_both(scene, backend, psf=PSFS[name], aper=r, group_sources=False)
    finite = np.isfinite(ours["npix_aper"]) & np.isfinite(ours["x"]) & np.isfinite(ours["y"])
    assert np.count_nonzero(np.isfinite(ours["flux"])) > 150
    assert_agrees(ours, reference, finite)


@pytest.mark.parametrize(
    "options",
    [{"aper": 2.1}, {"aper": 5.5}, {"aper": 3.0, "grouper_radius": 3.5}, {"bkgann": (8, 14)}],
    ids=str,
)
@pytest.mark.parametrize("name", PSFS)
def test_groups(scene, backend, name, options):
    ours, reference = fit_both(scene, backend, psf=PSFS[name], **options)
    half_size = max(as_psf_model(PSFS[name]).stamp_shape) // 2
    rows = comparable(ours, half_size, scene.image.shape)
    assert np.count_nonzero(rows & (ours["group_size"] > 1)) > 8
    assert_agrees(ours, reference, rows)
    for name in ("group_id", "group_size"):
        np.testing.assert_array_equal(ours[name], reference[name])


@pytest.mark.parametrize("group_sources", [False, True])
def test_widths_that_vary_over_the_image(scene, backend, group_sources):
    ours, reference = fit_both(scene, backend, fwhm=width, aper=1.2, group_sources=group_sources)
    if group_sources:
        rows = comparable(ours, 14, scene.image.shape)
    else:
        rows = np.isfinite(ours["x"]) & np.isfinite(ours["y"])
    assert np.count_nonzero(rows & np.isfinite(ours["flux"])) > 100
    assert_agrees(ours, reference, rows)


@pytest.mark.parametrize("psf", [None, PSFS["sampled 1"]], ids=["Gaussian", "model"])
def test_extraction_after_centroiding_with_estimated_noise(scene, backend, psf):
    """Positions feed the fits: their own rounding, 1e-9 pixels at most, moves bright fluxes.

    Noise has no centroid. Where there is no star, rounding errors may grow from step to step.
    """
    options = {"psf": psf, "fwhm": FWHM, "aper": 1.5, "gain": 2.0, "bg": None, "err": None}
    options |= {"centroid_iter": 3, "centroid_method": "psf", "group_sources": False}
    ours, reference = fit_both(scene, backend, **options)
    good = np.isfinite(reference["flux"])
    np.testing.assert_array_equal(good, np.isfinite(ours["flux"]))
    stars = good & (reference["flux"] > 10 * reference["fluxerr"])
    assert np.count_nonzero(stars) > 100
    ours, reference = ours[stars], reference[stars]
    for name in ("x", "y"):
        np.testing.assert_allclose(ours[name], reference[name], rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours["flux"], reference["flux"], rtol=1e-8)
