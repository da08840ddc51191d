"""Parity with stdpipe on real images, where they lie beside the checkout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import gpuphot
from gpuphot.detect import detect_objects

from . import test_parity_sep, truth
from .reference import assert_agrees, stdpipe_measure_objects

DATA = Path(__file__).parents[2] / "shared" / "data"
IMAGES = {
    "CCD field": "eso085/aligned_eso085-030-004.fit",
    "Galactic Centre": "galactic_center/gc_2mass_k.fits",
    "DECam": "decam/image_r_N6.fits",
}


@pytest.fixture(params=IMAGES)
def image(request):
    path = DATA / IMAGES[request.param]
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    with fits.open(path) as hdus:
        return next(hdu.data for hdu in hdus if hdu.is_image and len(hdu.shape) == 2)


@pytest.mark.parametrize(
    "options",
    [
        {"gain": 2.0},
        {"centroid_iter": 3},
        {"bkgann": (8, 12)},
        {"bkgann": (8, 12), "bkg_order": 1},
        {"bkgann": (8, 12), "bkg_order": 2},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
def test_real_image(image, backend, options):
    pytest.importorskip("sep_x")
    table = detect_objects(image, threshold=4)["x", "y"][:600]
    options = {"aper": 4.0, "mask": image > np.nanpercentile(image, 99.9), **options}
    ours = gpuphot.measure_objects(table, image, backend=backend, **options)
    reference = stdpipe_measure_objects(table, image, **options)
    assert_agrees(ours, reference, image, 4.0)
    np.testing.assert_array_equal(ours["flags"], reference["flags"])


@pytest.mark.parametrize(
    "options",
    [
        {"aper": 4.0, "gain": 2.0},
        {"aper": 4.0, "bkgann": (8, 12)},
        {"aper": 4.0, "centroid_iter": 1},
        {"aper": 0.5, "fwhm": 4.0, "optimal": True},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
def test_real_image_with_the_conventions_of_sep(image, backend, options):
    pytest.importorskip("sep_x")
    table = detect_objects(image, threshold=4)["x", "y"][:600]
    options = {"mask": image > np.nanpercentile(image, 99.9), **options}
    ours = gpuphot.measure_objects_sep(table, image, backend=backend, **options)
    reference = test_parity_sep.stdpipe_measure_objects_sep(table, image, **options)
    test_parity_sep.assert_agrees(ours, reference)


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
def test_deblended(image, backend):
    """With a Gaussian for a PSF, from gpuphot's own detections and fits."""
    module = pytest.importorskip("stdpipe.photometry_measure")
    table = detect_objects(image, threshold=4)["x", "y"][:600]
    mesh = {"bg_size": 64, "get_bg": True}
    seeds, background, noise = gpuphot.measure_objects_sep(table, image, aper=4.0, **mesh)
    known = {"bg": background, "err": noise}
    fits_of_psf = gpuphot.measure_objects_sep(table, image, psf=4.0, **known)
    psf = truth.psf_dict(truth.gaussian(4.0), 25, 1.0)
    arguments = {
        "x": np.asarray(table["x"]), "y": np.asarray(table["y"]), "aper": 4.0, "psf": psf,
        "flux_seed": seeds["flux"], "flux_psf": fits_of_psf["flux"],
        "flux_psf_err": fits_of_psf["fluxerr"], "diagnostics": True, **known,
    }  # fmt: skip
    ours = gpuphot.measure_aperture_deblended(image, **arguments, backend=backend)
    theirs = module.measure_aperture_deblended(np.asarray(image, float), **arguments)
    compared = np.isfinite(ours["flux"]) & np.isfinite(theirs["flux"])
    assert compared.sum() > 0.5 * len(table)
    difference = np.abs(ours["flux"] - theirs["flux"])[compared]
    assert np.all(difference <= 1e-9 * np.abs(theirs["flux_ap_raw"])[compared])
    np.testing.assert_array_equal(ours["flags"], theirs["flags"])
