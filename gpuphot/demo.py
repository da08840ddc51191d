"""``gpuphot demo``: the crowded globular cluster M13, with and without the light of neighbours.

Every installation has the image, for it comes with astropy. Stars of known flux are added to it
and measured like all others: they show what apertures get wrong in a crowd, and what is gained by
subtracting the neighbours from them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import astropy
import numpy as np
from astropy.table import Table, vstack
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .chain import ImagePhotometry, measure_image
from .images import FitsImage, read_image
from .plot import plot_field
from .rendering import place_psf_stamps
from .sky import add_sky_positions
from .tables import all_or_nothing, write_table

_IMAGE = "io/fits/hdu/compressed/tests/data/m13.fits"

# What suits the image: background cells that follow the cluster's profile, and a crowd that takes
# several passes to find.
_OPTIONS: dict[str, Any] = {"method": "deblended", "bg_size": 24, "passes": 3}

_CENTER = 150.0
_RADIUS = 140.0
_FLUX = 5000.0
"""Of the artificial stars: that of a star of medium brightness."""
_N_STARS = 50
"""So few at a time that they do not crowd the cluster themselves."""
_N_TIMES = 2
_RINGS = np.array([0, 25, 50, 80, _RADIUS])
"""Distances from the centre in pixels, between which medians are taken."""

_PLAIN, _DEBLENDED = "#d55e00", "#0072b2"


def run_demo(directory: Path) -> None:
    """Measure the stars of M13, write a table and pictures, and print a summary.

    Parameters
    ----------
    directory : Path
        It exists; the demo's own files in it are replaced.
    """
    start = time.perf_counter()
    image = _load_image()
    cluster = measure_image(image.data, **_OPTIONS)
    artificial = _measure_artificial_stars(image.data, cluster)
    assert image.wcs is not None
    add_sky_positions(cluster.table, image.wcs)
    with all_or_nothing(directory) as scratch:
        write_table(cluster.table, scratch / "m13.ecsv")
        drawn = _draw(image.data, cluster, artificial, scratch)
    print(f"M13, a globular cluster, measured in {time.perf_counter() - start:.1f} s.")
    _print_summary(cluster, artificial)
    _print_files(directory, drawn)


def _load_image() -> FitsImage:
    path = Path(astropy.__file__).parent / _IMAGE
    if not path.is_file():  # Some distributions leave out what astropy needs for its tests only
        raise FileNotFoundError(f"astropy is installed here without the demo's image, {path}")
    return read_image(path)


def _measure_artificial_stars(image: NDArray, cluster: ImagePhotometry) -> Table:
    """Measured fluxes of added stars in units of their own, and their distances from the centre."""
    rng = np.random.default_rng(13)
    return vstack([_measure_once(image, cluster, rng) for _ in range(_N_TIMES)])


def _measure_once(image: NDArray, cluster: ImagePhotometry, rng: np.random.Generator) -> Table:
    distance = rng.uniform(0, _RADIUS, _N_STARS)
    angle = rng.uniform(0, 2 * np.pi, _N_STARS)
    x, y = _CENTER + distance * np.cos(angle), _CENTER + distance * np.sin(angle)
    crowded = place_psf_stamps(image, cluster.psf, x, y, _FLUX)
    found = measure_image(crowded, psf=cluster.psf, fwhm=cluster.fwhm, **_OPTIONS)
    positions = np.stack([found.table["x_psf"], found.table["y_psf"]], axis=1)
    offset, row = map(np.asarray, cKDTree(positions).query(np.stack([x, y], axis=1)))
    is_found = offset < 1
    stars = found.table[row[is_found]]
    total = _FLUX * stars["self_frac"]  # That part of the star that lies in the aperture
    return Table(
        {
            "distance": distance[is_found],
            "plain": stars["flux_ap_raw"] / total,
            "deblended": stars["flux"] / total,
        }
    )


def _ring_medians(stars: Table, name: str) -> NDArray[np.float64]:
    ring = np.digitize(stars["distance"], _RINGS) - 1
    return np.array([np.nanmedian(stars[name][ring == k]) for k in range(len(_RINGS) - 1)])


# The summary


def _print_summary(cluster: ImagePhotometry, artificial: Table) -> None:
    for note in cluster.notes:
        print(f"  {note}")
    print(
        f"\nArtificial stars of known flux, {len(artificial)} of {_N_STARS * _N_TIMES} detected: "
        "median of measured / true flux,\nby distance from the centre of the cluster:\n\n"
        f"  {'pixels':<12}{'plain apertures':>16}{'without neighbours':>20}"
    )
    medians = (_ring_medians(artificial, name) for name in ("plain", "deblended"))
    for inner, outer, plain, deblended in zip(_RINGS, _RINGS[1:], *medians, strict=False):
        print(f"  {f'{inner:g} to {outer:g}':<12}{plain:>16.2f}{deblended:>20.2f}")


def _print_files(directory: Path, drawn: list[str]) -> None:
    print(f"\nFiles:\n  {directory / 'm13.ecsv'}: the table, one row per star")
    for name in drawn:
        print(f"  {directory / name}")
    if not drawn:
        print('  No pictures without matplotlib: pip install "gpuphot-survey[plot]"')
    print(
        "\nNext:\n"
        "  gpuphot measure YOUR.fits --pictures    measures images of yours\n"
        "  gpuphot measure --help                  lists what can be set"
    )


# The pictures


def _draw(
    image: NDArray, cluster: ImagePhotometry, artificial: Table, directory: Path
) -> list[str]:
    """Write the pictures if matplotlib is installed; returns their names."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    field, gain = (Figure(figsize=size, layout="constrained") for size in ((9, 9.4), (12, 5.6)))
    plot_field(image, cluster.table, cluster.r_aper, axes=field.add_subplot())
    core, fluxes = gain.subplots(1, 2)
    _plot_core(core, image, cluster)
    _plot_fluxes(fluxes, artificial)
    figures = {"m13-field.png": field, "m13-gain.png": gain}
    for name, figure in figures.items():
        figure.savefig(directory / name, dpi=110)
    return list(figures)


def _plot_core(axes: Any, image: NDArray, cluster: ImagePhotometry) -> None:
    plot_field(image, cluster.table, cluster.r_aper, axes=axes)
    limits = (_CENTER - 50, _CENTER + 50)
    axes.set(xlim=limits, ylim=limits, title="The core of M13, and the apertures")
    axes.get_legend().remove()


def _plot_fluxes(axes: Any, artificial: Table) -> None:
    names = {"plain": ("plain apertures", _PLAIN), "deblended": ("deblended", _DEBLENDED)}
    centers = (_RINGS[1:] + _RINGS[:-1]) / 2
    for name, (label, color) in names.items():
        axes.plot(artificial["distance"], artificial[name], ".", color=color, alpha=0.5)
        medians = _ring_medians(artificial, name)
        axes.plot(centers, medians, "o-", color=color, label=f"{label} (line: medians)")
    axes.axhline(1, color="0.5", linewidth=0.8, zorder=0)
    axes.set(
        title="Artificial stars: measured / true flux", ylim=(0.5, 3),
        xlabel="Distance from the centre of the cluster [pixels]",
    )  # fmt: skip
    axes.legend(frameon=False)
