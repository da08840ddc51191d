"""`measure_objects_sep`: photometry of detected objects with the conventions of SEP."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from astropy.table import Table
from numpy.typing import NDArray

from gpuphot.backend import resolve_backend
from gpuphot.flags import Flag
from gpuphot.models.frame import Array, Frame, Measurement, Positions
from gpuphot.models.fwhm import FWHM
from gpuphot.models.sep import FitOptions

from . import inputs, results
from .containers import ImageLike, TableLike
from .inputs import Log, Pixels

SIGMA_PER_FWHM = 1 / 2.355
"""As stdpipe rounds it, for the window of centroids."""

MAX_SHIFT = 1.0
"""Pixels that a fitted position may move before the row is flagged."""


def measure_objects_sep(
    obj: TableLike,
    image: ImageLike,
    aper: float = 3,
    bkgann: tuple[float, float] | None = None,
    fwhm: FWHM | None = None,
    psf: Any = None,
    optimal: bool = False,
    group_sources: bool = True,
    group_factor: float = 2.0,
    group_radius_factor: float = 1.0,
    group_halo_factor: float | None = 1.2,
    maxiter: int = 20,
    fit_positions: bool = True,
    fit_radius: float = 0.0,
    damp_snthresh: float = 0.0,
    mask: ImageLike | None = None,
    bg: ImageLike | None = None,
    err: ImageLike | None = None,
    gain: float | None = None,
    bg_size: int = 64,
    sn: float | None = None,
    centroid_iter: int = 0,
    centroid_psf: Any = None,
    keep_negative: bool = True,
    get_bg: bool = False,
    clip_sigma: float = 3.0,
    clip_iters: int = 5,
    verbose: bool | Callable[[str], Any] = False,
    *,
    backend: str | None = None,
) -> Table | tuple[Table, NDArray, NDArray]:
    """Measure the fluxes of detected objects as SEP does: apertures, optimal sums or PSF fits.

    The background is estimated on SEP's mesh and subtracted unless `bg` is given. Fluxes are sums
    in circular apertures of sub-pixels; with `optimal`, sums weighted with a Gaussian; with `psf`,
    least-squares fits of it to the pixels.

    Parameters
    ----------
    obj : Table of N rows
        Objects to measure, with columns ``x`` and ``y``: 0-based positions in pixels. A QTable,
        a structured array, such as `sep_x.extract` returns, the data of a FITS table or a pandas
        DataFrame will do. Rows whose ``x`` or ``y`` is masked, missing or not finite are not
        measured.
    image : (H, W) array
        Of any real dtype and byte order; rounded to single precision after the background is
        subtracted, as SEP does. Non-finite pixels and those masked in a `numpy.ma.MaskedArray`
        count as masked. A Quantity or an `astropy.nddata.NDData` is used as in `measure_objects`.
    aper : float, default 3
        Radius of the aperture, in pixels or in units of `fwhm` if that is given. In optimal
        extraction, the radius up to which pixels are used. Not used with `psf`.
    bkgann : (float, float), optional
        Inner and outer radius of the local background annulus, in the units of `aper`. The inner
        one may be 0. By default no local background is subtracted. Not used with `psf`.
    fwhm : float or callable, optional
        FWHM of the stars in pixels, the unit of `aper` and `bkgann`, and the width of the
        Gaussian of optimal extraction. A callable ``fwhm(x, y)`` gives each source its own; it
        gets two (n,) arrays, the finite positions of the n sources. Centroids are windowed with
        its summary, ``float(fwhm)`` or else its value at the image centre.
    psf : PSFModel, mapping, path, float or sep_x.PSF, optional
        Model to fit, see `gpuphot.PSFModel`: a dictionary as stdpipe makes it or a ``.psf`` file of
        PSFEx; a number is the FWHM of a Gaussian in pixels, sampled four times a pixel. A
        `sep_x.PSF` works on the NumPy backend only, because it keeps its data to itself. The FWHM
        must be known to the model.
    optimal : bool, default False
        Sum pixels weighted with a Gaussian of `fwhm`. Not together with `psf`.
    group_sources : bool, default True
        In optimal extraction and PSF fits, fit sources near each other at the same time.
    group_factor : float, default 2.0
        PSF fits on the NumPy backend: surroundings that SEP fits along in parts of groups of more
        than 64, in units of twice their fit radius.
    group_radius_factor : float, default 1.0
        Optimal extraction: sources are near each other if the distance is at most this factor
        times the sum of their radii; linked through others they are in one group, too.
    group_halo_factor : float or None, default 1.2
        Surroundings of the tiles in which SEP solves groups of more than 32. Accepted for
        compatibility: here groups of every size are solved exactly, without tiles.
    maxiter : int, default 20
        Steps of a PSF fit, at most.
    fit_positions : bool, default True
        Fit the positions along with the fluxes; if False, only the fluxes.
    fit_radius : float, default 0.0
        Distance in pixels from a source up to which pixels are fitted; 0 for all of the stamp.
    damp_snthresh : float, default 0.0
        Damp the steps of fits of fainter sources: the positions are held as if they were known to
        ``fwhm / 2.3548 / damp_snthresh``. 0 for no damping.
    mask : (H, W) array, optional
        Non-zero where a pixel is masked. Masked pixels are left out everywhere; aperture sums are
        scaled up for the area that is lost.
    bg : (H, W) array or float, optional
        Background to subtract instead of an estimated one. If it has a unit, it is converted to
        that of the image.
    err : (H, W) array or float, optional
        Standard deviation of the pixels, converted like `bg`, or an uncertainty of NDData; that of
        the estimated background by default.
    gain : float, optional
        Electrons per count: the sources' Poisson noise is added to the errors, also to a given
        `err`, which must not have it then. None or 0 adds none.
    bg_size : int, default 64
        Size of the background mesh cells in pixels, at least 2.
    sn : float, optional
        Drop objects with ``magerr >= 1 / sn``, and all without a magnitude. Not applied if it is
        not positive.
    centroid_iter : int, default 0
        Any positive number: move the positions to their windowed centroids before the measurement.
        The number itself is not used, the iteration is SEP's own: until a step is below 1e-4
        pixels, 16 times at most.
    centroid_psf : PSFModel, mapping, path, float or sep_x.PSF, optional
        Window of the centroids; by default `psf`, or else a Gaussian with `fwhm`.
    keep_negative : bool, default True
        If False, drop objects whose flux is not positive.
    get_bg : bool, default False
        Also return the estimated background and the noise map.
    clip_sigma, clip_iters : float and int, default 3.0 and 5
        Optimal extraction with `bkgann`: pixels of the annulus further from its median are
        clipped, in units of 1.4826 median absolute deviations, and how often at most. Apertures
        use the median of the whole annulus.
    verbose : bool or callable, default False
        Print what is done, or hand each message to a function.
    backend : {"numpy", "cupy"}, optional
        See `gpuphot.resolve_backend`.

    Returns
    -------
    Table
        A copy of `obj`, a QTable if that is one, with these columns replaced or appended, float64
        unless noted, fluxes in the unit of the image:

        ``x``, ``y``
            With centroiding only: the new positions.
        ``x_orig``, ``y_orig``
            With centroiding only: the positions of `obj`.
        ``flags`` (int64)
            Bits of `gpuphot.Flag`, added to those that `obj` has.
        ``flux``, ``fluxerr``
            Flux without the backgrounds, and its standard deviation.
        ``x_psf``, ``y_psf``
            With `psf`: fitted positions.
        ``chi2_psf``
            With `psf`: reduced chi-squared; NaN if no positions are fitted.
        ``niter_psf``, ``flags_psf`` (int64)
            With `psf`: steps of the fit, and the bits that SEP raises.
        ``mag``, ``magerr``
            ``-2.5 log10(flux)`` and its standard deviation; NaN if the flux is not positive.

        ``meta["gpuphot"]`` records version, backend, device and the parameters, radii in pixels,
        in JSON.
    background : (H, W) float64 array
        Only if `get_bg`: the estimated background, also if `bg` was given. This and the noise are
        Quantities if the image has a unit.
    noise : (H, W) array
        Only if `get_bg`: the standard deviation of the pixels as it was used; `err` itself if
        that was given.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here. The message names the argument.
    BackendError
        If the backend asked for cannot compute.

    Notes
    -----
    ``Flag.MASKED`` (0x200): in apertures and optimal extraction, a pixel is masked, or the circle
    crosses the border of the image.
    ``Flag.INVALID`` (0x400): the position is masked or not finite; in optimal extraction also: the
    annulus holds no usable pixel.
    ``Flag.NO_FIT`` (0x800): there is no flux in the aperture, or the source coincides with another
    one of its group. Not with `psf`.
    ``Flag.POOR_FIT`` (0x1000): SEP flagged the PSF fit, or it gave no flux.
    ``Flag.LARGE_SHIFT`` (0x2000): the fitted position is more than a pixel from the one given.

    A source of which no pixel can be used has a flux of 0, as in SEP, with ``MASKED`` or
    ``POOR_FIT``.

    PSF fits weigh the pixels with `err`, and with `gain` also by the Poisson noise of the data;
    SEP then adds the Poisson noise of the flux once more to ``fluxerr``, which makes errors of
    bright stars too large by up to a factor of 1.4. For correct errors, put the Poisson noise
    into `err` and leave out `gain`.

    Optimal sums of groups of more than 32 members are the exact solution of their normal
    equations. PSF fits of groups of more than 64 members are SEP's iteration over tiles on the
    NumPy backend, and overlapping blocks on the CuPy backend;
    ``meta["gpuphot"]["large_psf_groups"]`` says which.

    The conventions are those of ``stdpipe.photometry_measure.measure_objects_sep`` 0.4.1 with
    sep_x 1.5.1. The README lists the differences.

    References
    ----------
    Bertin & Arnouts 1996, A&AS 117, 393 (background, apertures, windowed positions); Barbary 2016,
    JOSS 1, 58 (SEP); Naylor 1998, MNRAS 296, 339 (optimal extraction).
    """
    chosen = resolve_backend(backend, image, mask, bg, err)
    ops, log = chosen.primitives, inputs.read_log(verbose)

    table = inputs.read_table(obj)
    optimal, grouped = inputs.flag("optimal", optimal), inputs.flag("group_sources", group_sources)
    inputs.check_extraction(optimal, psf, fwhm)
    model = inputs.read_sep_psf("psf", psf, chosen.name)
    centroid_model = inputs.read_sep_psf("centroid_psf", centroid_psf, chosen.name)
    n_iter = inputs.n_iterations("centroid_iter", centroid_iter)
    clipping = _Clipping(
        inputs.positive_number("clip_sigma", clip_sigma),
        inputs.integer("clip_iters", clip_iters, 0),
    )
    radius_factor = inputs.positive_number("group_radius_factor", group_radius_factor)
    if group_halo_factor is not None:
        inputs.positive_number("group_halo_factor", group_halo_factor)
    options = FitOptions(
        maxiter=inputs.integer("maxiter", maxiter, 1),
        fit_positions=inputs.flag("fit_positions", fit_positions),
        fit_radius=inputs.not_negative("fit_radius", fit_radius),
        damp_snthresh=inputs.not_negative("damp_snthresh", damp_snthresh),
        group_factor=inputs.positive_number("group_factor", group_factor),
    )
    min_sn = inputs.read_signal_to_noise(sn)
    gain = inputs.read_gain(gain)
    bg_size = inputs.integer("bg_size", bg_size, 2)
    keep_negative = inputs.flag("keep_negative", keep_negative)
    get_bg = inputs.flag("get_bg", get_bg)
    with ops.device_of(image, mask, bg, err):
        pixels = inputs.read_pixels(image, mask, bg, err, ops)
        scale = inputs.read_scale(fwhm, pixels.shape)
        r_aper = inputs.radius("aper", aper, scale)
        annulus = inputs.read_annulus(bkgann, scale, may_be_disc=True)
        pos = inputs.read_positions(table, ops)
        if log:
            log(f"Measuring {len(pos)} objects with the {chosen.name} backend on {chosen.device}")
        frame, background, noise = _prepare_frame(pixels, bg_size, get_bg, ops, log)
        measurement = Measurement(ops.xp.where(pos.valid, 0, int(Flag.INVALID)), pixels.unit)
        if n_iter:
            window = model if centroid_model is None else centroid_model
            typical = None if fwhm is None else scale
            pos = _centroid(measurement, frame, pos, window, typical, ops, log)
        if model is not None:
            _fit_psf(measurement, frame, pos, model, gain, options, grouped, ops, log)
        else:
            circles = _circles(pos, aper, bkgann, fwhm, scale, ops)
            if optimal:
                link = radius_factor if grouped else None
                _sum_optimally(measurement, frame, pos, circles, gain, clipping, link, ops, log)
            else:
                _sum_apertures(measurement, frame, pos, circles, gain, ops, log)
        results.add_magnitudes(measurement, ops.xp)
        keep = results.select(measurement, min_sn, keep_negative, ops.xp)
        result = results.to_table(table, measurement, keep, ops)
        maps: tuple[Any, ...] = ()
        if get_bg:
            maps = results.maps(background, noise, err, pixels.unit, ops)

    parameters = {
        "aper": r_aper, "bkgann": annulus, "psf": psf, "optimal": optimal,
        "group_sources": grouped, "group_factor": options.group_factor,
        "group_radius_factor": radius_factor, "maxiter": options.maxiter,
        "fit_positions": options.fit_positions, "fit_radius": options.fit_radius,
        "damp_snthresh": options.damp_snthresh, "mask": mask, "bg": bg,
        "err": inputs.noise_of(image, err), "gain": gain, "bg_size": bg_size, "sn": min_sn,
        "centroid_iter": n_iter, "centroid_psf": centroid_psf, "keep_negative": keep_negative,
        "clip_sigma": clipping.sigma, "clip_iters": clipping.n_iter,
    }  # fmt: skip
    method = {"large_psf_groups": ops.LARGE_PSF_GROUPS} if model is not None and grouped else {}
    result.meta[results.META_KEY] = results.provenance(
        chosen, "measure_objects_sep", parameters, **method
    )
    if log:
        log(f"{len(result)} of {len(pos)} objects are in the result")
    return (result, *maps) if get_bg else result


@dataclass(frozen=True)
class _Clipping:
    sigma: float
    n_iter: int


@dataclass(frozen=True)
class _Circles:
    """Radii of every source in pixels, (N,); NaN where its width is not known.

    Attributes
    ----------
    r : radius of the aperture
    annulus : inner and outer radius of the annulus, or None without
    fwhm : unit of the radii: FWHM of the source, or 1 without FWHM
    """

    r: Array
    annulus: tuple[Array, Array] | None
    fwhm: Array


def _circles(
    pos: Positions, aper: Any, bkgann: Any, fwhm: FWHM | None, scale: float, ops: Any
) -> _Circles:
    """Apertures and annuli, each in units of the source's own width."""
    xp = ops.xp
    if callable(fwhm):
        x, y, valid = ops.to_host(xp.stack([pos.x, pos.y, pos.valid.astype(xp.float64)]))
        unit = ops.to_device(inputs.read_widths(fwhm, x, y, valid != 0))
    else:
        unit = xp.full(len(pos), scale)
    annulus = None
    if bkgann is not None:
        r_in, r_out = (float(r) * unit for r in bkgann)
        annulus = r_in, r_out
    return _Circles(float(aper) * unit, annulus, unit)


def _prepare_frame(
    pixels: Pixels, bg_size: int, get_bg: bool, ops: Any, log: Log | None
) -> tuple[Frame, Array | None, Array]:
    """The image without its background, the estimated background, and the noise."""
    background = rms = None
    if pixels.bg is None or pixels.err is None or get_bg:
        loaded = ops.load_image(pixels.image, pixels.mask)
        background, rms = ops.sep_background(*loaded, bg_size)
        if log:
            log(f"Background estimated on a mesh of {bg_size} pixels")
    level = background if pixels.bg is None else pixels.bg
    noise = rms if pixels.err is None else pixels.err
    return ops.sep_frame(pixels.image, pixels.mask, level, noise), background, noise


def _centroid(
    measurement: Measurement,
    frame: Frame,
    pos: Positions,
    psf: Any,
    fwhm: float | None,
    ops: Any,
    log: Log | None,
) -> Positions:
    """Positions moved to windowed centroids, where these are trustworthy, and recorded."""
    xp = ops.xp
    max_step, max_shift = (0.6, 3.0) if fwhm is None else (0.2 * fwhm, fwhm)
    if log:
        log("Windowed centroids" + ("" if psf is None else ", the window is the PSF"))
    if psf is None:
        sigma = 1.0 if fwhm is None else fwhm * SIGMA_PER_FWHM
        x, y, flag = ops.sep_winpos(frame, pos, sigma, max_step)
    else:
        x, y, flag = ops.sep_psf_winpos(frame, pos, psf, max_step)
    shift = xp.hypot(x - pos.x, y - pos.y)
    accepted = (flag == 0) & (shift < max_shift)
    x, y = xp.where(accepted, x, pos.x), xp.where(accepted, y, pos.y)
    measurement.add("x", x, "Windowed centroid, 0-based pixel coordinate")
    measurement.add("y", y, "Windowed centroid, 0-based pixel coordinate")
    return inputs.make_positions(x, y, pos.valid, xp)


def _fit_psf(
    measurement: Measurement,
    frame: Frame,
    pos: Positions,
    psf: Any,
    gain: float | None,
    options: FitOptions,
    grouped: bool,
    ops: Any,
    log: Log | None,
) -> None:
    """Append the columns of PSF fits."""
    xp = ops.xp
    if log:
        log(f"PSF fits in at most {options.maxiter} steps, {'grouped' if grouped else 'single'}")
    fit = ops.sep_grouped_psf_fit if grouped else ops.sep_psf_fit
    fits = fit(frame, pos, psf, gain, options)
    failed = (fits.flag > 0) | ~xp.isfinite(fits.flux)
    measurement.flags |= xp.where(failed, int(Flag.POOR_FIT), 0)
    if options.fit_positions:
        shift2 = (fits.x - pos.x) ** 2 + (fits.y - pos.y) ** 2
        measurement.flags |= xp.where(shift2 > MAX_SHIFT**2, int(Flag.LARGE_SHIFT), 0)
    measurement.add_flux("flux", fits.flux, "Flux of the PSF that fits best")
    measurement.add_flux("fluxerr", fits.fluxerr, "Standard deviation of flux")
    measurement.add("x_psf", fits.x, "Fitted position, 0-based pixel coordinate")
    measurement.add("y_psf", fits.y, "Fitted position, 0-based pixel coordinate")
    measurement.add("chi2_psf", fits.chi2, "Reduced chi-squared of the fit")
    measurement.add("niter_psf", fits.n_iter, "Steps of the fit", xp.int64)
    measurement.add("flags_psf", fits.flag, "Flags that SEP raises", xp.int64)


def _sum_apertures(
    measurement: Measurement,
    frame: Frame,
    pos: Positions,
    circles: _Circles,
    gain: float | None,
    ops: Any,
    log: Log | None,
) -> None:
    """Append fluxes in apertures, without the median of the annulus on the full disc."""
    if log:
        log("Aperture sums" + ("" if circles.annulus is None else ", local background: medians"))
    sums = ops.sep_aperture_sums(frame, pos, circles.r, gain)
    flux = sums.flux
    if circles.annulus is not None:
        level = ops.sep_annulus_median(frame, pos, *circles.annulus)
        flux = flux - level * (math.pi * circles.r**2)
    _add_sums(measurement, flux, sums.fluxerr, sums.flag, ops.xp)


def _sum_optimally(
    measurement: Measurement,
    frame: Frame,
    pos: Positions,
    circles: _Circles,
    gain: float | None,
    clipping: _Clipping,
    radius_factor: float | None,
    ops: Any,
    log: Log | None,
) -> None:
    """Append fluxes of optimal extraction; each source on its own without a `radius_factor`."""
    xp = ops.xp
    if log:
        log(f"Optimal sums, {'each on its own' if radius_factor is None else 'grouped'}")
    means = None
    if circles.annulus is not None:
        means = ops.sep_annulus_means(
            frame, pos, *circles.annulus, clipping.sigma, clipping.n_iter, gain
        )
        empty = pos.valid & xp.isfinite(circles.r) & (means.area == 0)
        measurement.flags |= xp.where(empty, int(Flag.INVALID), 0)
    arguments = circles.r, circles.fwhm, gain, means
    if radius_factor is None:
        sums = ops.sep_optimal_sums(frame, pos, *arguments)
    else:
        groups = ops.link_groups(pos, radius_factor * circles.r)
        sums = ops.sep_grouped_optimal_sums(
            frame, pos, groups, *arguments, radius_factor=radius_factor
        )
    _add_sums(measurement, sums.flux, sums.fluxerr, sums.flag, xp)


def _add_sums(measurement: Measurement, flux: Array, fluxerr: Array, flag: Array, xp: Any) -> None:
    measurement.flags |= xp.where(flag > 0, int(Flag.MASKED), 0)
    measurement.flags |= xp.where(xp.isfinite(flux), 0, int(Flag.NO_FIT))
    measurement.add_flux("flux", flux, "Flux in the aperture, or of the Gaussian that fits best")
    measurement.add_flux("fluxerr", fluxerr, "Standard deviation of flux")
