"""What is timed of gpuphot, by name: functions of a workload. Loads no reference package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

import gpuphot
from gpuphot.models.smooth import LoessOptions

from .workloads import Workload, build

N_CLIP = 5.0
"""Ratios so many standard deviations from their median are not fitted."""


def built(name: str, fluxes_given: bool) -> Workload:
    """The workload of that name, if so with the fluxes that `with_fluxes` measures."""
    return with_fluxes(build(name)) if fluxes_given else build(name)


def with_fluxes(workload: Workload) -> Workload:
    """The same stars with what was measured before they are deblended.

    These are the columns flux_seed of aperture fluxes, flux_psf and flux_psf_err of optimal sums.
    """
    measure = partial(
        gpuphot.measure_objects_sep, workload.table, workload.image,
        fwhm=workload.fwhm, bg=workload.bg, err=workload.err, aper=1, backend="numpy",
    )  # fmt: skip
    fitted = measure(optimal=True, group_sources=False)
    table = workload.table.copy()
    table["flux_seed"] = measure()["flux"]
    table["flux_psf"], table["flux_psf_err"] = fitted["flux"], fitted["fluxerr"]
    return replace(workload, table=table)


# Each is called with what `Row.call` returns.


def measure_objects(workload: Workload, backend: str, **row: Any) -> Table:
    arguments = workload.arguments(**row)
    return gpuphot.measure_objects(workload.table, workload.image, **arguments, backend=backend)


def measure_objects_sep(workload: Workload, backend: str, **row: Any) -> Table:
    arguments = workload.arguments(**row)
    return gpuphot.measure_objects_sep(workload.table, workload.image, **arguments, backend=backend)


def measure_aperture_deblended(workload: Workload, backend: str, **row: Any) -> Table:
    return gpuphot.measure_aperture_deblended(
        workload.image, **deblending(workload), **row["options"], backend=backend
    )


def deblending(workload: Workload) -> dict[str, Any]:
    """Keyword arguments of `measure_aperture_deblended`, of stdpipe's too."""
    columns = {name: np.asarray(values) for name, values in workload.table.items()}
    maps = {"err": workload.err, "bg": workload.bg}
    return {**columns, **maps, "aper": 1, "fwhm": workload.fwhm, "psf": workload.psf}


@dataclass(frozen=True)
class Ratios:
    """What the smooth field of `measure_aperture_deblended` is fitted to: some of the stars.

    Attributes
    ----------
    x, y, values : (N,) float64 arrays
    used : (N,) bool array
    scales : (float, float)
        Pixels in x and y that count as a distance of 1.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    values: NDArray[np.float64]
    used: NDArray[np.bool_]
    scales: tuple[float, float]


def flux_ratios(workload: Workload) -> Ratios:
    """The flux ratios of a workload without outliers."""
    x, y, seed, fitted = (
        np.asarray(workload.table[name]) for name in ("x", "y", "flux_seed", "flux_psf")
    )
    positive = (seed > 0) & (fitted > 0)
    ratio = np.divide(fitted, seed, out=np.ones(len(x)), where=positive)
    apart = np.abs(ratio - np.median(ratio[positive]))
    used = positive & (apart < N_CLIP * 1.4826 * np.median(apart[positive]))
    return Ratios(x, y, ratio, used, (np.ptp(x[used]) / 4, np.ptp(y[used]) / 4))


def loess_field(workload: Workload, backend: str, **_: Any) -> NDArray[np.float64]:
    ops = gpuphot.resolve_backend(backend).primitives
    ratios = flux_ratios(workload)
    x, y, values, used = (
        ops.to_device(each) for each in (ratios.x, ratios.y, ratios.values, ratios.used)
    )
    return ops.to_host(ops.loess_field(x, y, values, used, LoessOptions(scales=ratios.scales)))


def render_psf_image(workload: Workload, backend: str, **_: Any) -> NDArray[np.float64]:
    x, y, flux = (np.asarray(workload.table[name]) for name in ("x", "y", "flux_psf"))
    return gpuphot.render_psf_image(workload.psf, x, y, flux, workload.image.shape, backend=backend)
