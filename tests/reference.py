"""The reference implementation, and how far from it a measurement may be."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from gpuphot import Flag


def stdpipe_measure_objects(table, image, **options):
    """``stdpipe.photometry_measure.measure_objects`` with local backgrounds in full precision.

    stdpipe truncates them to integers unless the table already has a float column for them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("stdpipe.photometry_measure")
        table = table.copy()
        if options.get("bkgann") is not None:
            table["bg_local"] = 0.0
        return module.measure_objects(table, image, **options)


def off_image(table, shape, r):
    """Rows whose aperture does not reach the image; a missing position is not among them."""
    x, y = np.asarray(table["x"]), np.asarray(table["y"])
    with np.errstate(invalid="ignore"):
        dx = np.maximum(np.maximum(-0.5 - x, x - (shape[1] - 0.5)), 0)
        dy = np.maximum(np.maximum(-0.5 - y, y - (shape[0] - 0.5)), 0)
        return np.isfinite(x) & np.isfinite(y) & (dx * dx + dy * dy >= r * r)


def assert_agrees(ours, reference, image, r, rows=slice(None)):
    """Hold every column of a measurement in apertures of radius r against the reference's.

    Fluxes within 1e-9 of themselves or of their error, whichever is larger; where less than
    1e-3 pixels of a disc lie on the image, its area has lost that many digits in both.
    """
    good = np.isfinite(reference["flux"][rows])
    sliver = np.asarray(reference["npix_aper"][rows]) < 1e-3
    absolute = np.where(sliver, 1e-12 * r * r * np.abs(image[np.isfinite(image)]).max(), 0)
    fluxerr = np.asarray(reference["fluxerr"][rows])
    magerr = np.asarray(reference["magerr"][rows])
    floor = {
        "flux": fluxerr,
        "bg_local": fluxerr / np.sqrt(np.pi * r * r),
        "mag": 1.1 + magerr,
        "magerr": magerr * (1 + magerr),
    }
    for name in ("flux", "fluxerr", "bg_fluxerr", "npix_aper", "bg_local", "mag", "magerr"):
        u, v = (np.asarray(table[name][rows], dtype=float) for table in (ours, reference))
        if name not in ("npix_aper", "bg_fluxerr"):
            u, v = np.where(good, u, np.nan), np.where(good, v, np.nan)
        assert np.array_equal(np.isfinite(u), np.isfinite(v)), name
        scale = np.maximum(np.abs(v), floor.get(name, 0.0))
        compared = np.isfinite(v) & ~(sliver & (name in ("mag", "magerr")))
        excess = np.abs(u - v) - (1e-9 * scale + absolute)
        assert np.all(excess[compared] <= 0), (name, np.nanmax((np.abs(u - v) / scale)[compared]))
    for name in ("x", "y"):
        np.testing.assert_allclose(ours[name][rows], reference[name][rows], rtol=0, atol=1e-9)
    for name in ("x_orig", "y_orig"):
        assert (name in ours.colnames) == (name in reference.colnames)
        if name in ours.colnames:
            np.testing.assert_array_equal(ours[name][rows], reference[name][rows])


def assert_same_flags(ours, reference, invalid, rows=slice(None)):
    """Flags equal the reference's, which leaves out 0x400 for most rows that deserve it."""
    expected = np.asarray(reference["flags"]) | np.where(invalid, int(Flag.INVALID), 0)
    np.testing.assert_array_equal(np.asarray(ours["flags"])[rows], expected[rows])
