"""Made-up and real PSF models, as the dictionaries that stdpipe reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from gpuphot.models.psf import as_psf_model

DATA = Path(__file__).parents[2] / "shared" / "data"

REAL = {
    "DECam r": "decam/image_r_N6.psf",
    "DECam z": "decam/other_z_N2.psf",
    "DES": "des_psf/DECam_00154912_12_psfcat.psf",
}
# Height, width, sampling, degree.
MADE_UP = {
    "constant": (25, 25, 1.0, 0),
    "degree 2, sampled 0.5": (52, 48, 0.5, 2),
    "degree 2, sampled 0.5, odd": (51, 49, 0.5, 2),
    "degree 2, sampled 0.53": (45, 45, 0.53, 2),
    "degree 1, sampled 1/3": (45, 39, 1 / 3, 1),
    "nearly sampled 1/3": (45, 39, 0.3331, 1),
    "coarse": (15, 15, 1.7, 1),
    "few pixels": (2, 3, 1.0, 0),
    "wide": (19, 63, 1.0, 1),
}
GAUSSIANS = (1.1, 3.3, 7.0)


def make_psf(height, width, sampling, degree, seed=0):
    """A PSFEx-like model: a star that changes its shape over 300 x 240 pixels, with some noise."""
    rng = np.random.default_rng(seed)
    sigma = 1.4 / sampling
    row, column = np.indices((height, width)) - np.array([height - 1, width - 1])[:, None, None] / 2
    n_planes = (degree + 1) * (degree + 2) // 2
    planes = rng.normal(0, 1e-4, (n_planes, height, width))
    for k, plane in enumerate(planes):
        r2 = (column - 0.2 * k) ** 2 + (row + 0.1 * k) ** 2
        plane += (0.1 * rng.normal() if k else 1) * np.exp(-r2 / 2 / sigma**2) / sigma**2
    return {
        "data": planes.astype(np.float32),
        "width": width,
        "height": height,
        "ncoeffs": n_planes,
        "fwhm": 3.3,
        "sampling": sampling,
        "degree": degree,
        "x0": 150.0,
        "y0": 120.0,
        "sx": 150.0,
        "sy": 130.0,
    }


def load_psf(name):
    """A made-up or real model; the test is skipped if the file is not here."""
    if name in MADE_UP:
        return make_psf(*MADE_UP[name])
    return pytest.importorskip("stdpipe.psf").load_psf(path_of(name))


def path_of(name):
    """The file of a real model; the test is skipped if it is not here."""
    path = DATA / REAL[name]
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    return path


def write_psf_file(path, psf, **changes):
    """Write a dictionary as PSFEx does; a keyword that changes to None is left out."""
    planes = np.asarray(psf["data"], np.float32)
    n_planes, height, width = planes.shape
    column = fits.Column(
        "PSF_MASK", f"{planes.size}E", dim=f"({width}, {height}, {n_planes})", array=planes[None]
    )
    table = fits.BinTableHDU.from_columns([column], name="PSF_DATA")
    keywords = {
        "POLNAXIS": 2, "POLNGRP": 1, "POLDEG1": psf["degree"],
        "POLGRP1": 1, "POLNAME1": "X_IMAGE", "POLZERO1": psf["x0"], "POLSCAL1": psf["sx"],
        "POLGRP2": 1, "POLNAME2": "Y_IMAGE", "POLZERO2": psf["y0"], "POLSCAL2": psf["sy"],
        "PSF_FWHM": psf["fwhm"], "PSF_SAMP": psf["sampling"],
        "PSFNAXIS": 3, "PSFAXIS1": width, "PSFAXIS2": height, "PSFAXIS3": n_planes,
    }  # fmt: skip
    for key, value in (keywords | changes).items():
        if value is not None:
            table.header[key] = value
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    return path


def model_of(psf):
    """The `PSFModel` of a dictionary, or of a FWHM."""
    return as_psf_model(psf)


def stdpipe_stamps(psf, x, y):
    """``stdpipe``'s stamps at positions, one by one."""
    module = pytest.importorskip("stdpipe.photometry_measure")
    return np.array([module._get_psf_stamp_at_position(psf, *at) for at in zip(x, y, strict=True)])


def awkward_positions(rng, n=60, height=240, width=300):
    """Random positions, with integers, half-integers, tenths and thirds among them."""
    x, y = rng.uniform(0, width, n), rng.uniform(0, height, n)
    part = n // 10
    x[: 2 * part], y[part : 3 * part] = np.rint(x[: 2 * part]), np.rint(y[part : 3 * part])
    x[3 * part : 5 * part] = np.floor(x[3 * part : 5 * part]) + 0.5
    y[4 * part : 6 * part] = np.floor(y[4 * part : 6 * part]) + 0.5
    x[6 * part : 7 * part] = np.round(x[6 * part : 7 * part], 1)
    y[6 * part : 7 * part] = np.round(y[6 * part : 7 * part] * 3) / 3
    return x, y
