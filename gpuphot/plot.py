"""Pictures of images and measurements, drawn with matplotlib.

Importing this module does not import matplotlib; the first picture does. Pyplot is never used: a
figure belongs to whoever asked for it, so that plots can be made in threads and without a display.
Every function draws into the axes that it is given, or into a figure of its own, and returns the
axes; ``axes.figure.savefig("name.png")`` writes a file.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.table import Table
from astropy.units import Quantity, pix
from numpy.typing import ArrayLike, NDArray

from .backend import resolve_backend
from .flags import Flag
from .measure import inputs
from .measure.containers import ImageLike, TableLike
from .measure.objects import measure_objects
from .models.psf import PSFModel
from .numpy_backend import primitives
from .rendering import render_psf_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.image import AxesImage

Stars = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""x, y and flux."""

Window = tuple[slice, slice]
"""Rows and columns, with a start and a stop."""

# Colours that the colour-blind can tell apart, after Okabe & Ito and Tol.
_BLUE, _VERMILION = "#0072b2", "#d55e00"
_FLAG_COLORS = {
    Flag.MASKED: _VERMILION,
    Flag.INVALID: "#cc79a7",
    Flag.NO_FIT: "#e69f00",
    Flag.POOR_FIT: "#009e73",
    Flag.LARGE_SHIFT: "#56b4e9",
}
_SEP_BITS, _SEP_COLOR = 0xFF, "#882255"
_OTHER_COLOR = "#999933"
_BAD_PIXEL_COLOR = "#ffe1a8"

_MAX_SHOWN = 2000
"""Pixels along the side of an image that are drawn; a figure has no room for more."""

_N_RADII = 30
"""Apertures of a growth curve."""


def require_matplotlib() -> None:
    """Raise ImportError if matplotlib is not installed, and say how to get it."""
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "gpuphot-survey[plot]"') from error


def plot_field(
    image: ImageLike,
    table: TableLike,
    r: float | None = None,
    *,
    mask: ImageLike | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Draw an image and circles around the sources of a table, coloured by their flags.

    Parameters
    ----------
    image : (H, W) array
        Of any real dtype. Images of more than 2000 pixels along a side are averaged in blocks.
    table : Table of N rows
        With the columns ``x`` and ``y``, 0-based positions in pixels, and perhaps ``flags``. Rows
        with a position that is masked or not finite are neither drawn nor counted.
    r : float, optional
        Radius of the circles in pixels. By default they have the same size on any image.
    mask : (H, W) array, optional
        Non-zero where a pixel is masked. Such pixels, those masked in a `numpy.ma.MaskedArray`
        and those that are not finite have a colour of their own.
    axes : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    Axes
        Sources with several flags are drawn, and counted in the legend, once for each of them.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here.
    ImportError
        If matplotlib is not installed.
    """
    pixels = _read_image(image, mask)
    table = inputs.read_catalogue("table", table)
    x, y = (inputs.read_column("table", table, name, in_pixels=True) for name in ("x", "y"))
    drawn = np.isfinite(x) & np.isfinite(y)
    x, y, flags = x[drawn], y[drawn], inputs.read_flags(table)[drawn]
    radius = None if r is None else inputs.positive_number("r", r)
    height, width = pixels.shape
    (axes,) = _axes_or_new(axes, 1, (9, 1 + 8.4 * min(max(height / width, 0.3), 1.5)))
    shown: Any = _show(axes, pixels.image, pixels.mask)
    for name, color, rows in _groups(flags):
        _draw_circles(axes, x[rows], y[rows], radius, color)
        axes.plot([], [], "o", markerfacecolor="none", color=color, label=_label(name, rows))
    if np.ma.getmaskarray(shown.get_array()).any():
        axes.plot([], [], "s", color=_BAD_PIXEL_COLOR, label="masked pixels")
    if axes.get_legend_handles_labels()[0]:
        # Above the title, where it covers no stars
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1), borderaxespad=2, ncols=4, frameon=False
        )
    circles = "" if radius is None else f", apertures of radius {radius:.1f} pixels"
    axes.set_title(f"{len(x):,} sources{circles}")
    return axes


def plot_magnitude_errors(table: TableLike, *, axes: Axes | None = None) -> Axes:
    """Draw magnitude errors against magnitudes, coloured by flags.

    Parameters
    ----------
    table : Table of N rows
        With the columns ``mag`` and ``magerr``, and perhaps ``flags``. Rows without a magnitude
        or its error are neither drawn nor counted.
    axes : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    Axes
        With lines at signal-to-noise ratios of 10, 100 and 1000. Sources with several flags are
        drawn, and counted in the legend, once for each of them.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here.
    ImportError
        If matplotlib is not installed.
    """
    table = inputs.read_catalogue("table", table, ("mag", "magerr"))
    mag, magerr = (inputs.read_column("table", table, name) for name in ("mag", "magerr"))
    drawn = np.isfinite(mag) & np.isfinite(magerr) & (magerr > 0)
    mag, magerr, flags = mag[drawn], magerr[drawn], inputs.read_flags(table)[drawn]
    (axes,) = _axes_or_new(axes, 1, (8, 5.5))
    many = len(mag) > 2000
    for name, color, rows in _groups(flags):
        axes.plot(
            mag[rows], magerr[rows], "o", color=color, label=_label(name, rows),
            markersize=2 if many else 4, alpha=0.4 if many else 0.7, markeredgewidth=0,
            rasterized=many,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set(xlabel="Instrumental magnitude [mag]", ylabel="Magnitude error [mag]")
    axes.set_title("Magnitude errors")
    for signal_to_noise in (10, 100, 1000):
        height = 2.5 / math.log(10) / signal_to_noise
        axes.axhline(height, color="0.7", linewidth=0.8, zorder=0)
        axes.annotate(
            f"S/N {signal_to_noise}", (0.01, height), xycoords=("axes fraction", "data"),
            va="bottom", color="0.4", fontsize="small",
        )  # fmt: skip
    if len(mag):
        # Where there is nothing: no faint star has a small error
        axes.legend(loc="lower right", markerscale=3 if many else 1)
    return axes


def plot_growth_curve(
    image: ImageLike,
    x: float,
    y: float,
    fwhm: float,
    *,
    mask: ImageLike | None = None,
    bg: ImageLike | None = None,
    err: ImageLike | None = None,
    gain: float | None = None,
    bg_size: int = 64,
    max_radius: float | None = None,
    axes: Axes | None = None,
    backend: str | None = None,
) -> Axes:
    """Draw the flux of a star in growing apertures, and its signal-to-noise ratio.

    A curve that goes on rising or falls where the star has ended speaks of a wrong background, or
    of neighbours; the S/N is highest at the radius that suits faint stars.

    Parameters
    ----------
    image : (H, W) array
        Of any real dtype.
    x, y : float
        Position of the star in 0-based pixel centres.
    fwhm : float
        Of the star, in pixels.
    mask, bg, err, gain, bg_size
        As in `measure_objects`, which measures here: background and noise that are not given are
        estimated from the whole image. Give ``bg=0`` with an image whose background is subtracted.
    max_radius : float, optional
        The largest radius, in pixels; by default four times `fwhm`.
    axes : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.
    backend : {None, "numpy", "cupy"}
        See `gpuphot.resolve_backend`.

    Returns
    -------
    Axes
        Of the fluxes; the signal-to-noise ratios have an axis of their own at the right.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here.
    BackendError
        If the backend asked for cannot compute.
    ImportError
        If matplotlib is not installed.
    """
    scale = inputs.positive_number("fwhm", fwhm)
    largest = 4 * scale if max_radius is None else inputs.radius("max_radius", max_radius, 1)
    radii = np.linspace(largest / _N_RADII, largest, _N_RADII)
    (axes,) = _axes_or_new(axes, 1, (8, 5.5))
    position = _read_point("x and y", (x, y))
    unit = _name(inputs.unit_of("image", image))
    options = {"mask": mask, "bg": bg, "err": err, "gain": gain, "bg_size": bg_size}
    flux, fluxerr = _measure_radii(image, position, radii, options, backend).T

    axes.errorbar(radii, flux, fluxerr, fmt="o-", color=_BLUE, markersize=4, linewidth=1)
    axes.set_title(f"Growth curve of the star at x = {position[0]:.1f}, y = {position[1]:.1f}")
    axes.set(xlabel="Radius of the aperture [pixels]", xlim=(0, largest * 1.03))
    axes.set_ylim(bottom=np.nanmin(flux, initial=0))
    axes.set_ylabel(f"Flux [{unit}]", color=_BLUE)
    in_fwhm = axes.secondary_xaxis(
        "top", functions=(partial(np.multiply, 1 / scale), partial(np.multiply, scale))
    )
    in_fwhm.set_xlabel("Radius of the aperture [FWHM]")
    _draw_signal_to_noise(axes, radii, flux, fluxerr)
    return axes


def plot_residual(
    image: ImageLike,
    psf: Any,
    x: ArrayLike,
    y: ArrayLike,
    flux: ArrayLike,
    *,
    target: int | None = None,
    center: tuple[float, float] | None = None,
    size: int | None = None,
    axes: Sequence[Axes] | None = None,
    backend: str | None = None,
) -> NDArray[np.object_]:
    """Draw an image beside what is left of it without its stars, in the same stretch.

    Parameters
    ----------
    image : (H, W) array
        Of any real dtype. Its background may be subtracted or not: it stays what it is.
    psf, x, y, flux
        The stars, as in `gpuphot.render_psf_image`, which makes the model.
    target : int, optional
        Row of one star. The image without all others is then drawn, too: what is left to an
        aperture after deblending.
    center : (float, float), optional
        Position x, y in the middle of the part that is drawn. By default that of the target, or
        else the middle of the image.
    size : int, optional
        Length of its sides in pixels. By default twice the stamp of `psf` around a target or a
        centre, else the whole image is drawn.
    axes : sequence of matplotlib.axes.Axes, optional
        Where to draw: two of them, or three with a target; by default in a new figure.
    backend : {None, "numpy", "cupy"}
        See `gpuphot.resolve_backend`.

    Returns
    -------
    array of Axes
        The image, with a target the image less its neighbours, and the image less all stars.

    Raises
    ------
    TypeError, ValueError, OSError
        If an argument is not what is described here.
    BackendError
        If the backend asked for cannot compute.
    ImportError
        If matplotlib is not installed.
    """
    pixels = _read_image(image, None)
    model = inputs.read_stamps(psf)
    stars = _read_stars(x, y, flux, pixels.unit)
    row = None if target is None else _read_row(target, len(stars[0]))
    window = _read_window(pixels.shape, center, size, model, stars, row)

    part = pixels.image[window]
    panels = {"Image": part}
    if row is not None:
        panels["Less the neighbours"] = part - _render(model, _without(stars, row), window, backend)
    panels["Less all stars"] = part - _render(model, stars, window, backend)

    drawn = _axes_or_new(axes, len(panels), (4 * len(panels) + 1.2, 4.4))
    mask = None if pixels.mask is None else pixels.mask[window]
    corner = window[1].start, window[0].start
    shown: Any = None
    for each, (title, data) in zip(drawn, panels.items(), strict=True):
        shown = _show(each, data, mask, None if shown is None else shown.norm, corner)
        each.set_title(title)
        if axes is None:
            each.label_outer()
    _mark_stars(drawn[0], stars, row)
    ticks = shown.norm.inverse(np.linspace(0, 1, 6))
    drawn[0].figure.colorbar(
        shown, ax=list(drawn), ticks=ticks, format="%.4g", label=_name(pixels.unit)
    )
    return drawn


# Reading what the caller hands over


def _to_host(values: Any) -> Any:
    """An array on a GPU comes to the host; all else is left as it is."""
    if not hasattr(values, "__cuda_array_interface__"):
        return values
    ops = resolve_backend(None, values).primitives
    return ops.to_host(ops.to_device(values))


def _read_image(image: ImageLike, mask: ImageLike | None) -> inputs.Pixels:
    return inputs.read_image(_to_host(image), _to_host(mask), primitives)


def _read_point(name: str, point: Any) -> tuple[float, float]:
    """A finite position x, y in pixels."""
    if not isinstance(point, (tuple, list, np.ndarray)) or len(point) != 2:
        raise ValueError(f"{name} must be a position (x, y), got {point!r}")
    numbers = (each.to_value(pix) if isinstance(each, Quantity) else each for each in point)
    x, y = (inputs.real_number(name, number) for number in numbers)
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError(f"{name} must be finite, got {point!r}")
    return x, y


def _read_stars(x: Any, y: Any, flux: Any, unit: Any) -> Stars:
    """Positions of stars, and their fluxes in the unit of the image."""
    x, y = inputs.read_points(_to_host(x), _to_host(y), primitives)
    return x, y, inputs.read_fluxes(_to_host(flux), len(x), unit, primitives)


def _read_row(target: Any, n: int) -> int:
    row = inputs.integer("target", target, 0)
    if row >= n:
        raise ValueError(f"target must be a row of the {n} stars, got {row}")
    return row


def _read_window(
    shape: tuple[int, int], center: Any, size: Any, psf: PSFModel, stars: Stars, row: int | None
) -> Window:
    """The part of the image that is to be drawn; see `plot_residual`."""
    whole = center is None and row is None
    if size is None:
        size = max(shape) if whole else 2 * max(psf.stamp_shape)
    size = inputs.integer("size", size, 1)
    if center is not None:
        return _window("center", shape, center, size)
    if row is not None:
        return _window("the position of target", shape, (stars[0][row], stars[1][row]), size)
    return _window("center", shape, ((shape[1] - 1) / 2, (shape[0] - 1) / 2), size)


# Parts of an image, and of its model


def _window(name: str, shape: tuple[int, int], center: Any, size: int) -> Window:
    """The part of an image within a square around a position."""
    x, y = _read_point(name, center)
    slices = []
    for middle, length in ((y, shape[0]), (x, shape[1])):
        start = math.floor(middle - size / 2 + 1)
        slices.append(slice(max(start, 0), min(start + size, length)))
        if slices[-1].start >= slices[-1].stop:
            raise ValueError(
                f"{name} must lie on the image of {shape[0]} x {shape[1]} pixels, got "
                f"x = {x:g}, y = {y:g}"
            )
    return slices[0], slices[1]


def _without(stars: Stars, row: int) -> Stars:
    x, y, flux = (np.delete(values, row) for values in stars)
    return x, y, flux


def _render(
    psf: PSFModel, stars: Stars, window: Window, backend: str | None
) -> NDArray[np.float64]:
    """The part of the model image within a window, without the rest."""
    rows, columns = window
    x, y, flux = stars
    # A shift by even numbers leaves it to the same pixels to be the nearest to half positions.
    top, left = rows.start // 2 * 2, columns.start // 2 * 2
    moved = dataclasses.replace(
        psf,
        x0=psf.x0 - left,
        y0=psf.y0 - top,
        grid_x=None if psf.grid_x is None else psf.grid_x - left,
        grid_y=None if psf.grid_y is None else psf.grid_y - top,
    )
    shape = rows.stop - top, columns.stop - left
    light = render_psf_image(moved, x - left, y - top, flux, shape, backend=backend)
    return light[rows.start - top :, columns.start - left :]


def _block_means(image: NDArray, mask: NDArray[np.bool_] | None, side: int) -> np.ma.MaskedArray:
    """Means of the good pixels in square blocks; masked where there are none."""
    starts = np.arange(0, image.shape[1], side)
    total = np.empty((-(-image.shape[0] // side), len(starts)))
    count = np.empty(total.shape, np.int64)
    for i in range(len(total)):
        rows = slice(i * side, (i + 1) * side)
        good = np.isfinite(image[rows])
        if mask is not None:
            good &= ~mask[rows]
        sums = np.where(good, image[rows], 0.0).sum(axis=0, dtype=np.float64)
        total[i] = np.add.reduceat(sums, starts)
        count[i] = np.add.reduceat(good.sum(axis=0), starts)
    return np.ma.masked_array(total / np.maximum(count, 1), count == 0)


# Measuring


def _measure_radii(
    image: Any,
    position: tuple[float, float],
    radii: NDArray[np.float64],
    options: dict[str, Any],
    backend: str | None,
) -> NDArray[np.float64]:
    """Flux of one star and its error in the apertures of all radii; (N, 2)."""
    star = Table({"x": [position[0]], "y": [position[1]]})
    mask, bg, err = options["mask"], options["bg"], options["err"]
    if bg is None or err is None:
        _, level, noise = measure_objects(star, image, **options, get_bg=True, backend=backend)
        bg, err = level if bg is None else bg, noise
    # The apertures need no more than the surroundings of the star.
    image, mask, bg, err = (_to_host(each) for each in (image, mask, bg, err))
    pixels = inputs.read_pixels(image, mask, bg, err, primitives)
    window = _window("x and y", pixels.shape, position, 2 * math.ceil(radii[-1]) + 3)
    planes = {name: getattr(pixels, name) for name in ("image", "mask", "bg", "err")}
    part: Any = {name: None if each is None else each[window] for name, each in planes.items()}
    star["x"] -= window[1].start
    star["y"] -= window[0].start
    measured = []
    for r in radii:
        result: Any = measure_objects(star, aper=r, backend=backend, **part)
        measured.append((result["flux"][0], result["fluxerr"][0]))
    return np.array(measured)


# Flags


def _groups(flags: NDArray[np.int64]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Name, colour and rows of the sources without flags, and of those with each that occurs."""
    known = _SEP_BITS | sum(map(int, Flag))
    groups = [
        ("no flag", _BLUE, flags == 0),
        ("flagged by SEP", _SEP_COLOR, (flags & _SEP_BITS) != 0),
        *((str(f.name), color, (flags & f) != 0) for f, color in _FLAG_COLORS.items()),
        ("other flag", _OTHER_COLOR, (flags & ~known) != 0),
    ]
    return (group for group in groups if group[2].any())


# Drawing


def _axes_or_new(axes: Any, n: int, size: tuple[float, float]) -> NDArray[np.object_]:
    """The n axes that the caller gave, or those of a new figure of a size in inches."""
    require_matplotlib()
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    if axes is None:
        figure = Figure(figsize=size, dpi=150, layout="compressed")
        return figure.subplots(1, n, sharex=True, sharey=True, squeeze=False)[0]
    given = np.array(axes, dtype=object).ravel()
    if len(given) != n or not all(isinstance(each, Axes) for each in given):
        expected = "an Axes" if n == 1 else f"{n} Axes"
        raise TypeError(f"axes must be {expected} of matplotlib, got {axes!r}")
    return given


def _show(
    axes: Axes,
    image: NDArray,
    mask: NDArray[np.bool_] | None,
    norm: Normalize | None = None,
    origin: tuple[int, int] = (0, 0),
) -> AxesImage:
    """Draw an image whose first pixel is at `origin`, by default in an asinh stretch of its own."""
    import matplotlib

    height, width = image.shape
    side = -(-max(height, width) // _MAX_SHOWN)
    means = _block_means(image, mask, side)
    left, bottom = origin[0] - 0.5, origin[1] - 0.5
    rows, columns = means.shape
    shown = axes.imshow(
        means, norm=norm or _asinh_norm(means), origin="lower",
        cmap=matplotlib.colormaps["gray_r"].with_extremes(bad=_BAD_PIXEL_COLOR),
        extent=(left, left + columns * side, bottom, bottom + rows * side),
    )  # fmt: skip
    axes.set(xlim=(left, left + width), ylim=(bottom, bottom + height))
    axes.set(xlabel="x [pixels]", ylabel="y [pixels]")
    return shown


def _asinh_norm(pixels: np.ma.MaskedArray) -> Normalize:
    """From the sky, where stars begin, up to bright stars."""
    from astropy.visualization import AsinhStretch, ImageNormalize, PercentileInterval

    values = pixels.compressed()
    low, high = PercentileInterval(99.5).get_limits(values) if len(values) else (0.0, 1.0)
    return ImageNormalize(vmin=low, vmax=high, stretch=AsinhStretch(0.02))


def _draw_circles(axes: Axes, x: NDArray, y: NDArray, radius: float | None, color: str) -> None:
    from matplotlib.collections import EllipseCollection

    sizes = np.full(len(x), 8.0 if radius is None else 2 * radius)
    axes.add_collection(
        EllipseCollection(
            sizes, sizes, np.zeros(len(x)), units="points" if radius is None else "xy",
            offsets=np.column_stack([x, y]), offset_transform=axes.transData,
            facecolor="none", edgecolor=color, linewidth=1 if len(x) < 5000 else 0.5,
        ),
        autolim=False,
    )  # fmt: skip


def _draw_signal_to_noise(axes: Axes, radii: NDArray, flux: NDArray, fluxerr: NDArray) -> None:
    """Signal-to-noise ratios on an axis at the right, and where they are highest."""
    ratio = np.divide(flux, fluxerr, out=np.full(len(flux), np.nan), where=fluxerr > 0)
    right = axes.twinx()
    right.plot(radii, ratio, "s--", color=_VERMILION, markersize=3, linewidth=1)
    right.set_ylim(bottom=np.nanmin(ratio, initial=0))
    right.set_ylabel("Signal-to-noise ratio", color=_VERMILION)
    if np.isfinite(ratio).any():
        best = np.nanargmax(ratio)
        right.axvline(radii[best], color=_VERMILION, linewidth=0.8, linestyle=":")
        right.annotate(
            f" highest S/N: {ratio[best]:.1f} at {radii[best]:.1f} pixels", (radii[best], 0.02),
            xycoords=("data", "axes fraction"), color=_VERMILION, fontsize="small",
        )  # fmt: skip


def _mark_stars(axes: Axes, stars: Stars, target: int | None) -> None:
    """Small crosses at the stars, and a larger one at the target; the view stays what it is."""
    x, y, _ = stars
    axes.plot(x, y, "+", color=_BLUE, markersize=5, scalex=False, scaley=False)
    if target is not None:
        axes.plot(
            x[target], y[target], "+", color=_VERMILION, markersize=12, scalex=False, scaley=False
        )


def _name(unit: Any) -> str:
    return "counts" if unit is None else str(unit)


def _label(name: str, rows: NDArray[np.bool_]) -> str:
    return f"{name} ({np.count_nonzero(rows)})"
