"""`measure_objects`: photometry of detected objects on an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from gpuphot.backend import resolve_backend
from gpuphot.flags import Flag
from gpuphot.models.background import cell_shape, spline_surface
from gpuphot.models.frame import ApertureSums, Array, Frame, Measurement, Positions
from gpuphot.models.fwhm import FWHM
from gpuphot.models.psf import PSFModel

from . import inputs, results
from .containers import ImageLike, TableLike
from .inputs import Log, Pixels
from .optimal import Extraction, measure_optimal


def measure_objects(
    obj: TableLike,
    image: ImageLike,
    aper: float = 3,
    bkgann: tuple[float, float] | None = None,
    bkg_order: int = 0,
    fwhm: FWHM | None = None,
    psf: Any = None,
    optimal: bool = False,
    group_sources: bool = True,
    grouper_radius: float | None = None,
    mask: ImageLike | None = None,
    bg: ImageLike | None = None,
    err: ImageLike | None = None,
    gain: float | None = None,
    bg_size: int = 64,
    sn: float | None = None,
    centroid_iter: int = 0,
    centroid_method: str = "com",
    keep_negative: bool = True,
    get_bg: bool = False,
    verbose: bool | Callable[[str], Any] = False,
    *,
    backend: str | None = None,
) -> Table | tuple[Table, NDArray, NDArray]:
    """Measure the fluxes of detected objects in circular apertures, or with their PSF.

    The background is estimated on a mesh and subtracted unless `bg` is given; a background left
    in the surroundings of each object can be measured in an annulus and subtracted too. Pixels
    weigh as much as the aperture overlaps them or, in optimal extraction, as a star would light
    them.

    Parameters
    ----------
    obj : Table of N rows
        Objects to measure, with columns ``x`` and ``y``: 0-based positions in pixels. A QTable,
        a structured array, such as `sep_x.extract` returns, the data of a FITS table or a pandas
        DataFrame will do. Rows whose ``x`` or ``y`` is masked, missing or not finite are not
        measured.
    image : (H, W) array
        Of any real dtype and byte order. Non-finite pixels and those masked in a
        `numpy.ma.MaskedArray` count as masked. Of an `astropy.nddata.NDData`, such as a CCDData,
        the unit, the mask and, without `err`, the uncertainty are used, too: pixels whose inverse
        variance is not positive and finite count as masked, and their noise is not known. The unit
        of an NDData or a Quantity is that of the fluxes.
    aper : float, default 3
        Radius of the aperture, in pixels or in units of `fwhm` if that is given. In optimal
        extraction, the radius up to which pixels are used.
    bkgann : (float, float), optional
        Inner and outer radius of the local background annulus, in the units of `aper`. By
        default no local background is subtracted.
    bkg_order : {0, 1, 2}, default 0
        Local background: the sigma-clipped mode of the annulus (``3 median - 2 mean``), a plane
        through it or a quadratic surface.
    fwhm : float or callable, optional
        FWHM of the stars in pixels, the unit of `aper` and `bkgann`. Of a callable
        ``fwhm(x, y)``, the value of ``float(fwhm)`` or else that at the image centre is used.
        Without `psf`, also the width of the Gaussian that optimal extraction fits and centroids
        are weighted with; for the fits a callable gives each source its own, or the median of its
        group's. It gets two (n,) arrays, the finite positions of the n sources.
    psf : PSFModel, mapping, path, float or photutils model, optional
        Model of the stars, see `gpuphot.PSFModel`: a dictionary as stdpipe makes it, a ``.psf``
        file of PSFEx, the FWHM of a Gaussian in pixels, or an ``ImagePSF`` or
        ``GriddedPSFModel`` of photutils. Its stamps, of sum 1, must have a central pixel.
    optimal : bool, default False
        Fit the PSF to each source instead of summing the aperture. Needs `psf` or `fwhm`.
    group_sources : bool, default True
        In optimal extraction, fit sources near each other at the same time.
    grouper_radius : float, optional
        Distance in pixels up to which sources are near each other, whatever `fwhm` is; linked
        through others they are in one group, too. By default twice the radius `aper`. 0 or
        negative: no sources are grouped.
    mask : (H, W) array, optional
        Non-zero where a pixel is masked. Masked pixels are left out of backgrounds and
        centroids; they do count in the apertures, which are then flagged.
    bg : (H, W) array or float, optional
        Background to subtract instead of an estimated one. If it has a unit, it is converted to
        that of the image.
    err : (H, W) array or float, optional
        Standard deviation of the pixels, used as it is (`gain` is then ignored), converted like
        `bg`; or an uncertainty of NDData. By default that of the estimated background, with the
        objects' Poisson noise added if `gain` is given.
    gain : float, optional
        Electrons per count, whatever the unit of the image. None or 0 adds no Poisson noise.
    bg_size : int, default 64
        Size of the background mesh cells in pixels.
    sn : float, optional
        Drop objects with ``magerr >= 1 / sn``, and all without a magnitude. Not applied if it is
        not positive.
    centroid_iter : int, default 0
        Steps of centroiding before the measurement, at most.
    centroid_method : {"com", "psf"}, default "com"
        Centre of mass in a square box about as wide as the aperture's radius; "psf": of the
        pixels times the PSF, on its stamp, which needs `psf` or `fwhm`.
    keep_negative : bool, default True
        If False, drop objects whose flux is not positive.
    get_bg : bool, default False
        Also return the estimated background and the noise map.
    verbose : bool or callable, default False
        Print what is done, or hand each message to a function.
    backend : {"numpy", "cupy"}, optional
        See `gpuphot.resolve_backend`.

    Returns
    -------
    Table
        A copy of `obj`, a QTable if that is one, with these columns replaced or appended, float64
        unless noted, fluxes and backgrounds in the unit of the image:

        ``x``, ``y``
            With centroiding only: the new positions.
        ``x_orig``, ``y_orig``
            With centroiding only: the positions of `obj`.
        ``flags`` (int64)
            Bits of `gpuphot.Flag`, added to those that `obj` has.
        ``bg_local``
            Local background per pixel; 0 without `bkgann`, NaN where it could not be measured.
        ``npix_aper``
            Area of the aperture on the image without non-finite pixels.
        ``bg_fluxerr``
            What the noise of the background alone contributes to the flux; 0 if no background
            was estimated.
        ``flux``, ``fluxerr``
            Sum in the aperture without the backgrounds, or flux of the PSF that fits best, and
            its standard deviation from the pixel noise. The uncertainty of the background itself
            is not part of it.
        ``npix_optimal`` (int64), ``chi2_optimal``, ``norm_optimal``
            With `optimal`: number of pixels and reduced chi-squared of the fit, the group's if
            the source was fitted in one; light of the PSF on these pixels.
        ``group_id``, ``group_size`` (int64)
            With `optimal` and `group_sources`: groups are numbered from 1 on as they appear in
            the rows; -1 and 0 without a position.
        ``mag``, ``magerr``
            ``-2.5 log10(flux)`` and its standard deviation; NaN if the flux is not positive.

        Rows without a result have NaN in them. ``meta["gpuphot"]`` records version, backend,
        device and the parameters, radii in pixels, in JSON.
    background : (H, W) float64 array
        Only if `get_bg`: the estimated background, also if `bg` was given. This and the noise are
        Quantities if the image has a unit.
    noise : (H, W) array
        Only if `get_bg`: the standard deviation of the pixels as it was used; `err` itself if
        that was given.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here, and if a background must be estimated but
        no mesh cell has enough unmasked pixels. The message names the argument.
    BackendError
        If the backend asked for cannot compute.

    Notes
    -----
    ``Flag.MASKED`` (0x200): a masked pixel has its centre inside the aperture.
    ``Flag.INVALID`` (0x400): the position is masked or not finite, the aperture lies off the
    image, or the annulus holds no usable pixel; flux and fluxerr are NaN.
    ``Flag.NO_FIT`` (0x800): optimal extraction gave no flux, because there is no usable pixel,
    the stamp of a source fitted alone crosses the edge of the image, it is larger than the image,
    or the callable `fwhm` returned no positive number.
    ``Flag.POOR_FIT`` (0x1000): the reduced chi-squared is above 1000; with ``NO_FIT``: others of
    the group inflate the variance of the flux more than 1e8 times, as coincident sources do.

    In optimal extraction all pixels up to the radius weigh the same in the fit (which is optimal
    where the sky dominates the noise), and their noise enters the errors. A source fitted alone
    uses the pixels up to `aper` from the pixel that it lies on; a group those up to `aper` from
    any member. A group of sources with local backgrounds gets their mean subtracted and a
    constant fitted along. Groups of more than 64 members are solved in overlapping blocks: fluxes
    to 1e-8 of their error or better, errors to 1e-9 where there is a star in every third square
    of one FWHM, to 1e-3 where there are two in each.

    The conventions are those of ``stdpipe.photometry_measure.measure_objects`` 0.4.1, which
    rests on photutils: ``Background2D`` with ``SExtractorBackground``, ``CircularAperture`` and
    ``LocalBackground`` with ``ModeEstimatorBackground``. The README lists the differences.

    References
    ----------
    Bertin & Arnouts 1996, A&AS 117, 393 (background mesh); Da Costa 1992, ASP Conf. Ser. 23, 90
    (mode estimator); Naylor 1998, MNRAS 296, 339 (optimal extraction).
    """
    chosen = resolve_backend(backend, image, mask, bg, err)
    ops, log = chosen.primitives, inputs.read_log(verbose)

    table = inputs.read_table(obj)
    order = inputs.choice("bkg_order", bkg_order, (0, 1, 2))
    n_iter = inputs.n_iterations("centroid_iter", centroid_iter)
    centroid_method = inputs.choice("centroid_method", centroid_method, ("com", "psf"))
    optimal, grouped = inputs.flag("optimal", optimal), inputs.flag("group_sources", group_sources)
    model = inputs.read_psf(psf)
    min_sn = inputs.read_signal_to_noise(sn)
    gain = inputs.read_gain(gain)
    bg_size = inputs.integer("bg_size", bg_size, 1)
    keep_negative = inputs.flag("keep_negative", keep_negative)
    get_bg = inputs.flag("get_bg", get_bg)
    with ops.device_of(image, mask, bg, err):
        pixels = inputs.read_pixels(image, mask, bg, err, ops)
        scale = inputs.read_scale(fwhm, pixels.shape)
        r_aper = inputs.radius("aper", aper, scale)
        annulus = inputs.read_annulus(bkgann, scale)
        link = inputs.read_grouper_radius(grouper_radius, r_aper)
        profile = None
        if optimal or (n_iter and centroid_method == "psf"):
            profile = inputs.read_profile(model, fwhm, scale)
        pos = inputs.read_positions(table, ops)
        if log:
            log(f"Measuring {len(pos)} objects with the {chosen.name} backend on {chosen.device}")
        frame, background = _prepare_frame(pixels, gain, bg_size, get_bg, ops, log)
        measurement = Measurement(ops.xp.zeros(len(pos), ops.xp.int64), pixels.unit)
        if n_iter:
            centroid_psf = profile if centroid_method == "psf" else None
            pos = _centroid(measurement, frame, pos, r_aper, n_iter, centroid_psf, ops, log)
        bg_local = _local_background(frame, pos, annulus, order, ops, log)
        sums, failed = _measure_apertures(measurement, frame, pos, r_aper, bg_local, ops, log)
        if profile is not None and optimal:
            widths = fwhm if model is None and callable(fwhm) else None
            extraction = Extraction(profile, widths, r_aper, link if grouped else None)
            measure_optimal(measurement, frame, pos, extraction, bg_local, failed, ops, log)
        else:
            _add_aperture_fluxes(measurement, sums, bg_local, failed, ops.xp)
        results.add_magnitudes(measurement, ops.xp)
        keep = results.select(measurement, min_sn, keep_negative, ops.xp)
        result = results.to_table(table, measurement, keep, ops)
        maps: tuple[Any, ...] = ()
        if get_bg:
            maps = results.maps(background, frame.err[0], err, pixels.unit, ops)

    parameters = {
        "aper": r_aper, "bkgann": annulus, "bkg_order": order, "mask": mask, "bg": bg,
        "err": inputs.noise_of(image, err), "gain": gain, "bg_size": bg_size, "sn": min_sn,
        "centroid_iter": n_iter, "centroid_method": centroid_method,
        "keep_negative": keep_negative, "psf": psf, "optimal": optimal,
        "group_sources": grouped, "grouper_radius": link,
    }  # fmt: skip
    result.meta[results.META_KEY] = results.provenance(chosen, "measure_objects", parameters)
    if log:
        log(f"{len(result)} of {len(pos)} objects are in the result")
    return (result, *maps) if get_bg else result


def _prepare_frame(
    pixels: Pixels, gain: float | None, bg_size: int, get_bg: bool, ops: Any, log: Log | None
) -> tuple[Frame, Array | None]:
    """The image without its background, and the background map if it is asked for."""
    data, bad = ops.load_image(pixels.image, pixels.mask)
    level = rms = background = None
    if pixels.bg is None or pixels.err is None or get_bg:
        cell = cell_shape(pixels.shape, bg_size)
        cells = ops.to_host(ops.xp.stack(ops.mesh_statistics(data, bad, cell)))
        inputs.check_mesh(cells[0], bg_size)
        level, rms = (spline_surface(values, cell) for values in cells)
        if log:
            log(
                f"Background mesh of {cells[0].size} cells of {cell[0]} x {cell[1]} pixels: level "
                f"{level.low:.6g} to {level.high:.6g}, noise {rms.low:.4g} to {rms.high:.4g}"
            )
    if get_bg:
        background = ops.evaluate_surface(level, pixels.shape)
    estimated = level if background is None else background
    subtracted = estimated if pixels.bg is None else pixels.bg
    frame = ops.subtract_background(data, bad, subtracted, pixels.err, rms, gain)
    return frame, background


def _centroid(
    measurement: Measurement,
    frame: Frame,
    pos: Positions,
    r_aper: float,
    n_iter: int,
    psf: PSFModel | None,
    ops: Any,
    log: Log | None,
) -> Positions:
    """Positions moved to the centres of mass, weighted with a PSF if there is one, and recorded."""
    half_size = math.ceil(r_aper) // 2
    if log:
        weighted = "" if psf is None else ", weighted with the PSF"
        log(f"Centroiding in boxes of {2 * half_size + 1} pixels, at most {n_iter} times{weighted}")
    if psf is None:
        x, y = ops.com_centroid(frame, pos, half_size, n_iter)
    else:
        x, y = ops.psf_centroid(frame, pos, psf, half_size, n_iter)
    measurement.add("x", x, "Centroid, 0-based pixel coordinate")
    measurement.add("y", y, "Centroid, 0-based pixel coordinate")
    return inputs.make_positions(x, y, pos.valid, ops.xp)


def _local_background(
    frame: Frame,
    pos: Positions,
    annulus: tuple[float, float] | None,
    order: int,
    ops: Any,
    log: Log | None,
) -> Array:
    """Background per pixel around each source, NaN where there is none; 0 without annulus."""
    if annulus is None:
        return ops.xp.zeros(len(pos))
    if log:
        log(f"Local background of order {order} from {annulus[0]:.2f} to {annulus[1]:.2f} pixels")
    if order == 0:
        return ops.annulus_mode(frame, pos, *annulus)
    return ops.annulus_polynomial(frame, pos, *annulus, order)


def _measure_apertures(
    measurement: Measurement,
    frame: Frame,
    pos: Positions,
    r_aper: float,
    bg_local: Array,
    ops: Any,
    log: Log | None,
) -> tuple[ApertureSums, Array]:
    """Sums in the apertures with what goes with them, and rows that cannot have a flux."""
    xp = ops.xp
    if log:
        log(f"Apertures of radius {r_aper:.2f} pixels")
    sums = ops.aperture_sums(frame, pos, np.array([r_aper]))
    area = sums.area[:, 0]
    if sums.bkg_var is None:
        bg_fluxerr = xp.zeros(len(pos))
    else:
        bg_fluxerr = xp.where(pos.valid, xp.sqrt(sums.bkg_var[:, 0]), 0.0)
    failed = ~(xp.isfinite(bg_local) & xp.isfinite(area))
    measurement.flags |= xp.where(sums.masked[:, 0], int(Flag.MASKED), 0)
    measurement.flags |= xp.where(failed, int(Flag.INVALID), 0)

    measurement.add_flux("bg_local", bg_local, "Local background per pixel")
    npix_aper = xp.where(pos.valid, area, 0.0)
    measurement.add("npix_aper", npix_aper, "Aperture area on finite pixels of the image")
    measurement.add_flux(
        "bg_fluxerr", bg_fluxerr, "Part of fluxerr that the background noise makes"
    )
    return sums, failed


def _add_aperture_fluxes(
    measurement: Measurement, sums: ApertureSums, bg_local: Array, failed: Array, xp: Any
) -> None:
    flux = sums.flux[:, 0] - bg_local * sums.area[:, 0]
    measurement.add_flux("flux", flux, "Flux in the aperture")
    fluxerr = xp.where(failed, xp.nan, xp.sqrt(sums.var[:, 0]))
    measurement.add_flux("fluxerr", fluxerr, "Standard deviation of flux from the pixel noise")
