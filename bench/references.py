"""The nearest equivalents of gpuphot's functions in other packages, as functions.

Each measures the sources of a workload and does all that the user of that package would have to
do, the subtraction of the background included. Errors are computed too; what is returned is the
fluxes.
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
from stdpipe import photometry_measure, smoothing
from stdpipe.psf import place_psf_stamp

from .calls import deblending, flux_ratios
from .workloads import Workload

MESH = 64
GAIN = 2.0
"""Of all rows of `measure_objects_sep`: without one, stdpipe takes it for 1."""


def stdpipe_measure(workload: Workload, function: str, row: dict[str, Any]) -> Table:
    """Measure the same with stdpipe; `row` is what `Workload.arguments` takes."""
    table = workload.table.copy()
    if function == "measure_objects":
        table["bg_local"] = 0.0  # or else it truncates local backgrounds to integers
    measure = getattr(photometry_measure, function)
    return measure(table, workload.image, **workload.arguments(**row))


def stdpipe_deblended(workload: Workload, **options: Any) -> Table:
    # Diagnostics are columns of what it computes anyway; fluxes are compared in units of one.
    return photometry_measure.measure_aperture_deblended(
        workload.image, **deblending(workload), **options, diagnostics=True
    )


def stdpipe_loess(workload: Workload) -> NDArray:
    ratios = flux_ratios(workload)
    x, y, values = (each[ratios.used] for each in (ratios.x, ratios.y, ratios.values))
    field = smoothing.fit_vector_field_2d(
        x, y, values, backend="loess", k=100, scales=ratios.scales
    )  # fmt: skip
    return field(ratios.x, ratios.y)


def stdpipe_render(workload: Workload) -> NDArray:
    image = np.zeros(workload.image.shape)
    for x, y, flux in workload.table.iterrows("x", "y", "flux_psf"):
        place_psf_stamp(image, workload.psf, x, y, flux=flux)
    return image


def _positions(workload: Workload) -> tuple[NDArray, NDArray]:
    return np.asarray(workload.table["x"]), np.asarray(workload.table["y"])


def _photutils_sums(data: NDArray, err: NDArray, x: NDArray, y: NDArray, r: float) -> NDArray:
    sums = aperture_photometry(data, CircularAperture(np.column_stack([x, y]), r), error=err)
    return np.asarray(sums["aperture_sum"])


def photutils_aperture(workload: Workload) -> NDArray:
    data = workload.image - workload.bg
    return _photutils_sums(data, workload.err, *_positions(workload), workload.fwhm)


def photutils_estimated(workload: Workload) -> NDArray:
    mesh = Background2D(workload.image, MESH, exclude_percentile=90)
    data, err = workload.image - mesh.background, mesh.background_rms
    return _photutils_sums(data, err, *_positions(workload), workload.fwhm)


def photutils_annulus(workload: Workload) -> NDArray:
    data = workload.image - workload.bg
    x, y = _positions(workload)
    r = workload.fwhm
    level = LocalBackground(5 * r, 7 * r, bkg_estimator=ModeEstimatorBackground())(data, x, y)
    return _photutils_sums(data, workload.err, x, y, r) - level * np.pi * r**2


def photutils_centroid(workload: Workload) -> NDArray:
    data = workload.image - workload.bg
    negative = data < 0
    x, y = _positions(workload)
    box = 2 * (int(np.ceil(workload.fwhm)) // 2) + 1
    for _ in range(3):
        new_x, new_y = centroid_sources(
            data, x, y, box_size=box, mask=negative, centroid_func=centroid_com
        )
        found = np.isfinite(new_x) & np.isfinite(new_y)
        x, y = np.where(found, new_x, x), np.where(found, new_y, y)
    return _photutils_sums(data, workload.err, x, y, workload.fwhm)


def sep_aperture(workload: Workload) -> NDArray:
    data = workload.image - workload.bg
    return _sep_sums(data, workload.err, *_positions(workload), workload.fwhm)


def sep_estimated(workload: Workload) -> NDArray:
    mesh = sep_x.Background(workload.image, bw=MESH, bh=MESH)
    data, err = workload.image - mesh.back(), mesh.rms()
    return _sep_sums(data, err, *_positions(workload), workload.fwhm)


def sep_annulus(workload: Workload) -> NDArray:
    data = workload.image - workload.bg
    x, y = _positions(workload)
    r = workload.fwhm
    _, _, _, _, level, _ = sep_x.stats_circann(data, x, y, 5 * r, 7 * r, subpix=1)
    return _sep_sums(data, workload.err, x, y, r) - level * np.pi * r**2


def _sep_sums(data: NDArray, err: NDArray, x: NDArray, y: NDArray, r: float) -> NDArray:
    flux, _, _ = sep_x.sum_circle(data, x, y, r, err=err, subpix=0)
    return flux


def sep_optimal(workload: Workload) -> NDArray:
    return _sep_optimal_sums(workload, grouped=False)


def sep_optimal_grouped(workload: Workload) -> NDArray:
    return _sep_optimal_sums(workload, grouped=True)


def _sep_optimal_sums(workload: Workload, grouped: bool) -> NDArray:
    data, r = workload.image - workload.bg, workload.fwhm
    flux, _, _ = sep_x.sum_circle_optimal(
        data, *_positions(workload), r, r, err=workload.err, grouped=grouped
    )
    return flux


# ---- what a user of sep_x would call for a row of measure_objects_sep


def _sep_arguments(workload: Workload) -> tuple[tuple[NDArray, ...], dict[str, Any]]:
    data = workload.image - workload.bg
    return (data, *_positions(workload)), {"err": workload.err, "gain": GAIN}


def sep_plain(workload: Workload) -> NDArray:
    arguments, options = _sep_arguments(workload)
    return sep_x.sum_circle(*arguments, workload.fwhm, **options)[0]


def sep_estimated_plain(workload: Workload) -> NDArray:
    mesh = sep_x.Background(workload.image, bw=MESH, bh=MESH)
    data, err = workload.image - mesh.back(), mesh.rms()
    return sep_x.sum_circle(data, *_positions(workload), workload.fwhm, err=err, gain=GAIN)[0]


def sep_median(workload: Workload) -> NDArray:
    arguments, options = _sep_arguments(workload)
    r = workload.fwhm
    flux = sep_x.sum_circle(*arguments, r, **options)[0]
    return flux - sep_x.stats_circann(*arguments, 5 * r, 7 * r)[2] * np.pi * r**2


def sep_winpos(workload: Workload) -> NDArray:
    (data, x, y), options = _sep_arguments(workload)
    r = workload.fwhm
    new_x, new_y, flag = sep_x.winpos(data, x, y, r / 2.355, maxstep=0.2 * r)
    moved = flag == 0
    x, y = np.where(moved, new_x, x), np.where(moved, new_y, y)
    return sep_x.sum_circle(data, x, y, r, **options)[0]


def sep_weighted(workload: Workload, grouped: bool, annulus: bool = False) -> NDArray:
    arguments, options = _sep_arguments(workload)
    r = workload.fwhm
    bkgann = (5 * r, 7 * r) if annulus else None
    return sep_x.sum_circle_optimal(*arguments, r, r, bkgann=bkgann, grouped=grouped, **options)[0]


def sep_fit(workload: Workload, grouped: bool) -> NDArray:
    arguments, options = _sep_arguments(workload)
    names = ("sampling", "degree", "x0", "y0", "sx", "sy", "fwhm")
    psf = sep_x.PSF(workload.psf["data"], **{name: workload.psf[name] for name in names})
    return sep_x.psf_fit(*arguments, psf, grouped=grouped, **options)[0]
