"""measure_objects_sep against stdpipe 0.4.1 with sep_x itself, on random scenes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from astropy.table import Table

import gpuphot
from gpuphot import Flag
from gpuphot.models.sep import SepFlag

from .psfs import make_psf

pytestmark = pytest.mark.fresh_seed

SIDE = 16
"""Of the mesh cells in pixels: a scene has several hundred of them."""
PSFS = {
    "sampled 0.5": make_psf(51, 51, 0.5, 2),
    "sampled 1": make_psf(25, 25, 1.0, 0),
}


def stdpipe_measure_objects_sep(table, image, **options):
    """The reference; a gain of None, which it takes for 1, becomes one without Poisson noise."""
    if options.get("gain") is None:
        options["gain"] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("stdpipe.photometry_measure")
        return module.measure_objects_sep(table, image, **options)


def both(scene, backend, **options):
    ours = gpuphot.measure_objects_sep(scene.table, scene.image, backend=backend, **options)
    return ours, stdpipe_measure_objects_sep(scene.table, scene.image, **options)


def width(x, y):
    """A FWHM that varies over the image."""
    return np.clip(2.0 + np.asarray(x) / 300 + np.asarray(y) / 240, 1, 5)


def assert_close(ours, reference, name, scale, relative=1e-9):
    u, v = (np.asarray(table[name], dtype=float) for table in (ours, reference))
    np.testing.assert_array_equal(np.isnan(u), np.isnan(v), name)
    excess = np.abs(u - v) - relative * scale
    assert np.all(excess[np.isfinite(v)] <= 0), (name, np.nanmax(np.abs(u - v) / scale))


def assert_agrees(ours, reference):
    """Every column within 1e-9 of itself or of the error, the flags exactly."""
    assert ours.colnames == reference.colnames
    np.testing.assert_array_equal(ours["flags"], reference["flags"])
    flux, fluxerr = (np.abs(np.asarray(reference[name])) for name in ("flux", "fluxerr"))
    assert_close(ours, reference, "flux", np.fmax(flux, fluxerr))
    assert_close(ours, reference, "fluxerr", fluxerr)
    with np.errstate(divide="ignore", invalid="ignore"):
        assert_close(ours, reference, "mag", np.fmax(1, fluxerr / flux))
        assert_close(ours, reference, "magerr", np.fmax(1, fluxerr / flux) * 2 * fluxerr / flux)
    for name in ("x", "y"):
        np.testing.assert_allclose(ours[name], reference[name], rtol=0, atol=1e-9)
    for name in ("x_orig", "y_orig"):
        if name in reference.colnames:
            np.testing.assert_array_equal(ours[name], reference[name])


@pytest.mark.parametrize("r", [0.4, 3.0, 7.37])
@pytest.mark.parametrize("gain", [None, 1.7])
def test_apertures(scene, backend, r, gain):
    assert_agrees(*both(scene, backend, aper=r, mask=scene.mask, gain=gain, bg_size=SIDE))


def test_given_background_and_noise(scene, backend, rng):
    bg = rng.uniform(0, 5, scene.image.shape)
    err = rng.uniform(1, 5, scene.image.shape)
    assert_agrees(*both(scene, backend, aper=4.2, bg=bg, err=err, gain=2.0))


@pytest.mark.parametrize("fwhm", [None, 2.7, width])
def test_local_backgrounds(scene, backend, fwhm):
    radii = {"aper": 1.2, "bkgann": (2.5, 4.1)} if fwhm else {"aper": 3.3, "bkgann": (6.0, 11.2)}
    assert_agrees(*both(scene, backend, fwhm=fwhm, mask=scene.mask, bg_size=SIDE, **radii))


def test_local_background_in_a_disc(scene, backend):
    assert_agrees(*both(scene, backend, bkgann=(0, 8), mask=scene.mask))


@pytest.mark.parametrize("psf", [None, *PSFS.values()], ids=["Gaussian", *PSFS])
@pytest.mark.parametrize("fwhm", [None, 3.0])
def test_windowed_centroids(scene, backend, psf, fwhm):
    """Of stars: where there is but noise, rounding decides where the iteration ends."""
    options = {"centroid_iter": 5, "centroid_psf": psf, "fwhm": fwhm, "aper": 1.0}
    ours, reference = both(scene, backend, mask=scene.mask, bg_size=SIDE, **options)
    bright = ~(np.asarray(reference["flux"]) < 20 * np.asarray(reference["fluxerr"]))
    assert bright.sum() > 60
    assert_agrees(ours[bright], reference[bright])


def without_empty_annuli(scene, r_out):
    """The scene without positions off the image, whose annuli the reference refuses."""
    table = scene.table.copy()
    x, y = np.asarray(table["x"]), np.asarray(table["y"])
    height, width = scene.image.shape
    with np.errstate(invalid="ignore"):
        off_x, off_y = np.maximum(-x, x - width), np.maximum(-y, y - height)
        off = np.hypot(np.maximum(off_x, 0), np.maximum(off_y, 0)) > r_out - 4
    table["x"][off] = np.nan
    return type(scene)(scene.image, table, scene.mask)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("fwhm", [2.7, width])
@pytest.mark.parametrize("gain", [None, 1.7])
def test_optimal_sums(scene, backend, grouped, fwhm, gain):
    options = {"optimal": True, "group_sources": grouped, "fwhm": fwhm, "aper": 1.1}
    assert_agrees(*both(scene, backend, mask=scene.mask, gain=gain, bg_size=SIDE, **options))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("clip_iters", [0, 2, 5])
@pytest.mark.parametrize("gain", [None, 1.7])
def test_optimal_sums_with_local_backgrounds(scene, backend, grouped, clip_iters, gain):
    scene = without_empty_annuli(scene, 12.0)
    ours, reference = both(
        scene, backend, optimal=True, group_sources=grouped, fwhm=3.0, aper=1.0, bkgann=(2.0, 4.0),
        clip_iters=clip_iters, gain=gain, mask=scene.mask, bg_size=SIDE,
    )  # fmt: skip
    # Where a group cannot be solved, the reference forgets the local background.
    unsolved = np.asarray(reference["flux"]) == 0
    groups = linked(scene.table, 3.0)
    compared = ~np.isin(groups, groups[unsolved]) if grouped else np.ones(len(ours), bool)
    assert compared.mean() > 0.8
    assert_agrees(ours[compared], reference[compared])


def linked(table, r):
    """Label of the group of every row whose apertures overlap, a chain of links included."""
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial.distance import cdist

    points = np.nan_to_num(np.stack([table["x"], table["y"]], axis=1), nan=-1e9)
    return connected_components(cdist(points, points) <= 2 * r)[1]


@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_radius_that_links_groups(scene, backend, factor):
    options = {"optimal": True, "fwhm": 2.5, "aper": 1.0, "group_radius_factor": factor}
    assert_agrees(*both(scene, backend, mask=scene.mask, bg_size=SIDE, **options))


FITS = {
    "positions": {},
    "fluxes only": {"fit_positions": False},
    "few steps": {"maxiter": 3},
    "core": {"fit_radius": 3.5},
    "damped": {"damp_snthresh": 20.0},
    "gain": {"gain": 1.7},
}


@pytest.mark.parametrize("options", FITS.values(), ids=FITS)
@pytest.mark.parametrize("grouped", [False, True], ids=["single", "grouped"])
@pytest.mark.parametrize("psf", PSFS.values(), ids=PSFS)
def test_psf_fits(scene, backend, psf, grouped, options):
    ours, reference = both(
        scene, backend, psf=psf, group_sources=grouped, mask=scene.mask, bg_size=SIDE, **options
    )
    assert ours.colnames == reference.colnames
    u, v = ({n: np.asarray(t[n], float) for n in t.colnames} for t in (ours, reference))
    rows = np.ones(len(ours), bool)
    if grouped:
        rows = ~near_spoilt(scene, backend, psf, options)
        assert rows.mean() > 0.5
        u, v = ({name: values[rows] for name, values in t.items()} for t in (u, v))
    measured = np.isfinite(v["flux"]) & (v["fluxerr"] > 0)
    close, closer = np.ones(rows.sum(), bool), np.ones(rows.sum(), bool)
    for name, unit in (("flux", v["fluxerr"]), ("x_psf", 1.0), ("y_psf", 1.0)):
        difference = np.abs(u[name] - v[name])
        slack = 1e-6 * np.abs(v["flux"]) if name == "flux" else 0
        close &= difference <= 1e-2 * unit + slack
        closer &= difference <= 1e-5 * unit + slack
    # Faint sources in crowds are next to singular: their fits may end anywhere.
    signal = measured & (v["flux"] > 10 * v["fluxerr"])
    assert np.mean(closer[measured]) >= 0.99
    assert np.all(close[signal])
    for name in ("flags", "flags_psf", "niter_psf"):
        assert np.mean(u[name] == v[name]) > 0.99
    for name in ("flags", "flags_psf"):
        np.testing.assert_array_equal(u[name][signal], v[name][signal])
    for name in ("flux", "fluxerr", "x_psf", "y_psf", "chi2_psf"):
        np.testing.assert_array_equal(np.isnan(u[name][signal]), np.isnan(v[name][signal]))


def near_spoilt(scene, backend, psf, options):
    """Rows that may be linked to a source of which there are but wings, or nothing at all.

    Of one without usable pixels, SEP's singular matrix spoils the group; of one off the image, the
    condition of the matrix magnifies rounding, and may change the number of steps for all.
    """
    alone = gpuphot.measure_objects_sep(
        scene.table, scene.image, backend=backend, psf=psf, mask=scene.mask, bg_size=SIDE,
        **{**options, "group_sources": False, "fit_positions": False},
    )  # fmt: skip
    groups = linked(scene.table, options.get("fit_radius", 6.0))
    x, y = np.rint(scene.table["x"]), np.rint(scene.table["y"])
    height, width = scene.image.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    spoilt = ~inside | (np.asarray(alone["flags_psf"]) & SepFlag.ALL_MASKED != 0)
    return np.isin(groups, groups[spoilt])


def test_filters(scene, backend):
    assert_agrees(*both(scene, backend, sn=7.0, keep_negative=False, bg_size=SIDE))


def test_returned_maps(scene, backend):
    options = {"get_bg": True, "mask": scene.mask, "bg_size": SIDE}
    ours, reference = both(scene, backend, **options)
    assert_agrees(ours[0], reference[0])
    for one, other in zip(ours[1:], reference[1:], strict=True):
        assert one.dtype == other.dtype == np.float64
        np.testing.assert_allclose(one, other, rtol=1e-6)
    given = np.full(scene.image.shape, 2.0)
    _, background, noise = gpuphot.measure_objects_sep(
        scene.table, scene.image, backend=backend, bg=0.0, err=given, **options
    )
    assert noise is given
    np.testing.assert_array_equal(background, ours[1])


def test_columns_of_a_table_without_valid_rows(backend, scene):
    """The reference has no columns of the fit then."""
    for table in (Table({"x": [np.nan], "y": [1.0]}), Table({"x": [], "y": []})):
        result = gpuphot.measure_objects_sep(
            table, scene.image, psf=PSFS["sampled 1"], backend=backend
        )
        assert len(result) == len(table)
        assert set(result.colnames) >= {"x_psf", "y_psf", "chi2_psf", "niter_psf", "flags_psf"}
        assert np.all(result["flags"] == (Flag.INVALID | Flag.POOR_FIT))
