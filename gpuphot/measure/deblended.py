"""`measure_aperture_deblended`: aperture photometry without the light of the neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from astropy.table import Table
from numpy.typing import ArrayLike

from gpuphot.backend import resolve_backend
from gpuphot.models.frame import Array, Measurement, Overlaps, Positions
from gpuphot.models.psf import PSFModel
from gpuphot.models.sep import SepFlag, SepSums
from gpuphot.models.smooth import GridOptions, LoessOptions

from . import inputs, results
from .containers import ImageLike
from .inputs import Log

SIGMA_PER_MAD = 1.482602218505602
"""Standard deviation of normal values in units of their median absolute deviation."""


def measure_aperture_deblended(
    image: ImageLike,
    x: ArrayLike,
    y: ArrayLike,
    aper: float,
    psf: Any,
    *,
    flux_seed: ArrayLike,
    flux_psf: ArrayLike,
    flux_psf_err: ArrayLike | None = None,
    target: ArrayLike | None = None,
    fwhm: Any = None,
    err: ImageLike | None = None,
    mask: ImageLike | None = None,
    gain: float | None = None,
    bg: ImageLike | None = None,
    aperture_correction: str = "ratio_field",
    correction_field_kwargs: Mapping[str, Any] | None = None,
    ratio_clip: tuple[float, float] = (0.5, 3.0),
    outlier_clip: float = 5.0,
    min_for_field_fit: int = 6,
    bad_flag: int = 0x1000,
    propagate_neighbour_errors: bool = True,
    overlap_subpixel: int = 4,
    diagnostics: bool = False,
    verbose: bool | Callable[[str], Any] = False,
    backend: str | None = None,
) -> Table:
    """Measure aperture fluxes of stars without the light of their neighbours.

    Every detection is rendered with the PSF into a model image. The sum of the image in a target's
    aperture, less that of the model, plus the model of the target itself, is its flux: an error of
    the PSF enters with the neighbours' light only.

    Parameters
    ----------
    image : (H, W) array
        Of any real dtype and byte order, background-subtracted unless `bg` is given; rounded to
        single precision, as SEP does. Non-finite pixels and those masked in a
        `numpy.ma.MaskedArray` count as masked. A Quantity or an `astropy.nddata.NDData` is used as
        in `measure_objects`.
    x, y : (N,) arrays
        Positions of all detections in pixels, 0-based. Columns of a Table, a QTable or a pandas
        DataFrame will do, for the fluxes, too; what is masked or missing counts as NaN.
    aper : float
        Radius of the apertures in pixels or in units of `fwhm` if that is given.
    psf : PSFModel, mapping, path, float or model of photutils
        What a star looks like, see `gpuphot.PSFModel`; a number is the FWHM of a Gaussian.
    flux_seed : (N,) array
        Aperture fluxes of the detections. Those without a positive, finite one are not part of the
        model, and not measured. Fluxes with a unit are converted to that of the image.
    flux_psf : (N,) array
        Their fluxes from PSF fits.
    flux_psf_err : (N,) array, optional
        Standard deviations of `flux_psf`; necessary with `propagate_neighbour_errors`. One that is
        not finite counts as 0.
    target : (N,) bool array or (M,) integer array, optional
        The detections to measure, as a mask or by their rows, negative ones counted from the end;
        all by default. Integers 0 and 1 are rows.
    fwhm : float or callable, optional
        FWHM of the stars in pixels, the unit of `aper`. Of a callable, its summary, as in
        `measure_objects`.
    err : (H, W) array or float, optional
        Standard deviation of the pixels, converted like `bg`, or an uncertainty of NDData; 0 by
        default.
    mask : (H, W) array, optional
        Non-zero where a pixel is masked. Masked pixels are left out of the sums of the image and
        of the model, which are both scaled up for the area that is lost.
    gain : float, optional
        Electrons per count, for the Poisson noise of the sums. None or 0 adds none.
    bg : (H, W) array or float, optional
        Background to subtract. If it has a unit, it is converted to that of the image.
    aperture_correction : {"ratio_field", "fixed", "none"}, default "ratio_field"
        How total fluxes, which scale the models, follow from `flux_seed`: times a smooth field
        fitted to the ratios ``flux_psf / flux_seed``, times their median, or as they are.
    correction_field_kwargs : dict, optional
        How the field is fitted: ``backend``, "loess" (default) or "grid". For "loess": ``k`` (100)
        neighbours, ``scales`` (a quarter of the extent of the fitted positions), the pixels in x
        and y that count as a distance of 1, ``robust_iters`` (2), ``robust_c`` (4.685),
        ``min_bandwidth`` (1e-6), ``ridge`` (1e-10). For "grid": ``image_shape`` (extent of the
        fitted positions), ``grid_shape`` (12, 8) in x and y, ``min_per_cell`` (6),
        ``smooth_sigma`` (1.0) cells.
    ratio_clip : (float, float), default (0.5, 3.0)
        Limits of the modelled ratio.
    outlier_clip : float, default 5.0
        Ratios so many standard deviations from their median, as the median absolute deviation
        gives it, are not fitted; nor are those of positions that are farther from the image than
        its own size.
    min_for_field_fit : int, default 6
        With fewer ratios than this, their median is used instead of a field.
    bad_flag : int, default 0x1000
        Bits of the flags of measurements that are not to be used.
    propagate_neighbour_errors : bool, default True
        Add the errors of the neighbours' light to those of the fluxes.
    overlap_subpixel : int, default 4
        Sub-pixels along the side of a pixel in which the light of a model is summed.
    diagnostics : bool, default False
        Append the columns below that say so.
    verbose : bool or callable, default False
        Print what is done, or hand each message to a function.
    backend : {"numpy", "cupy"}, optional
        See `gpuphot.resolve_backend`.

    Returns
    -------
    Table of M rows
        In the order of `target`, with the columns, float64 unless noted, fluxes in the unit of the
        image:

        ``x``, ``y``
            Positions.
        ``flux``, ``fluxerr``
            Flux in the aperture without the neighbours, and its standard deviation.
        ``flags`` (int64)
            Those of SEP: 16, the circle crosses the border of the image; 32, a pixel in it is
            masked; 64, all are. And `bad_flag`.
        ``mag``, ``magerr``
            ``-2.5 log10(flux)`` and its standard deviation; NaN with `bad_flag`.
        ``flux_ap_raw``, ``flux_model``
            Diagnostics: sums of image and model in the aperture.
        ``flux_total_model``, ``flux_ratio_model``
            Diagnostics: total flux of the target's model, and the ratio it was made with.
        ``self_frac``
            Diagnostics: share of the target's own model inside the aperture.
        ``flux_neighbour_err``
            Diagnostics, if errors are propagated: standard deviation of the neighbours' light.
        ``fracflux``
            Diagnostics: share of the modelled light in the aperture that is the target's own, 1
            for an isolated star.

        ``meta["gpuphot"]`` records version, backend, device and the parameters, the radius in
        pixels, in JSON.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here. The message names the argument.
    BackendError
        If the backend asked for cannot compute.

    Notes
    -----
    `bad_flag` is raised where SEP raises a flag, and where the flux is not positive or has no
    error. The flux is NaN without position, where the aperture is off the image or all of it
    masked, and without a positive, finite seed. Detections without position are no neighbours.

    The sub-pixels of the target's own model are 4 x 4, as in stdpipe, those of the sums 5 x 5:
    fluxes of isolated stars change by 2e-3, at worst 8e-3, in apertures of 3 pixels. With
    ``overlap_subpixel=5`` they do not change.

    Seeds from apertures hold light of the neighbours, and make the models too bright: equal pairs
    come out too faint by the square of the excess of the plain aperture, which matters below 2
    FWHM. There, use `flux_psf` for `flux_seed`, too.

    The conventions are those of ``stdpipe.photometry_measure.measure_aperture_deblended`` 0.4.1.
    The README lists the differences.

    References
    ----------
    Cleveland 1979, JASA 74, 829 (LOESS); Barbary 2016, JOSS 1, 58 (aperture sums).
    """
    arrays = (image, x, y, flux_seed, flux_psf, flux_psf_err, err, mask, bg)
    chosen = resolve_backend(backend, *arrays)
    ops, log = chosen.primitives, inputs.read_log(verbose)
    xp = ops.xp

    model = inputs.read_stamps(psf)
    correction = _Correction(
        inputs.choice("aperture_correction", aperture_correction, ("ratio_field", "fixed", "none")),
        inputs.read_field_options(correction_field_kwargs),
        inputs.read_range("ratio_clip", ratio_clip),
        inputs.positive_number("outlier_clip", outlier_clip),
        inputs.integer("min_for_field_fit", min_for_field_fit, 1),
    )
    gain = inputs.read_gain(gain)
    bad_flag = inputs.integer("bad_flag", bad_flag, 0)
    propagate = inputs.flag("propagate_neighbour_errors", propagate_neighbour_errors)
    inputs.check_flux_errors(propagate, flux_psf_err)
    subpix = inputs.integer("overlap_subpixel", overlap_subpixel, 1)
    diagnostics = inputs.flag("diagnostics", diagnostics)
    with ops.device_of(*arrays):
        pixels = inputs.read_pixels(image, mask, bg, err, ops)
        r = inputs.radius("aper", aper, inputs.read_scale(fwhm, pixels.shape))
        x, y = inputs.read_points(x, y, ops)
        pos = inputs.make_positions(x, y, xp.isfinite(x) & xp.isfinite(y), xp)
        n = len(pos)
        unit = pixels.unit
        seed = inputs.read_vector("flux_seed", flux_seed, n, unit, ops)
        fitted = inputs.read_vector("flux_psf", flux_psf, n, unit, ops)
        fitted_err = xp.zeros(n)
        if flux_psf_err is not None:
            fitted_err = inputs.read_vector("flux_psf_err", flux_psf_err, n, unit, ops)
        rows = ops.to_device(inputs.read_target(target, n, ops))
        if log:
            log(f"Measuring {len(rows)} of {n} stars with the {chosen.name} backend")
        ratio = _model_ratio(pos, seed, fitted, pixels.shape, correction, ops, log)
        total = seed * ratio
        placed = pos.valid & xp.isfinite(total) & (total > 0)
        light = xp.where(placed, total, xp.nan)
        targets = inputs.make_positions(pos.x[rows], pos.y[rows], pos.valid[rows], xp)
        raw, in_model = _aperture_sums(pixels, model, pos, light, targets, r, gain, ops)
        overlaps = ops.aperture_overlaps(
            model, pos, rows, r, subpix, light,
            _total_error(fitted_err, fitted, seed, ratio, xp), propagate or diagnostics,
        )  # fmt: skip
        measurement = _deblend(targets, raw, in_model, light[rows], overlaps, propagate, unit, xp)
        bad = _is_bad(measurement, xp)
        measurement.flags = measurement.flags | xp.where(bad, bad_flag, 0)
        results.add_magnitudes(measurement, xp, ~bad)
        if diagnostics:
            _add_diagnostics(
                measurement, raw, in_model, total[rows], ratio[rows], overlaps, propagate, xp
            )
        result = results.new_table(measurement, ops)

    parameters = {
        "aper": r, "psf": psf, "err": inputs.noise_of(image, err), "mask": mask, "gain": gain,
        "bg": bg,
        "aperture_correction": correction.method, "correction_field": str(correction.field),
        "ratio_clip": correction.limits,
        "outlier_clip": correction.outlier_clip, "min_for_field_fit": correction.n_min,
        "bad_flag": bad_flag, "propagate_neighbour_errors": propagate, "overlap_subpixel": subpix,
    }  # fmt: skip
    result.meta[results.META_KEY] = results.provenance(
        chosen, "measure_aperture_deblended", parameters
    )
    return result


@dataclass(frozen=True)
class _Correction:
    """How total fluxes follow from seeds.

    Attributes
    ----------
    method : {"ratio_field", "fixed", "none"}
    field : how the field of the ratios is fitted
    limits : lowest and highest ratio
    outlier_clip : in standard deviations
    n_min : ratios that it takes to fit a field
    """

    method: str
    field: LoessOptions | GridOptions
    limits: tuple[float, float]
    outlier_clip: float
    n_min: int


def _model_ratio(
    pos: Positions,
    seed: Array,
    fitted: Array,
    shape: tuple[int, int],
    correction: _Correction,
    ops: Any,
    log: Log | None,
) -> Array:
    """Total flux in units of the seed, for every star."""
    xp = ops.xp
    if correction.method == "none":
        return xp.clip(xp.ones(len(pos)), *correction.limits)
    ratio, clean, level = _clean_ratios(pos, seed, fitted, shape, correction.outlier_clip, ops)
    field = xp.broadcast_to(level, len(pos))
    if correction.method == "ratio_field":
        n = int(xp.count_nonzero(clean))
        if n >= correction.n_min:
            message = f"Field of flux ratios, fitted to {n} stars"
            fit = ops.loess_field if isinstance(correction.field, LoessOptions) else ops.grid_field
            field = fit(pos.x, pos.y, ratio, clean, correction.field)
            field = xp.where(xp.isfinite(field), field, level)
        else:
            message = f"{n} flux ratios are too few for a field, their median is used"
        if log:
            log(message)
    return xp.clip(field, *correction.limits)


def _clean_ratios(
    pos: Positions,
    seed: Array,
    fitted: Array,
    shape: tuple[int, int],
    outlier_clip: float,
    ops: Any,
) -> tuple[Array, Array, Array]:
    """Ratios of the fluxes, which of them are to be fitted, and their median before clipping."""
    xp = ops.xp
    usable = _is_near(pos, shape, xp)
    for flux in (seed, fitted):
        usable &= xp.isfinite(flux) & (flux > 0)
    ratio = xp.where(usable, fitted, 1) / xp.where(usable, seed, 1)
    usable &= xp.isfinite(ratio) & (ratio > 0)
    typical, deviation = ops.median_and_deviation(ratio, usable)
    sigma = SIGMA_PER_MAD * deviation
    near = xp.abs(ratio - typical) < outlier_clip * sigma
    level = xp.where(xp.isfinite(typical), typical, 1.0)
    return ratio, usable & (near | ~(sigma > 0)), level


def _is_near(pos: Positions, shape: tuple[int, int], xp: Any) -> Array:
    """Whether a position is no farther from the image than that is large."""
    height, width = shape
    near_x = xp.abs(pos.x - width / 2) <= 1.5 * width
    return pos.valid & near_x & (xp.abs(pos.y - height / 2) <= 1.5 * height)


def _total_error(fitted_err: Array, fitted: Array, seed: Array, ratio: Array, xp: Any) -> Array:
    """Standard deviations of the PSF fluxes, scaled as the total fluxes are to those."""
    positive = fitted > 0
    scale = xp.where(positive, ratio * seed / xp.where(positive, fitted, 1), ratio)
    return xp.abs(fitted_err * xp.where(xp.isfinite(scale), scale, 1))


def _aperture_sums(
    pixels: inputs.Pixels,
    psf: PSFModel,
    pos: Positions,
    flux: Array,
    targets: Positions,
    r: float,
    gain: float | None,
    ops: Any,
) -> tuple[SepSums, SepSums]:
    """Sums of the image and of its model in the apertures of the targets."""
    xp = ops.xp
    radii = xp.full(len(targets), r)
    frame = ops.sep_frame(
        pixels.image,
        pixels.mask,
        0.0 if pixels.bg is None else pixels.bg,
        0.0 if pixels.err is None else pixels.err,
    )
    raw = ops.sep_aperture_sums(frame, targets, radii, gain)
    stars = ops.render_psf_image(frame.shape, psf, pos.x, pos.y, flux)
    model = replace(frame, data=stars.astype(xp.float32)[None])
    return raw, ops.sep_aperture_sums(model, targets, radii, None)


def _deblend(
    targets: Positions,
    raw: SepSums,
    in_model: SepSums,
    total: Array,
    overlaps: Overlaps,
    propagate: bool,
    unit: Any,
    xp: Any,
) -> Measurement:
    """Fluxes without the neighbours' light."""
    measured = targets.valid & ((raw.flag & SepFlag.ALL_MASKED) == 0)
    flux = raw.flux - in_model.flux + total * overlaps.enclosed
    flux = xp.where(measured & xp.isfinite(flux), flux, xp.nan)
    fluxerr = raw.fluxerr
    if propagate:
        fluxerr = xp.sqrt(fluxerr**2 + overlaps.variance)
    measurement = Measurement(raw.flag, unit)
    measurement.add("x", targets.x, "0-based pixel coordinate")
    measurement.add("y", targets.y, "0-based pixel coordinate")
    measurement.add_flux("flux", flux, "Flux in the aperture without the neighbours")
    measurement.add_flux(
        "fluxerr", xp.where(measured, fluxerr, xp.nan), "Standard deviation of flux"
    )
    return measurement


def _is_bad(measurement: Measurement, xp: Any) -> Array:
    flux, fluxerr = measurement["flux"], measurement["fluxerr"]
    usable = xp.isfinite(flux) & xp.isfinite(fluxerr) & (flux > 0)
    return ~usable | (measurement.flags > 0)


def _add_diagnostics(
    measurement: Measurement,
    raw: SepSums,
    in_model: SepSums,
    total: Array,
    ratio: Array,
    overlaps: Overlaps,
    propagate: bool,
    xp: Any,
) -> None:
    measurement.add_flux("flux_ap_raw", raw.flux, "Sum of the image in the aperture")
    measurement.add_flux("flux_model", in_model.flux, "Sum of the model in the aperture")
    measurement.add_flux("flux_total_model", total, "Total flux of the model of the star")
    measurement.add("flux_ratio_model", ratio, "Total flux in units of the seed")
    measurement.add("self_frac", overlaps.enclosed, "Share of the star's model in the aperture")
    if propagate:
        neighbour_err = xp.sqrt(overlaps.variance)
        measurement.add_flux(
            "flux_neighbour_err", neighbour_err, "Standard deviation of the neighbours' light"
        )
    lit = overlaps.light > 0
    own = xp.where(lit, total * overlaps.enclosed / xp.where(lit, overlaps.light, 1), xp.nan)
    measurement.add("fracflux", own, "Share of the modelled light in the aperture that is its own")
