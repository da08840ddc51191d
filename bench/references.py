"""The nearest equivalents of aperture photometry in other packages, as functions.

Each takes a workload and the rows of its table to measure, and does all that the user of that
package would have to do, the subtraction of the background included. Errors are computed too;
what is returned is the fluxes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import sep_x
from astropy.table import Table
from numpy.typing import NDArray
from photutils.aperture import CircularAperture, aperture_photometry
from photutils.background import Background2D, LocalBackground, ModeEstimatorBackground
from photutils.centroids import centroid_com, centroid_sources
from stdpipe import photometry_measure

from .workloads import Workload

Rows = NDArray[np.intp]
MESH = 64


def stdpipe_measure(workload: Workload, rows: Rows, arguments: dict[str, Any]) -> Table:
    """Measure the same with stdpipe."""
    table = workload.table[rows]
    table["bg_local"] = 0.0  # or else it truncates local backgrounds to integers
    return photometry_measure.measure_objects(table, workload.image, **arguments)


def _positions(workload: Workload, rows: Rows) -> tuple[NDArray, NDArray]:
    return np.asarray(workload.table["x"])[rows], np.asarray(workload.table["y"])[rows]


def _photutils_sums(data: NDArray, err: NDArray, x: NDArray, y: NDArray, r: float) -> NDArray:
    sums = aperture_photometry(data, CircularAperture(np.column_stack([x, y]), r), error=err)
    return np.asarray(sums["aperture_sum"])


def photutils_aperture(workload: Workload, rows: Rows) -> NDArray:
    data = workload.image - workload.bg
    return _photutils_sums(data, workload.err, *_positions(workload, rows), workload.fwhm)


def photutils_estimated(workload: Workload, rows: Rows) -> NDArray:
    mesh = Background2D(workload.image, MESH, exclude_percentile=90)
    data, err = workload.image - mesh.background, mesh.background_rms
    return _photutils_sums(data, err, *_positions(workload, rows), workload.fwhm)


def photutils_annulus(workload: Workload, rows: Rows) -> NDArray:
    data = workload.image - workload.bg
    x, y = _positions(workload, rows)
    r = workload.fwhm
    level = LocalBackground(5 * r, 7 * r, bkg_estimator=ModeEstimatorBackground())(data, x, y)
    return _photutils_sums(data, workload.err, x, y, r) - level * np.pi * r**2


def photutils_centroid(workload: Workload, rows: Rows) -> NDArray:
    data = workload.image - workload.bg
    negative = data < 0
    x, y = _positions(workload, rows)
    box = 2 * (int(np.ceil(workload.fwhm)) // 2) + 1
    for _ in range(3):
        new_x, new_y = centroid_sources(
            data, x, y, box_size=box, mask=negative, centroid_func=centroid_com
        )
        found = np.isfinite(new_x) & np.isfinite(new_y)
        x, y = np.where(found, new_x, x), np.where(found, new_y, y)
    return _photutils_sums(data, workload.err, x, y, workload.fwhm)


def sep_aperture(workload: Workload, rows: Rows) -> NDArray:
    data = workload.image - workload.bg
    return _sep_sums(data, workload.err, *_positions(workload, rows), workload.fwhm)


def sep_estimated(workload: Workload, rows: Rows) -> NDArray:
    mesh = sep_x.Background(workload.image, bw=MESH, bh=MESH)
    data, err = workload.image - mesh.back(), mesh.rms()
    return _sep_sums(data, err, *_positions(workload, rows), workload.fwhm)


def sep_annulus(workload: Workload, rows: Rows) -> NDArray:
    data = workload.image - workload.bg
    x, y = _positions(workload, rows)
    r = workload.fwhm
    _, _, _, _, level, _ = sep_x.stats_circann(data, x, y, 5 * r, 7 * r, subpix=1)
    return _sep_sums(data, workload.err, x, y, r) - level * np.pi * r**2


def _sep_sums(data: NDArray, err: NDArray, x: NDArray, y: NDArray, r: float) -> NDArray:
    flux, _, _ = sep_x.sum_circle(data, x, y, r, err=err, subpix=0)
    return flux
