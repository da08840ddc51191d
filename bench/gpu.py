"""Benchmark of the kernels and of whole calls on a GPU: `python -m bench.gpu --help`.

Agreement with the NumPy backend first, then what the card itself can do, then times: kernels,
transfers and host apart. See README.md for what the figures mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

import gpuphot
from gpuphot.cupy_backend import probe
from gpuphot.measure.inputs import make_positions
from gpuphot.models.background import SplineSurface, spline_surface
from gpuphot.models.frame import Frame, Groups, Positions
from gpuphot.models.psf import PSFModel
from gpuphot.models.sep import FWHM_PER_SIGMA, FitOptions
from gpuphot.models.smooth import LoessOptions

from . import harness
from .calls import with_fluxes
from .traffic import ROUNDS, SWEEPS, WORK, Case
from .workloads import BRIGHTEST, FWHM, SIZES, Workload, make

PACKAGES = ("numpy", "scipy", "astropy", "sep-x")
AGREEMENT = 1e-9
AGREEMENT_SOURCES = 2000
GAIN = 2.0
PARTS = ("kernels", "whole", "crossover")
COUNTS = (10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)


# --------------------------------------------------------------------------------- primitives


@dataclass(frozen=True)
class Prepared:
    """What the primitives of one backend work on, on its device."""

    ops: Any
    image: Any
    data: Any
    bad: Any
    level: SplineSurface
    rms: SplineSurface
    frame: Frame
    sep_frame: Frame
    pos: Positions
    case: Case
    groups: Groups | None = None

    @property
    def cell(self) -> tuple[int, int]:
        return self.case.cell, self.case.cell

    def psf(self, planes: bool) -> PSFModel:
        """A PSF made of planes, or a Gaussian."""
        case = self.case
        if planes:
            return psfex_model(case.stamp, case.psf_degree, case.side)
        return PSFModel.gaussian(case.fwhm)

    def of_all(self, value: float) -> Any:
        """A number for every source."""
        return self.ops.xp.full(len(self.pos), value)


def prepare(backend: str, workload: Workload, sources: NDArray[np.intp], case: Case) -> Prepared:
    """Estimate and subtract the background of a workload, all with one backend."""
    ops = gpuphot.resolve_backend(backend).primitives
    image = ops.to_device(workload.image)
    data, bad = ops.load_image(image, None)
    cells = ops.mesh_statistics(data, bad, (case.cell, case.cell))
    level, rms = (spline_surface(ops.to_host(each), (case.cell, case.cell)) for each in cells)
    frame = ops.subtract_background(data.copy(), bad.copy(), level, None, rms, GAIN)
    given = ops.to_device(workload.bg), ops.to_device(workload.err)
    sep_frame = ops.sep_frame(image, None, *given)
    pos = _positions(ops, workload, sources)
    return Prepared(ops, image, data, bad, level, rms, frame, sep_frame, pos, case)


def _positions(ops: Any, workload: Workload, sources: NDArray[np.intp]) -> Positions:
    x, y = (ops.to_device(np.asarray(workload.table[name])[sources]) for name in ("x", "y"))
    return make_positions(x, y, ops.xp.ones(len(sources), ops.xp.bool_), ops.xp)


Results = dict[str, Any]


def _values_or_noise(expected: Results, noise: Any) -> dict[str, Any]:
    return {name: np.maximum(np.abs(values), noise) for name, values in expected.items()}


def _errors_and_pixels(expected: Results, noise: Any) -> dict[str, Any]:
    flux = dict.fromkeys(("flux", "fluxerr"), expected["fluxerr"])
    return flux | dict.fromkeys(("x", "y", "x_psf", "y_psf", "flag", "flags", "flags_psf"), 1)


@dataclass(frozen=True)
class Agreement:
    """What results of both backends must agree to.

    Attributes
    ----------
    allowed : float
        Largest difference of floats; integers must be the same.
    unlike : float
        Share of the values of each result that may be further apart.
    units : callable
        Takes results by name and a level of noise. Returns the units of differences by the names
        of the results to compare.
    """

    allowed: float = AGREEMENT
    unlike: float = 0.0
    units: Callable[[Results, Any], dict[str, Any]] = _values_or_noise

    def check(self, title: str, got: Results, expected: Results, noise: Any) -> float:
        """Largest difference but for those that may be larger; ends the program if not allowed."""
        largest = 0.0
        for name, unit in self.units(expected, noise).items():
            if name not in got:
                continue
            apart = _differences(got[name], expected[name], unit)
            difference = float(np.quantile(apart, 1 - self.unlike, method="higher"))
            if not difference <= self.allowed:
                raise SystemExit(
                    f"{title}: the backends disagree, nothing more is timed: {name} by "
                    f"{difference:.2g}; {self.allowed} is allowed"
                )
            largest = max(largest, difference)
        return largest


def _differences(got: NDArray, expected: NDArray, unit: Any) -> NDArray[np.float64]:
    """Differences of floats, infinite where only one is NaN; 1 for integers that differ."""
    if got.dtype.kind in "bui":
        return (got != expected).astype(float)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.abs(got - expected) / unit
    return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))


EXACT = Agreement()
OF_FITS = Agreement(allowed=1e-2, unlike=0.01, units=_errors_and_pixels)
"""Rounding may decide where a fit ends."""
OF_WIDE_MEDIANS = Agreement(unlike=0.03)
"""Where just half of an annulus is below a pixel, SEP's rounding may decide for the next one."""
OF_MODELS = Agreement(unlike=0.002)
"""Rounding may decide to which number of single precision a pixel of a model is rounded."""


@dataclass(frozen=True)
class Row:
    """A way to call primitives.

    Attributes
    ----------
    key, title : str
    kernels : sequence of str
        That it launches; one that is launched twice is named twice, and with what it is launched
        for after a slash where `WORK` tells that apart.
    run : callable
        Takes what `setup` made; returns its results by name.
    reach : float, optional
        Milliseconds to reach on an H200 with the default sizes.
    setup : callable, optional
        Makes what the call needs or overwrites, not timed.
    share : float
        Of the sources that are measured: slow rows do not need all.
    dense : bool
        Whether these lie side by side, and not all over the image.
    changes : dict
        What is not as in the case, by the names of its fields.
    count : callable, optional
        Takes what `run` takes and returns; makes the case that its work is counted for.
    agreement : Agreement
        With the NumPy backend.
    checked : float
        Share of the usual sources that it is checked for.
    """

    key: str
    title: str
    kernels: Sequence[str]
    run: Callable[[Prepared], Results]
    reach: float | None = None
    setup: Callable[[Prepared], Prepared] = field(default=lambda prepared: prepared)
    share: float = 1.0
    dense: bool = False
    changes: dict[str, Any] = field(default_factory=dict)
    count: Callable[[Prepared, Results], Case] = field(default=lambda on, results: on.case)
    agreement: Agreement = EXACT
    checked: float = 1.0

    def prepared(self, on: Prepared) -> Prepared:
        """What `run` takes."""
        case = dataclasses.replace(on.case, **self.changes)
        return self.setup(dataclasses.replace(on, case=case))


def _load(on: Prepared) -> Results:
    return dict(zip(("data", "bad"), on.ops.load_image(on.image, None), strict=True))


def _background(on: Prepared) -> Results:
    """What an estimated background takes: statistics, splines on the host, two maps."""
    cells = on.ops.mesh_statistics(on.data, on.bad, on.cell)
    surfaces = (spline_surface(on.ops.to_host(each), on.cell) for each in cells)
    level, rms = (on.ops.evaluate_surface(surface, on.data.shape) for surface in surfaces)
    return {"level": level, "rms": rms}


def _large_mesh(on: Prepared) -> Results:
    cell = on.case.large_cell, on.case.large_cell
    return dict(zip(("level", "rms"), on.ops.mesh_statistics(on.data, on.bad, cell), strict=True))


def _copied(on: Prepared) -> Prepared:
    return dataclasses.replace(on, data=on.data.copy(), bad=on.bad.copy())


def _subtract(on: Prepared) -> Results:
    frame = on.ops.subtract_background(on.data, on.bad, on.level, None, on.rms, GAIN)
    return {"data": frame.data, "bad": frame.bad, "err": frame.err, "bkg_rms": frame.bkg_rms}


def _apertures(on: Prepared) -> Results:
    sums = on.ops.aperture_sums(on.frame, on.pos, np.array([on.case.radius]))
    return {name: getattr(sums, name) for name in ("flux", "var", "area", "bkg_var", "masked")}


def _centroids(on: Prepared) -> Results:
    x, y = on.ops.com_centroid(on.frame, on.pos, on.case.half_size, on.case.n_iter)
    return {"x": x, "y": y}


def _mode(on: Prepared, wide: bool = False) -> Results:
    annulus = on.case.wide_annulus if wide else on.case.annulus
    return {"level": on.ops.annulus_mode(on.frame, on.pos, *annulus)}


def _polynomial(on: Prepared, order: int) -> Results:
    return {"level": on.ops.annulus_polynomial(on.frame, on.pos, *on.case.annulus, order)}


def _stamps(on: Prepared) -> Results:
    return {"stamps": on.ops.psf_stamps(on.psf(planes=False), on.pos.x, on.pos.y)}


def _render(on: Prepared) -> Results:
    flux = on.ops.xp.full(len(on.pos), BRIGHTEST)
    psf = on.psf(planes=True)
    return {"image": on.ops.render_psf_image(on.data.shape, psf, on.pos.x, on.pos.y, flux)}


def _loess(on: Prepared) -> Results:
    values = 1000 + (7 * on.pos.x + 13 * on.pos.y) % 1  # the same bits on both backends
    options = LoessOptions(k=on.case.nearest)
    return {"field": on.ops.loess_field(on.pos.x, on.pos.y, values, on.pos.valid, options)}


def _overlaps(on: Prepared) -> Results:
    rows = on.ops.xp.arange(len(on.pos))
    light, error = on.of_all(BRIGHTEST), on.of_all(np.sqrt(BRIGHTEST))
    psf = on.psf(planes=True)
    overlaps = on.ops.aperture_overlaps(
        psf, on.pos, rows, on.case.radius, on.case.subpix, light, error, neighbours=True
    )
    return vars(overlaps)


def _psf_centroids(on: Prepared, planes: bool) -> Results:
    x, y = on.ops.psf_centroid(on.frame, on.pos, on.psf(planes), on.case.half_size, n_iter=1)
    return {"x": x, "y": y}


def _optimal(on: Prepared, planes: bool) -> Results:
    bg = on.ops.xp.zeros(len(on.pos))
    return vars(on.ops.optimal_sums(on.frame, on.pos, on.psf(planes), on.case.clip, bg))


def _link(on: Prepared) -> Results:
    return vars(on.ops.link_groups(on.pos, on.case.link_radius / 2))


def _linked(on: Prepared, half: int | None = None) -> Prepared:
    groups = on.ops.link_groups(on.pos, on.case.link_radius / 2)
    sizes = on.ops.to_host(groups.size)
    if not (sizes > 1).any():
        raise SystemExit("no sources are linked: --sources or --link-radius must be larger")
    return dataclasses.replace(on, groups=groups, case=on.case.with_groups(sizes, half))


def _grouped(on: Prepared) -> Results:
    bg, psf = on.ops.xp.zeros(len(on.pos)), on.psf(planes=False)
    sums = on.ops.grouped_optimal_sums(on.frame, on.pos, on.groups, psf, on.case.clip, bg)
    return vars(sums)


# ---- SEP's conventions

FIT = FitOptions(
    maxiter=20, fit_positions=True, fit_radius=0.0, damp_snthresh=0.0, group_factor=2.0
)


def _sep_background(on: Prepared) -> Results:
    maps = on.ops.sep_background(on.data, on.bad, on.case.cell)
    return dict(zip(("level", "rms"), maps, strict=True))


def _sep_stamps(on: Prepared) -> Results:
    return {"stamps": on.ops.sep_psf_stamps(on.psf(planes=True), on.pos.x, on.pos.y)}


def _winpos(on: Prepared, planes: bool) -> Results:
    fwhm, max_step = on.case.fwhm, 0.2 * on.case.fwhm
    if planes:
        found = on.ops.sep_psf_winpos(on.sep_frame, on.pos, on.psf(planes), max_step)
    else:
        found = on.ops.sep_winpos(on.sep_frame, on.pos, fwhm / FWHM_PER_SIGMA, max_step)
    return dict(zip(("x", "y", "flag"), found, strict=True))


def _sep_apertures(on: Prepared) -> Results:
    r = on.of_all(on.case.radius)
    return vars(on.ops.sep_aperture_sums(on.sep_frame, on.pos, r, GAIN))


def _sep_median(on: Prepared) -> Results:
    radii = map(on.of_all, on.case.annulus)
    return {"level": on.ops.sep_annulus_median(on.sep_frame, on.pos, *radii)}


def _sep_means(on: Prepared) -> Results:
    radii = map(on.of_all, on.case.annulus)
    means = on.ops.sep_annulus_means(
        on.sep_frame, on.pos, *radii, clip_sigma=3.0, clip_iters=5, gain=GAIN
    )
    return vars(means)


def _sep_optimal(on: Prepared) -> Results:
    circles = on.of_all(on.case.clip), on.of_all(on.case.fwhm)
    return vars(on.ops.sep_optimal_sums(on.sep_frame, on.pos, *circles, GAIN))


def _sep_linked(on: Prepared) -> Prepared:
    """All sources are looked at, and circles may overlap by a pixel more than they reach."""
    linked = _linked(on, math.ceil(on.case.clip) + 1)
    case = dataclasses.replace(linked.case, n_sources=on.case.n_sources)
    return dataclasses.replace(linked, case=case)


def _sep_grouped(on: Prepared) -> Results:
    circles = on.of_all(on.case.clip), on.of_all(on.case.fwhm)
    factor = on.case.link_radius / 2 / on.case.clip
    sums = on.ops.sep_grouped_optimal_sums(
        on.sep_frame, on.pos, on.groups, *circles, GAIN, radius_factor=factor
    )
    return vars(sums)


def _fit(on: Prepared, fit_positions: bool = True) -> Results:
    options = dataclasses.replace(FIT, fit_positions=fit_positions)
    return vars(on.ops.sep_psf_fit(on.sep_frame, on.pos, on.psf(planes=True), GAIN, options))


def _fit_grouped(on: Prepared) -> Results:
    psf = on.psf(planes=True)
    return vars(on.ops.sep_grouped_psf_fit(on.sep_frame, on.pos, psf, GAIN, FIT))


def _count_passes(on: Prepared, fits: Results) -> Case:
    alone = np.ones(len(on.pos), np.int64)
    return on.case.with_fits(alone, on.ops.to_host(fits["n_iter"]))


def _count_groups(on: Prepared, fits: Results) -> Case:
    groups = on.ops.link_groups(on.pos, on.case.fit_reach)
    return on.case.with_fits(on.ops.to_host(groups.size), on.ops.to_host(fits["n_iter"]))


# Stamps for the sums and for the residuals; lists are counted, then written.
_KERNELS_OF_GROUPS = (
    *("group_totals", "list_neighbours") * 2,
    *("gaussian_stamps", "member_sums", "pair_products"),
    *("list_systems",) * 2,
    "invert_systems",
    *("left_of_equations", "add_inverse_product") * SWEEPS,
    *("gaussian_stamps", "group_residuals"),
    *("group_totals",) * 2,
)

_KERNELS_OF_SEP_GROUPS = (
    "sep_optimal_sums",
    "group_totals",
    *("list_neighbours",) * 2,
    *("sep_member_stamps", "sep_pair_products"),
    *("list_systems",) * 2,
    "invert_systems",
    *("left_of_equations", "add_inverse_product") * SWEEPS,
)

_KERNELS_OF_FITS = (
    *("sep_fit_sources/fluxes", "sep_reach", "link_cells", "flatten_links"),
    *("sep_fit_groups", "sep_fit_sources/single"),
)

# Blocks are listed, and fitted once the light of all other members has been rendered.
_KERNELS_OF_BLOCKS = (
    *_KERNELS_OF_FITS[:4],
    *("sep_list_blocks", "sep_fit_sources/fluxes"),
    *("sep_psf_stamps", "render_tiles", "sep_fit_groups") * ROUNDS,
    "sep_fit_sources/single",
)

SPARSE = 0.1
"""Share of the sources, all over the image, whose groups stay small: the two backends fit those of
more than 64 members in ways of their own."""


ROWS = (
    Row("load", "bad pixels", ["mark_bad_pixels"], _load),
    Row(
        "mesh", "background mesh, two maps",
        ["mesh_statistics", "evaluate_surface", "evaluate_surface"], _background, reach=2,
    ),
    Row("large_mesh", "mesh of large cells", ["mesh_statistics_streaming"], _large_mesh),
    Row(
        "subtract", "subtraction, noise maps", ["subtract_background"], _subtract, setup=_copied
    ),
    Row("apertures", "apertures", ["aperture_sums"], _apertures, reach=2),
    Row("com", "COM centroids", ["com_centroid"], _centroids),
    Row("annulus0", "clipped annuli, mode", ["annulus_mode"], _mode, reach=15),
    Row(
        "wide", "wide annuli, mode", ["annulus_mode_streaming"], partial(_mode, wide=True),
        share=0.01,
    ),
    Row("annulus1", "annuli, plane", ["annulus_plane"], partial(_polynomial, order=1)),
    Row("annulus2", "annuli, quadratic", ["annulus_quadratic"], partial(_polynomial, order=2)),
    Row("gaussian", "Gaussian stamps", ["gaussian_stamps"], _stamps),
    Row("render", "model image, PSFEx stamps", ["psf_stamps", "render_tiles"], _render, reach=10),
    Row(
        "overlaps", "light of stars in apertures, PSFEx model", ["psf_stamps", "aperture_overlaps"],
        _overlaps,
    ),
    # Fitted twice without the sample itself, to weigh samples, then at all positions.
    Row(
        "loess", "LOESS field",
        ["loess_reach", *("loess_predict",) * 2, "loess_reach", "loess_predict"], _loess, reach=100,
    ),
    Row(
        "psf", "PSF centroids, 1 call, Gaussian", ["gaussian_centroid"],
        partial(_psf_centroids, planes=False),
    ),
    Row(
        "psf-model", "PSF centroids, 1 call, PSFEx model", ["psf_centroid"],
        partial(_psf_centroids, planes=True),
    ),
    Row(
        "optimal", "optimal sums, Gaussian", ["gaussian_stamps", "optimal_sums"],
        partial(_optimal, planes=False), reach=3, changes={"cut_stamps": True},
    ),
    Row(
        "optimal-model", "optimal sums, PSFEx model", ["psf_stamps", "optimal_sums"],
        partial(_optimal, planes=True), reach=8, changes={"cut_stamps": True},
    ),
    Row(
        "optimal-large", "optimal sums, PSFEx model of 63 x 63", ["psf_stamps", "optimal_sums"],
        partial(_optimal, planes=True), reach=40, changes={"cut_stamps": True, "stamp": 63},
    ),
    Row("link", "groups", ["link_cells", "flatten_links"], _link, reach=10),
    Row(
        "grouped", "optimal sums of groups, Gaussian", _KERNELS_OF_GROUPS, _grouped, setup=_linked
    ),
    Row(
        "sep-mesh", "sep: background mesh, two maps",
        ["sep_cell_levels", "sep_cell_mode", "sep_mesh_rows", "sep_mesh_maps"], _sep_background,
        reach=2,
    ),
    Row("sep-stamps", "sep: PSFEx stamps", ["sep_psf_stamps"], _sep_stamps),
    Row(
        "sep-winpos", "sep: windowed centroids", ["sep_winpos"], partial(_winpos, planes=False)
    ),
    Row(
        "sep-winpos-model", "sep: windowed centroids, PSFEx model", ["sep_psf_winpos"],
        partial(_winpos, planes=True),
    ),
    Row("sep-apertures", "sep: apertures", ["sep_aperture_sums"], _sep_apertures, reach=2),
    Row("sep-median", "sep: annuli, median", ["sep_annulus_median"], _sep_median),
    Row(
        "sep-wide-median", "sep: wide annuli, median",
        ["sep_annulus_median", "sep_annulus_median_streaming"], _sep_median,
        share=0.01, changes={"annulus": Case.wide_annulus}, agreement=OF_WIDE_MEDIANS,
    ),
    Row("sep-means", "sep: clipped annuli, mean", ["sep_annulus_means"], _sep_means, reach=15),
    Row(
        "sep-wide-means", "sep: wide clipped annuli, mean",
        ["sep_annulus_means", "sep_annulus_means_streaming"], _sep_means,
        share=0.01, changes={"annulus": Case.wide_annulus},
    ),
    Row("sep-optimal", "sep: optimal sums", ["sep_optimal_sums"], _sep_optimal, reach=3),
    Row(
        "sep-grouped", "sep: optimal sums of groups", _KERNELS_OF_SEP_GROUPS, _sep_grouped,
        setup=_sep_linked,
    ),
    Row(
        "sep-fit", "sep: PSF fits, PSFEx model", ["sep_fit_sources"], _fit, reach=150,
        count=_count_passes, agreement=OF_FITS,
    ),
    Row(
        "sep-fluxes", "sep: PSF fits, fluxes only", ["sep_fit_sources/fluxes"],
        partial(_fit, fit_positions=False), agreement=OF_FITS,
    ),
    Row(
        "sep-fit-grouped", "sep: PSF fits of groups", _KERNELS_OF_FITS, _fit_grouped,
        count=_count_groups, share=SPARSE, agreement=OF_FITS, checked=SPARSE,
    ),
    Row(
        "sep-fit-blocks", "sep: PSF fits of large groups, in blocks", _KERNELS_OF_BLOCKS,
        _fit_grouped, share=0.05, dense=True, count=_count_groups, agreement=OF_FITS,
        checked=SPARSE,
    ),
)  # fmt: skip


@functools.lru_cache(maxsize=16)  # A model equals only itself: kernels look at it once
def psfex_model(stamp: int, degree: int, side: int) -> PSFModel:
    """A model like PSFEx's: planes that are combined by a polynomial in the position."""
    n_planes = (degree + 1) * (degree + 2) // 2
    axis = np.arange(stamp) - stamp // 2
    r2 = axis**2 + axis[:, None] ** 2
    planes = np.random.default_rng(2).normal(0, 1e-3, (n_planes, stamp, stamp))
    planes *= np.exp(-r2 / 8)
    planes[0] += np.exp(-r2 / 4)
    half = side / 2
    polynomial = {"degree": degree, "x0": half, "y0": half, "sx": half, "sy": half}
    return PSFModel.from_psfex_dict({"data": planes, "sampling": 1.0, **polynomial})


def _part(row: Row, on: Prepared, workload: Workload) -> Prepared:
    """What a row is timed with."""
    some = _some_sources(len(on.pos), row.share)
    if not row.dense:
        return _with_sources(on, workload, some)
    sources, corner = workload.corner(len(some))
    part = _with_sources(on, workload, sources)
    return dataclasses.replace(part, case=dataclasses.replace(part.case, side=len(corner.image)))


def _some_sources(n: int, share: float) -> NDArray[np.intp]:
    """Part of the sources; they are in random order."""
    return np.arange(max(1, round(share * n)))


def _checked_sources(workload: Workload) -> NDArray[np.intp]:
    """Some all over the image, and some side by side, which have groups as all have."""
    half = AGREEMENT_SOURCES // 2
    return np.union1d(workload.sample(half), workload.corner(half)[0])


def measure_kernels(
    workload: Workload, case: Case, ceilings: dict[str, float], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Check and time the primitives."""
    _progress("primitives on both backends")
    checked = _checked_sources(workload)
    on_gpu = prepare("cupy", workload, np.arange(len(workload.table)), case)
    on_cpu = prepare("numpy", workload, checked, case)
    results = []
    for row in ROWS:
        _progress(row.title)
        some = checked[_some_sources(len(checked), row.checked)]
        difference = _check(row, *(_with_sources(on, workload, some) for on in (on_gpu, on_cpu)))
        part = _part(row, on_gpu, workload)
        results.append(_time_row(row, part, ceilings, arguments))
        results[-1]["largest_difference"] = difference
    return results


def _with_sources(on: Prepared, workload: Workload, sources: NDArray[np.intp]) -> Prepared:
    pos = _positions(on.ops, workload, sources)
    return dataclasses.replace(
        on, pos=pos, case=dataclasses.replace(on.case, n_sources=len(sources))
    )


def _check(row: Row, ours: Prepared, theirs: Prepared) -> float:
    """Largest difference of the two backends."""
    noise = float(np.median(theirs.ops.to_host(theirs.frame.err)))
    got, expected = (
        {name: on.ops.to_host(values) for name, values in row.run(row.prepared(on)).items()}
        for on in (ours, theirs)
    )
    return row.agreement.check(row.title, got, expected, noise)


def _time_row(
    row: Row, on: Prepared, ceilings: dict[str, float], arguments: argparse.Namespace
) -> dict[str, Any]:
    from . import device  # Needs CuPy

    flush = device.Flush(arguments.copy_bytes)
    kernels, host, wall = [], [], []
    with device.kernel_clock() as clock:
        for _ in range(arguments.repeats):
            ready = row.prepared(on)
            device.synchronize()
            clock.read()
            flush()
            results = row.run(ready)
            kernels.append(clock.read())
    for _ in range(arguments.repeats):
        seconds = device.host_and_wall_seconds(partial(row.run, row.prepared(on)))
        host.append(seconds[0])
        wall.append(seconds[1])
    case = row.count(ready, results)
    work = [WORK[name](case) for name in row.kernels]
    n_bytes = sum(each.least_bytes(case) for each in work)
    operations = sum(each.operations * each.n_units(case) for each in work)
    floors = {
        "bytes": n_bytes / ceilings["copy_bytes_per_s"],
        "operations": operations / ceilings["operations_per_s"],
    }
    kernel_s = spread([sum(each.values()) for each in kernels])
    return {
        "row": row.key,
        "title": row.title,
        "sources": len(on.pos),
        "side": on.case.side,
        "kernel_s": kernel_s,
        "by_kernel_s": {
            name: spread([each[name] for each in kernels]) for name in sorted(kernels[0])
        },
        "host_s": spread(host),
        "wall_s": spread(wall),
        "bytes": n_bytes,
        "operations": operations,
        "floor_s": floors,
        "fraction_of_floor": max(floors.values()) / kernel_s["median"],
        "reach_s": None if row.reach is None else row.reach / 1000,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": median(values), "min": min(values), "max": max(values)}


# -------------------------------------------------------------------------------- whole calls


@dataclass(frozen=True)
class WholeRow:
    """A way to call `measure_objects` or, if `function` says so, one of its siblings.

    Of the stars it takes `columns`, in a table unless it is to deblend.
    `reach` in milliseconds, at XL with the image resident; `agreement` and `checked` as in `Row`.
    """

    key: str
    title: str
    options: dict[str, Any]
    maps_given: bool = True
    psf_given: bool = False
    reach: float | None = None
    function: str = "measure_objects"
    columns: Sequence[str] = ("x", "y")
    agreement: Agreement = EXACT
    checked: float = 1.0

    @property
    def takes_table(self) -> bool:
        return self.function != "measure_aperture_deblended"

    def with_psf(self, psf: PSFModel) -> WholeRow:
        """With the model among the options, if it is to be given."""
        options = {**self.options, "psf": psf} if self.psf_given else self.options
        return dataclasses.replace(self, options=options)


_GROUPED = {"aper": 1, "optimal": True, "group_sources": True}


def _sep_row(key: str, title: str, options: dict[str, Any], **fields: Any) -> WholeRow:
    return WholeRow(
        f"sep-{key}", f"sep: {title}", {"aper": 1, "gain": GAIN, **options},
        function="measure_objects_sep", **fields,
    )  # fmt: skip


WHOLE_ROWS = (
    WholeRow("aperture", "aperture", {"aper": 1}, reach=60),
    WholeRow("estimated", "aperture, background and noise estimated", {"aper": 1}, False),
    WholeRow("annulus0", "aperture + annulus, order 0", {"aper": 1, "bkgann": [5, 7]}),
    WholeRow("com", "COM centroid, 3 iterations", {"aper": 1, "centroid_iter": 3}),
    WholeRow("grouped", "optimal, Gaussian, grouped", _GROUPED, reach=150),
    WholeRow("grouped-model", "optimal, PSFEx model, grouped", _GROUPED, psf_given=True),
    _sep_row("aperture", "aperture", {}, reach=60),
    _sep_row("annulus", "aperture + annulus", {"bkgann": [5, 7]}),
    _sep_row("grouped", "optimal, grouped", {"optimal": True}, reach=150),
    _sep_row("fit", "PSF fit", {"group_sources": False}, psf_given=True, agreement=OF_FITS),
    _sep_row(
        "fit-grouped", "PSF fit, grouped", {}, psf_given=True, agreement=OF_FITS, checked=SPARSE
    ),
    WholeRow(
        "deblended", "deblended", {"aper": 1}, psf_given=True, reach=400,
        function="measure_aperture_deblended",
        columns=("x", "y", "flux_seed", "flux_psf", "flux_psf_err"), agreement=OF_MODELS,
    ),
)  # fmt: skip


def _planes(workload: Workload) -> dict[str, NDArray]:
    """Image, background and noise as surveys store them: in single precision."""
    return {name: getattr(workload, name).astype(np.float32) for name in ("image", "bg", "err")}


def _call(table: Table, planes: dict[str, Any], row: WholeRow, backend: str) -> Callable[[], Table]:
    maps = {name: planes[name] for name in ("bg", "err")} if row.maps_given else {}
    function = partial(
        getattr(gpuphot, row.function), fwhm=FWHM, backend=backend, **maps, **row.options
    )
    if row.takes_table:
        return partial(function, table[row.columns], planes["image"])
    columns = {name: np.asarray(table[name]) for name in row.columns}
    return partial(function, planes["image"], **columns)


def measure_whole_calls(workload: Workload, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Check and time calls from host arrays and from arrays on the device."""
    host = _planes(workload)
    resident = _on_device(host)
    sample = workload.table[_checked_sources(workload)]
    psf = PSFModel.from_psfex_dict(workload.psf)
    results = []
    for row in (each.with_psf(psf) for each in WHOLE_ROWS):
        _progress(f"whole call: {row.title}")
        some = sample[_some_sources(len(sample), row.checked)]
        difference = _check_tables(row, some, host, resident)
        numpy_s = [
            harness.timed(_call(workload.table, host, row, "numpy")).wall
            for _ in range(arguments.numpy_repeats)
        ]
        for place, planes in (("device", resident), ("host", host)):
            result = _time_whole(workload.table, planes, row, place, arguments)
            result["largest_difference"] = difference
            result["numpy_wall_s"] = spread(numpy_s)
            result["ratio"] = median(numpy_s) / result["wall_s"]["median"]
            results.append(result)
    return results


def _on_device(planes: dict[str, NDArray]) -> dict[str, Any]:
    to_device = gpuphot.resolve_backend("cupy").primitives.to_device
    return {name: to_device(plane) for name, plane in planes.items()}


def _check_tables(row: WholeRow, table: Table, host: Any, resident: Any) -> float:
    """Largest difference of the two backends; fluxes and errors in units of the larger of both."""
    expected = _compared(_call(table, host, row, "numpy")())
    return max(
        row.agreement.check(
            row.title,
            _compared(_call(table, planes, row, "cupy")()),
            expected,
            expected["fluxerr"],
        )
        for planes in (resident, host)
    )


def _compared(table: Table) -> Results:
    columns = {name: np.asarray(table[name]) for name in table.colnames}
    floats = "flux", "fluxerr", "x_psf", "y_psf"
    return {
        name: values
        for name, values in columns.items()
        if name in floats or values.dtype.kind in "bui"
    }


def _time_whole(
    table: Table, planes: dict[str, Any], row: WholeRow, place: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    from . import device  # Needs CuPy

    call = _call(table, planes, row, "cupy")
    n_columns = len(call().colnames)  # The warm-up, too
    runs = [harness.timed(call) for _ in range(arguments.repeats)]
    kernels = []
    with device.kernel_clock() as clock:
        for _ in range(arguments.repeats):
            call()
            kernels.append(sum(clock.read().values()))
    uploaded = [np.asarray(table[name]) for name in row.columns]
    if place == "host":
        uploaded += planes.values() if row.maps_given else [planes["image"]]
    new_columns = n_columns - len(row.columns) if row.takes_table else n_columns
    upload = device.upload_seconds(uploaded, arguments.repeats)
    download = device.download_seconds(len(table), new_columns, arguments.repeats)
    wall = spread([run.wall for run in runs])
    apart = median(kernels) + median(upload) + median(download)
    return {
        "row": row.key,
        "title": row.title,
        "arrays": place,
        "sources": len(table),
        "side": len(planes["image"]),
        "wall_s": wall,
        "cpu_s": spread([run.cpu for run in runs]),
        "kernel_s": spread(kernels),
        "upload_s": spread(upload),
        "download_s": spread(download),
        "rest_s": wall["median"] - apart,
        "reach_s": row.reach / 1000 if row.reach and place == "device" else None,
    }


# ---------------------------------------------------------------------------------- crossover


def measure_crossover(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Times of both backends for growing numbers of sources on one image."""
    results = []
    for side in arguments.crossover_sides:
        workload = make(f"{side}^2", side, max(arguments.counts))
        host = _planes(workload)
        for place, planes in (("device", _on_device(host)), ("host", host)):
            for row in (WHOLE_ROWS[0], WHOLE_ROWS[1]):
                _progress(f"crossover: {side}^2, arrays on the {place}, {row.title}")
                times = [
                    _time_both(workload.table[:n], planes, host, row, arguments)
                    for n in arguments.counts
                ]
                results.append(
                    {
                        "side": side,
                        "arrays": place,
                        "row": row.key,
                        "title": row.title,
                        "times": times,
                        "crossover": crossover(times),
                    }
                )
    return results


def _time_both(
    table: Table, planes: Any, host: Any, row: WholeRow, arguments: argparse.Namespace
) -> dict[str, Any]:
    calls = {
        "cupy": _call(table, planes, row, "cupy"),
        "numpy": _call(table, host, row, "numpy"),
    }
    for call in calls.values():
        call()
    timed = {name: partial(harness.timed, call) for name, call in calls.items()}
    runs = harness.interleaved(timed, dict.fromkeys(timed, arguments.repeats))
    return {
        "sources": len(table),
        **{f"{name}_wall_s": spread([run.wall for run in each]) for name, each in runs.items()},
    }


def crossover(times: Sequence[dict[str, Any]]) -> int | None:
    """Least of the numbers of sources from which on the GPU is faster; None if it never is."""
    least = None
    for each in reversed(times):
        if each["cupy_wall_s"]["median"] >= each["numpy_wall_s"]["median"]:
            break
        least = each["sources"]
    return least


# ------------------------------------------------------------------------------------- the card


def measure_card(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the card itself does in this run."""
    from . import device  # Needs CuPy

    _progress("the card itself")
    repeats = arguments.repeats
    plane = np.random.default_rng(1).normal(size=(arguments.side, arguments.side))
    return {
        **device.description(),
        "copy_bytes_per_s": spread(device.copy_bandwidth(arguments.copy_bytes, repeats)),
        "operations_per_s": spread(device.operation_rate(arguments.rounds, repeats)),
        "launch_s": spread(device.launch_seconds(arguments.launches, repeats)),
        "upload_bytes_per_s": spread(
            [plane.nbytes / each for each in device.upload_seconds([plane], repeats)]
        ),
        "pinned_upload_bytes_per_s": spread(
            [plane.nbytes / each for each in device.pinned_upload_seconds([plane], repeats)]
        ),
    }


# -------------------------------------------------------------------------------------- report


def as_markdown(report: dict[str, Any]) -> str:
    """Everything that was measured, ready for README.md."""
    parts = [_machine_lines(report)]
    if report["kernels"]:
        parts += ["Primitives, arrays on the device, ms:", _kernel_table(report["kernels"])]
    if report["whole"]:
        parts += ["Whole calls, table out, ms:", _whole_table(report["whole"])]
    if report["crossover"]:
        parts += ["The GPU is faster from this many sources on:", _crossover_table(report)]
    return "\n\n".join(parts)


def _machine_lines(report: dict[str, Any]) -> str:
    machine, gpu = report["machine"], report["gpu"]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return (
        f"`{report['command']}`, {report['date'][:10]}; {gpu['name']}, driver of CUDA "
        f"{gpu['cuda_driver']}, runtime {gpu['cuda_runtime']}, CuPy {gpu['cupy']}; "
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_1min_at_start']:.1f}; "
        f"{versions}.\n\n"
        f"The card: copies {gpu['copy_bytes_per_s']['median'] / 1e9:.4g} GB/s, "
        f"{gpu['operations_per_s']['median'] / 1e12:.3g} T operations/s (double precision, not "
        f"fused), {1e6 * gpu['launch_s']['median']:.3g} us per launch, uploads "
        f"{gpu['upload_bytes_per_s']['median'] / 1e9:.3g} GB/s from ordinary and "
        f"{gpu['pinned_upload_bytes_per_s']['median'] / 1e9:.3g} GB/s from page-locked memory."
    )


def _kernel_table(results: list[dict[str, Any]]) -> str:
    head = [
        "row", "sources", "side", "kernels", "min..max", "MB", "floor, bytes",
        "floor, operations", "floor / kernels", "until it returns", "whole", "to reach",
    ]  # fmt: skip
    lines = [
        [
            each["title"],
            f"{each['sources']:,}",
            str(each["side"]),
            _ms(each["kernel_s"]["median"]),
            f"{_ms(each['kernel_s']['min'])}..{_ms(each['kernel_s']['max'])}",
            f"{each['bytes'] / 1e6:.3g}",
            _ms(each["floor_s"]["bytes"]),
            _ms(each["floor_s"]["operations"]),
            f"{each['fraction_of_floor']:.0%}",
            _ms(each["host_s"]["median"]),
            _ms(each["wall_s"]["median"]),
            _ms(each["reach_s"]),
        ]
        for each in results
    ]
    return harness.markdown_table(head, lines, n_text=1)


def _whole_table(results: list[dict[str, Any]]) -> str:
    head = [
        "row", "arrays on", "sources", "side", "wall", "min..max", "kernels", "upload",
        "download", "rest", "to reach", "numpy", "ratio",
    ]  # fmt: skip
    lines = [
        [
            each["title"],
            each["arrays"],
            f"{each['sources']:,}",
            str(each["side"]),
            _ms(each["wall_s"]["median"]),
            f"{_ms(each['wall_s']['min'])}..{_ms(each['wall_s']['max'])}",
            *(_ms(each[f"{part}_s"]["median"]) for part in ("kernel", "upload", "download")),
            _ms(each["rest_s"]),
            _ms(each["reach_s"]),
            _ms(each["numpy_wall_s"]["median"]),
            f"{each['ratio']:.3g}x",
        ]
        for each in results
    ]
    return harness.markdown_table(head, lines, n_text=2)


def _crossover_table(report: dict[str, Any]) -> str:
    lines = [
        [
            each["title"],
            each["arrays"],
            f"{each['side']}^2",
            "never" if each["crossover"] is None else f"{each['crossover']:,}",
        ]
        for each in report["crossover"]
    ]
    return harness.markdown_table(["row", "arrays on", "pixels", "sources"], lines, n_text=2)


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.3g}"


# --------------------------------------------------------------------------------------- main


def main() -> None:
    arguments = _parser().parse_args()
    report = measure(arguments)
    print(as_markdown(report))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole report. Ends the program with a sentence if no GPU is usable."""
    problem = probe.find_gpu().problem
    if problem is not None:
        raise SystemExit(problem)
    case = Case(
        n_sources=arguments.sources,
        side=arguments.side,
        stamp=arguments.stamp,
        link_radius=arguments.link_radius,
    )
    report = {"benchmark": "gpu", **harness.circumstances("cupy", PACKAGES)}
    report["gpu"] = measure_card(arguments)
    report["agreement"] = AGREEMENT
    report.update({part: [] for part in PARTS})
    if "kernels" in arguments.parts:
        ceilings = {
            name: report["gpu"][name]["median"] for name in ("copy_bytes_per_s", "operations_per_s")
        }
        workload = make(f"{case.side}^2", case.side, case.n_sources)
        report["kernels"] = measure_kernels(workload, case, ceilings, arguments)
    if "whole" in arguments.parts:
        workload = with_fluxes(make("whole", arguments.whole_side, arguments.whole_sources))
        report["whole"] = measure_whole_calls(workload, arguments)
    if "crossover" in arguments.parts:
        report["crossover"] = measure_crossover(arguments)
    return report


def _parser() -> argparse.ArgumentParser:
    side, sources = SIZES["XL"]
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description="Time the kernels and whole calls of gpuphot on a GPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--repeats", type=int, default=9, help="timed calls")
    add("--numpy-repeats", type=int, default=2, help="timed whole calls of the NumPy backend")
    add("--side", type=int, default=Case.side, help="of the image that primitives work on")
    add("--sources", type=int, default=Case.n_sources, help="on it")
    add("--stamp", type=int, default=Case.stamp, help="side of stamps of PSF models, in pixels")
    add("--link-radius", type=float, default=Case.link_radius, help="of their groups, in pixels")
    add("--whole-side", type=int, default=side, help="of the image of whole calls")
    add("--whole-sources", type=int, default=sources, help="on it")
    add("--crossover-sides", type=int, nargs="+", default=[1024, 4096])
    add("--counts", type=int, nargs="+", default=COUNTS, help="of sources, rising")
    add("--copy-bytes", type=int, default=1 << 30, help="of the copy that measures bandwidth")
    add("--rounds", type=int, default=20_000, help="of the loop that measures arithmetic")
    add("--launches", type=int, default=1000, help="in a row, to measure their cost")
    add("--json", type=Path, metavar="FILE", help="write everything there")
    return parser


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
