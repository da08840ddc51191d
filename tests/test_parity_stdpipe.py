"""measure_objects against stdpipe 0.4.1 itself, on random scenes."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

import gpuphot

from .reference import assert_agrees, assert_same_flags, off_image, stdpipe_measure_objects
from .scenes import Scene, make_scene


def both(scene, backend, r, **options):
    """Our measurement and the reference's, and the rows without a measurable position.

    An aperture off the image has no flux. The reference gives it 0 if the square around the disc
    reaches the image, and fails as a whole if a polynomial background is wanted there.
    """
    table, image = scene.table, scene.image
    ours = gpuphot.measure_objects(table, image, backend=backend, **options)
    missed = off_image(ours, image.shape, r)
    if options.get("bkg_order"):
        table = table.copy()
        table["x"][off_image(table, image.shape, r)] = np.nan
    reference = stdpipe_measure_objects(table, image, **options)
    reference["x"][missed] = ours["x"][missed]
    for name in ("flux", "fluxerr", "mag", "magerr", "npix_aper"):
        reference[name][missed] = np.nan
    if np.any(reference["bg_fluxerr"]):
        reference["bg_fluxerr"][missed] = np.nan
    invalid = missed | ~np.isfinite(ours["x"]) | ~np.isfinite(ours["y"])
    return ours, reference, invalid


@pytest.mark.parametrize("r", [0.4, 3.0, 7.37])
@pytest.mark.parametrize("gain", [None, 1.7])
def test_apertures(scene, backend, r, gain):
    ours, reference, invalid = both(
        scene, backend, r, aper=r, mask=scene.mask, gain=gain, bg_size=40
    )
    assert_agrees(ours, reference, scene.image, r)
    assert_same_flags(ours, reference, invalid)


def test_given_background_and_noise(scene, backend, rng):
    bg = rng.uniform(0, 5, scene.image.shape)
    err = rng.uniform(1, 5, scene.image.shape)
    ours, reference, invalid = both(scene, backend, 4.2, aper=4.2, bg=bg, err=err, gain=2.0)
    assert_agrees(ours, reference, scene.image, 4.2)
    assert_same_flags(ours, reference, invalid)


def test_radii_in_units_of_the_fwhm(scene, backend):
    options = {"aper": 1.3, "fwhm": lambda x, y: 3.1 + 0 * x, "bkgann": (3.0, 5.0)}
    ours, reference, invalid = both(scene, backend, 1.3 * 3.1, **options)
    lost = np.isnan(ours["bg_local"])
    assert_agrees(ours, reference, scene.image, 1.3 * 3.1, rows=~lost)
    assert_same_flags(ours, reference, invalid | lost)


@pytest.mark.parametrize("r", [0.9, 3.0, 6.0])
def test_centroids(scene, backend, r):
    ours, reference, invalid = both(scene, backend, r, aper=r, mask=scene.mask, centroid_iter=4)
    assert_agrees(ours, reference, scene.image, r)
    assert_same_flags(ours, reference, invalid)


@pytest.mark.parametrize("annulus", [(6.0, 12.0), (4.5, 6.1), (10.0, 25.0)])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_local_backgrounds(scene, backend, annulus, order):
    options = {"aper": 3.0, "bkgann": annulus, "bkg_order": order, "mask": scene.mask}
    ours, reference, invalid = both(scene, backend, 3.0, **options)
    lost = np.isnan(ours["bg_local"])
    compared = ~lost
    if order:
        degenerate = degenerate_annuli(scene, ours, annulus, order)
        assert degenerate.sum() < 0.1 * len(ours)
        compared &= ~degenerate
    assert_agrees(ours, reference, scene.image, 3.0, rows=compared)
    assert_same_flags(ours, reference, invalid | lost)


@pytest.mark.parametrize("annulus", [(5.0, 8.0), (2.5, 6.5), (10.0, 15.0)])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_pixels_on_the_rim_of_an_annulus(rng, backend, annulus, order):
    """On positions with one decimal, pixels lie at the very radius, as far as rounding tells."""
    image = rng.normal(0, 3, (60, 60))
    x, y = np.round(rng.uniform(0, 45, (2, 300)), 1)
    table = Table({"x": x, "y": y})
    options = {"aper": 2.0, "bkgann": annulus, "bkg_order": order, "bg": 0.0}
    options["err"] = np.ones_like(image)
    ours = gpuphot.measure_objects(table, image, backend=backend, **options)
    reference = stdpipe_measure_objects(table, image, **options)
    scene = Scene(image, table, np.zeros(image.shape, bool))
    compared = ~degenerate_annuli(scene, table, annulus, max(order, 1))
    assert_agrees(ours, reference, image, 2.0, rows=compared)


@pytest.mark.parametrize("annulus", [(10.0, 20.0), (12.0, 90.0), (1.0, 300.0)])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_annuli_larger_than_the_image(seed, backend, annulus, order):
    scene = make_scene(seed, shape=(41, 56), n=140)
    options = {"aper": 3.0, "bkgann": annulus, "bkg_order": order, "bg_size": 20}
    ours, reference, invalid = both(scene, backend, 3.0, **options)
    compared = ~invalid & ~np.isnan(ours["bg_local"])
    if order:
        compared &= ~degenerate_annuli(scene, ours, annulus, order)
    assert compared.sum() > 40
    assert_agrees(ours, reference, scene.image, 3.0, rows=compared)


def degenerate_annuli(scene, table, annulus, order):
    """Rows whose annulus pixels do not determine the polynomial well.

    The reference solves these in the units of the raw pixels, an artefact that nothing else can
    reproduce. Small samples are among them because clipping makes them smaller.
    """
    good = np.isfinite(scene.image) & ~scene.mask
    rows, columns = np.nonzero(good)
    degenerate = np.zeros(len(table), bool)
    for k, (x, y) in enumerate(zip(table["x"], table["y"], strict=True)):
        d = np.hypot(columns - x, rows - y)
        inside = (d >= annulus[0]) & (d <= annulus[1])
        u = (columns[inside] - x) / annulus[1]
        v = (rows[inside] - y) / annulus[1]
        terms = [np.ones_like(u), u, v] + ([u * u, v * v, u * v] if order == 2 else [])
        if len(u) >= 10:
            singular = np.linalg.svd(np.stack(terms), compute_uv=False)
            degenerate[k] = len(u) < 20 or (singular[0] / singular[-1]) ** 2 > 1e8
    return degenerate


@pytest.mark.parametrize("shape", [(240, 300), (97, 61), (31, 200), (5, 5), (1, 40)])
@pytest.mark.parametrize("bg_size", [7, 16, 64, 1000])
@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_background_and_noise_maps(seed, backend, shape, bg_size):
    scene = make_scene(seed, shape=shape, n=80)
    options = {"mask": scene.mask if min(shape) > 5 else None, "bg_size": bg_size, "get_bg": True}
    _, bg, err = gpuphot.measure_objects(scene.table, scene.image, backend=backend, **options)
    _, bg_reference, err_reference = stdpipe_measure_objects(scene.table, scene.image, **options)
    # A background that crosses zero is compared with the noise there.
    np.testing.assert_allclose(bg, bg_reference, rtol=1e-12, atol=1e-12 * np.median(err))
    np.testing.assert_allclose(err, err_reference, rtol=1e-12, atol=1e-12 * np.abs(bg).max())


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e6])
def test_background_maps_on_a_bright_sky(rng, backend, ratio):
    image = ratio * 3 * np.sqrt(2) + rng.normal(0, 3, (128, 160))
    table = make_scene(1, shape=(128, 160), n=80).table
    _, bg, err = gpuphot.measure_objects(table, image, get_bg=True, bg_size=32, backend=backend)
    _, bg_reference, err_reference = stdpipe_measure_objects(table, image, get_bg=True, bg_size=32)
    np.testing.assert_allclose(bg, bg_reference, rtol=1e-12)
    # The reference itself rounds deviations from the mean to a bit of the sky level.
    np.testing.assert_allclose(err, err_reference, rtol=1e-12 + 1e-16 * ratio)


def test_filters_and_magnitudes(scene, backend):
    for options in ({"sn": 5}, {"keep_negative": False}, {"sn": 20, "keep_negative": False}):
        ours = gpuphot.measure_objects(scene.table, scene.image, backend=backend, **options)
        reference = stdpipe_measure_objects(scene.table, scene.image, **options)
        np.testing.assert_array_equal(ours["x"], reference["x"])
        assert_agrees(ours, reference, scene.image, 3.0)
