"""Do gpuphot and a reference measure the same? A benchmark that cannot say so times nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from gpuphot.models.sep import MAX_EXACT_GROUP

ALLOWED = 1e-9
ALLOWED_DEBLENDED = 2e-8
"""Of deblended fluxes: stdpipe multiplies planes of single precision in single precision."""
EXACT = ("flags", "npix_optimal", "group_size", "niter_psf", "flags_psf")
LEAST_SEPARATION = 0.3
"""Of the members of a group, in pixels.

Fluxes of sources that coincide more closely are ill-conditioned: rounding errors grow with the
inverse square of the separation, and the more so where three come together.
"""


def check_deblended(label: str, ours: Table, theirs: Table) -> dict[str, float]:
    """Compare deblended fluxes in units of the light in the aperture, before it is deblended."""
    light = np.maximum(np.abs(theirs["flux_ap_raw"]), np.abs(theirs["flux_model"]))
    units = {"flux": light, "fluxerr": theirs["fluxerr"]}
    if not np.array_equal(ours["flags"], theirs["flags"]):
        raise SystemExit(f"{label}: flags differ from stdpipe's, nothing is timed")
    found = {
        name: _largest(label, name, ours[name], theirs[name], unit, ALLOWED_DEBLENDED)
        for name, unit in units.items()
    }
    return {**found, "sources": len(theirs)}


def check_arrays(name: str, label: str, ours: NDArray, theirs: NDArray) -> dict[str, float]:
    """Compare arrays in units of their largest value."""
    return {name: _largest(label, name, ours, theirs, np.nanmax(np.abs(theirs)), ALLOWED)}


def _largest(
    label: str, name: str, ours: NDArray, theirs: NDArray, unit: Any, allowed: float
) -> float:
    """Largest difference in units of something; infinite where only one of both is NaN."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    difference = np.where(np.isnan(ours) & np.isnan(theirs), 0, np.abs(ours - theirs) / unit)
    worst = float(np.max(np.where(np.isnan(difference), np.inf, difference)))
    if not worst <= allowed:
        raise SystemExit(
            f"{label}: gpuphot and stdpipe disagree, nothing is timed: {name} differs by "
            f"{worst:.2g}; {allowed} is allowed"
        )
    return worst


def check(label: str, ours: Table, theirs: Table, link: float | None = None) -> dict[str, float]:
    """Compare the same sources; end the benchmark if they differ too much.

    Parameters
    ----------
    label : str
    ours, theirs : Table
    link : float, optional
        Pixels up to which sources are linked to groups, if the tables do not tell.

    Returns
    -------
    dict
        Largest relative difference by column, and the number of compared sources.
    """
    rows = comparable(ours, theirs) if link is None else _exact_in_sep(theirs, link)
    ours, theirs = ours[rows], theirs[rows]
    if len(rows) == 0:
        raise SystemExit(f"{label}: there are no sources to compare, nothing is timed")
    differences: dict[str, float] = {}
    for name, scale in _scales(theirs).items():
        difference = np.abs(np.asarray(ours[name]) - np.asarray(theirs[name]))
        with np.errstate(invalid="ignore"):  # a flux of 0 may have an error of 0
            relative = np.where(difference == 0, 0, difference / scale)
        worst = int(np.argmax(np.where(np.isfinite(relative), relative, np.inf)))
        differences[name] = float(relative[worst])
        if not relative[worst] <= ALLOWED:
            raise SystemExit(
                f"{label}: gpuphot and stdpipe disagree, nothing is timed: {name} differs by "
                f"{relative[worst]:.2g} at x={ours['x'][worst]:.3f}, y={ours['y'][worst]:.3f}: "
                f"{ours[name][worst]!r} and {theirs[name][worst]!r}; {ALLOWED} is allowed"
            )
    for name in EXACT:
        if name in theirs.colnames and not np.array_equal(ours[name], theirs[name]):
            raise SystemExit(f"{label}: {name} differs from stdpipe's, nothing is timed")
    return {**differences, "sources": len(rows)}


def comparable(ours: Table, theirs: Table) -> NDArray[np.intp]:
    """Rows of which both must make the same: all, unless sources are fitted in groups.

    If the reference measured a corner of the image only, groups at its edge lack members there;
    a group of as many members in the corner as in the image consists of the same ones. Groups
    with members that nearly coincide are left out.
    """
    if "group_id" not in theirs.colnames:
        return np.arange(len(theirs))
    complete = np.asarray(ours["group_size"]) == np.asarray(theirs["group_size"])
    near = cKDTree(np.column_stack([theirs["x"], theirs["y"]])).query_pairs(
        LEAST_SEPARATION, output_type="ndarray"
    )
    coincident = np.isin(theirs["group_id"], np.asarray(theirs["group_id"])[near])
    return np.flatnonzero(complete & ~coincident)


def _exact_in_sep(theirs: Table, link: float) -> NDArray[np.intp]:
    """Rows of groups that SEP solves exactly, without members that nearly coincide."""
    tree = cKDTree(np.column_stack([theirs["x"], theirs["y"]]))
    pairs = tree.query_pairs(link, output_type="ndarray")
    n = len(theirs)
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(n, n))
    _, group = connected_components(graph, directed=False)
    near = tree.query_pairs(LEAST_SEPARATION, output_type="ndarray")
    coincident = np.isin(group, group[near])
    return np.flatnonzero((np.bincount(group)[group] <= MAX_EXACT_GROUP) & ~coincident)


def _scales(theirs: Table) -> dict[str, Any]:
    """What differences are relative to, by column."""
    flux, fluxerr = np.asarray(theirs["flux"]), np.asarray(theirs["fluxerr"])
    scales: dict[str, Any] = {"flux": np.maximum(np.abs(flux), fluxerr), "fluxerr": fluxerr}
    for name in ("chi2_optimal", "norm_optimal"):
        if name in theirs.colnames:
            scales[name] = np.abs(np.asarray(theirs[name]))
    if "x_orig" in theirs.colnames:
        scales |= {"x": 1.0, "y": 1.0}
    if "x_psf" in theirs.colnames:
        scales |= {"x_psf": 1.0, "y_psf": 1.0, "chi2_psf": 1.0}
    return scales


def typical_difference(ours: Table, flux: NDArray) -> float:
    """Median difference of fluxes in units of their error: is it the same measurement at all?"""
    difference = np.abs(flux - ours["flux"])
    with np.errstate(invalid="ignore"):  # a flux of 0 may have an error of 0
        return float(np.nanmedian(difference / ours["fluxerr"]))
