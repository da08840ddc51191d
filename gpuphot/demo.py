"""``gpuphot demo``: the globular cluster M13 from astropy's own package data, measured and drawn.

Every installation has the image, so that nothing is downloaded. Drawing needs matplotlib.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import astropy
import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.visualization import AsinhStretch, ImageNormalize, PercentileInterval
from astropy.wcs import WCS
from numpy.typing import NDArray

from gpuphot import Flag, files, measure_objects
from gpuphot.detect import detect_objects
from gpuphot.flags import MEANING

_IMAGE = "io/fits/hdu/compressed/tests/data/m13.fits"

# What suits the image: the FWHM of its lone stars, and cells that follow the cluster's profile.
_FWHM = 3.3
_APER = 1.0
_R_APER = _APER * _FWHM
_BG_SIZE = 16
# The file states no saturation level; one is made up, or else there would be no flags to show.
_SATURATION = 2500

_TABLE, _FIELD_PLOT, _ERROR_PLOT = "m13.ecsv", "m13-field.png", "m13-errors.png"


@dataclass(frozen=True)
class _Group:
    """Stars that are counted and drawn together."""

    name: str
    meaning: str
    color: str
    stars: Table


def run_demo(directory: Path) -> None:
    """Detect and measure the stars of M13, write a table and plots, and print a summary.

    Parameters
    ----------
    directory : Path
        It exists; the demo's own files in it are replaced.
    """
    image, header = _load_image()
    found = detect_objects(image, bg_size=_BG_SIZE)
    start = time.perf_counter()
    stars: Any = measure_objects(
        found, image, aper=_APER, bkgann=(3, 5), fwhm=_FWHM, mask=image > _SATURATION,
        bg_size=_BG_SIZE, centroid_iter=3,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    _add_sky_positions(stars, WCS(header))

    groups = _group_by_flag(stars)
    files.write_table(stars, directory / _TABLE)
    drawn = _draw(groups, image, directory)
    _print_summary(stars, groups, seconds)
    _print_files(directory, drawn)
    _print_next_steps()


def _load_image() -> tuple[NDArray, fits.Header]:
    path = Path(astropy.__file__).parent / _IMAGE
    if not path.is_file():  # Some distributions leave out what astropy needs for its tests only
        raise FileNotFoundError(f"astropy is installed here without the demo's image, {path}")
    return fits.getdata(path, header=True)


def _add_sky_positions(stars: Table, wcs: WCS) -> None:
    stars["ra"], stars["dec"] = wcs.wcs_pix2world(stars["x"], stars["y"], 0)
    stars["ra"].unit = stars["dec"].unit = "deg"


def _group_by_flag(stars: Table) -> list[_Group]:
    """Stars without flags, and those with each of them; the colours suit the colour-blind."""
    flags = stars["flags"]
    colors = {Flag.MASKED: "#d55e00", Flag.INVALID: "#cc79a7"}
    return [
        _Group("no flag", "nothing to report", "#0072b2", stars[flags == 0]),
        *(
            _Group(str(flag.name), MEANING[flag], color, stars[(flags & flag) != 0])
            for flag, color in colors.items()
        ),
    ]


# The summary


def _print_summary(stars: Table, groups: list[_Group], seconds: float) -> None:
    made_by = json.loads(stars.meta["gpuphot"])
    signal_to_noise = np.nanmedian(stars["flux"] / stars["fluxerr"])
    print(
        f"M13, a globular cluster: {len(stars)} stars detected; measured in {seconds:.2f} s by "
        f"the {made_by['backend']} backend on {made_by['device']}.\n"
        f"The apertures have a radius of {_R_APER:.1f} pixels, the FWHM of the stars. The median "
        f"S/N is {signal_to_noise:.0f};\nthe detector's gain is unknown, so the noise is that of "
        "the background alone.\n\n"
        f"Flags (pixels above {_SATURATION} counts were masked, as one masks saturated ones):"
    )
    for group in groups:
        print(f"  {len(group.stars):4d}  {group.name:<8} {group.meaning}")


def _print_files(directory: Path, drawn: bool) -> None:
    print("\nFiles:")
    print(f"  {directory / _TABLE}: the table, one row per star")
    if drawn:
        print(f"  {directory / _FIELD_PLOT}: the image with the apertures")
        print(f"  {directory / _ERROR_PLOT}: magnitudes and their errors")
    else:
        print('  No plots without matplotlib: pip install "gpuphot-survey[plot]"')


def _print_next_steps() -> None:
    print(
        "\nNext:\n"
        "  gpuphot measure YOUR.fits --detect -o stars.ecsv    measures an image of yours\n"
        "  gpuphot measure --help                              lists what can be set\n"
        "  gpuphot.measure_objects                             does the same in Python"
    )


# The plots


def _draw(groups: list[_Group], image: NDArray, directory: Path) -> bool:
    """Write the plots if matplotlib is installed, and say whether it is."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    groups = [group for group in groups if len(group.stars)]
    field, errors = (Figure(figsize=size, layout="constrained") for size in ((9, 9), (8, 5.5)))
    _plot_field(field.add_subplot(), groups, image)
    _plot_errors(errors.add_subplot(), groups)
    field.savefig(directory / _FIELD_PLOT, dpi=150)
    errors.savefig(directory / _ERROR_PLOT, dpi=150)
    return True


def _plot_field(axes: Any, groups: list[_Group], image: NDArray) -> None:
    from matplotlib.collections import EllipseCollection

    norm = ImageNormalize(image, interval=PercentileInterval(99.5), stretch=AsinhStretch(0.02))
    axes.imshow(image, norm=norm, cmap="gray_r", origin="lower")
    for group in groups:
        positions = np.column_stack([group.stars["x"], group.stars["y"]])
        sizes = np.full(len(positions), 2 * _R_APER)
        axes.add_collection(
            EllipseCollection(
                sizes, sizes, np.zeros(len(positions)), units="xy", offsets=positions,
                offset_transform=axes.transData, facecolor="none", edgecolor=group.color,
            )
        )  # fmt: skip
        axes.plot([], [], "o", markerfacecolor="none", color=group.color, label=_label(group))
    axes.set(xlabel="x [pixels]", ylabel="y [pixels]")
    axes.set_title(f"M13 and the apertures of {_R_APER:.1f} pixels", loc="left")
    # Above the axes, where it covers no stars
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(groups), frameon=False)


def _plot_errors(axes: Any, groups: list[_Group]) -> None:
    for group in groups:
        axes.plot(
            group.stars["mag"], group.stars["magerr"], "o", markersize=4, alpha=0.7,
            markeredgewidth=0, color=group.color, label=_label(group),
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set(
        title="M13: magnitude errors, larger where the cluster is crowded",
        xlabel="Instrumental magnitude, -2.5 log10(flux)",
        ylabel="Magnitude error",
    )
    for sn in (10, 100, 1000):
        axes.axhline(2.5 / np.log(10) / sn, color="0.7", linewidth=0.8, zorder=0)
        axes.annotate(
            f"S/N {sn}", (0.99, 2.5 / np.log(10) / sn), xycoords=("axes fraction", "data"),
            ha="right", va="bottom", color="0.4", fontsize="small",
        )  # fmt: skip
    axes.legend(loc="upper left")


def _label(group: _Group) -> str:
    return f"{group.name} ({len(group.stars)})"
