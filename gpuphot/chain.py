"""From an image to the fluxes of its stars in one call: what one would do by hand, step by step.

Detection, the width of the stars, a PSF model, fluxes that start the fits, PSF fits, apertures
without the light of the neighbours: each step is a function of this package, called here in order.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from astropy.table import Table, vstack
from numpy.typing import ArrayLike, NDArray

from .backend import resolve_backend
from .detect import detect_objects
from .flags import Flag
from .measure import inputs, results
from .measure.deblended import measure_aperture_deblended
from .measure.objects import measure_objects
from .measure.objects_sep import measure_objects_sep
from .models.fwhm import FWHM
from .models.psf import FWHM_PER_SIGMA, PSFModel
from .numpy_backend import primitives
from .psf_builder import create_psf_model
from .stars import ENOUGH, brightest_stars, detect_hidden, estimate_fwhm, have_width_of_stars

METHODS: dict[str, Callable[..., Any]] = {
    "aperture": measure_objects,
    "optimal": measure_objects,
    "sep": measure_objects_sep,
    "psf": measure_objects_sep,
    "deblended": measure_aperture_deblended,
}
"""The function that each method of `measure_image` ends in."""

_APER = {"aperture": 1.0, "optimal": 1.5, "sep": 1.0, "psf": 1.0, "deblended": 1.0}
"""Radius in FWHM, near the best signal-to-noise; fits need the flanks of the star."""

_WITH_MODEL = ("optimal", "psf", "deblended")
_WITH_FITS = ("psf", "deblended")
_SEED_RADIUS = 3.0
_PSF_SIZE = 6.0
"""Of the PSF model in FWHM: larger ones gather the light of neighbours in crowded fields."""
_ENOUGH_FOR_DEGREE_2 = 50
_SET_HERE = {
    "obj", "image", "x", "y", "psf", "optimal", "flux_seed", "flux_psf", "flux_psf_err", "get_bg",
    "diagnostics",
}  # fmt: skip
"""Arguments of the measuring functions that are none of the user's here."""


@dataclass(frozen=True)
class ImagePhotometry:
    """What `measure_image` found.

    Attributes
    ----------
    table : Table
        One row per object.
    fwhm : float or None
        FWHM of the stars in pixels, as given or estimated; None if nothing needed it.
    r_aper : float
        Radius of the apertures in pixels.
    psf : PSFModel or None
        The model of the stars, as given or built; None if nothing needed it.
    background, noise : (H, W) arrays
        Background and standard deviation of the pixels, as given or estimated.
    mask : (H, W) bool array
        Pixels that were masked, saturated ones included.
    notes : tuple of str
        What was decided on the way, one sentence each.
    """

    table: Table
    fwhm: float | None
    r_aper: float
    psf: PSFModel | None
    background: NDArray
    noise: NDArray
    mask: NDArray[np.bool_]
    notes: tuple[str, ...]

    def modelled_stars(self) -> tuple[NDArray, NDArray, NDArray] | None:
        """Positions x and y and total fluxes of the stars as the PSF model fits them, if it did."""
        names = self.table.colnames
        if self.psf is None:
            return None
        columns = ["x_psf", "y_psf"] if "x_psf" in names else ["x", "y"]
        columns.append("flux_psf" if "flux_psf" in names else "flux")
        x, y, flux = (np.asarray(self.table[name], dtype=float) for name in columns)
        return x, y, flux


def measure_image(
    image: ArrayLike,
    obj: Any = None,
    *,
    method: str = "aperture",
    aper: float | None = None,
    bkgann: tuple[float, float] | None = None,
    in_pixels: bool = False,
    fwhm: FWHM | None = None,
    psf: Any = None,
    psf_degree: int | None = None,
    mask: ArrayLike | None = None,
    bg: ArrayLike | None = None,
    err: ArrayLike | None = None,
    gain: float | None = None,
    saturation: float | None = None,
    exposure: float | None = None,
    bg_size: int = 64,
    threshold: float = 3.0,
    passes: int = 2,
    verbose: bool | Callable[[str], Any] = False,
    backend: str | None = None,
    **options: Any,
) -> ImagePhotometry:
    """Measure all stars of an image, from their detection to their fluxes.

    What is not given is found: the objects by detection, the FWHM from the cores of bright
    stars, the PSF from up to 100 of them.

    Parameters
    ----------
    image : (H, W) array
        As `measure_objects` takes it, but on the host: objects are detected by SEP.
    obj : Table, optional
        Objects to measure, as `measure_objects` takes them; fits and deblending know no other
        neighbours. By default those that are detected.
    method : {"aperture", "optimal", "sep", "psf", "deblended"}, default "aperture"
        Apertures of `measure_objects`, or its optimal extraction, grouped; apertures of
        `measure_objects_sep`, or its PSF fits, grouped; apertures of
        `measure_aperture_deblended`, with positions and fluxes from such fits.
    aper : float, optional
        Radius of the aperture in FWHM; by default 1, or 1.5 for optimal extraction. PSF fits
        use none.
    bkgann : (float, float), optional
        Radii of the local background annulus in FWHM; "aperture", "optimal" and "sep" only.
    in_pixels : bool, default False
        `aper` and `bkgann` are in pixels, and not in FWHM.
    fwhm : float or callable, optional
        Of the stars, in pixels. By default that of up to 100 stars of the image, before the pixels
        widen them.
    psf : PSFModel, mapping, path, float or photutils model, optional
        Of the stars, as `measure_objects` takes it; "aperture" and "sep" use its FWHM only. By
        default, for the methods that need one, `create_psf_model` makes it from up to 100 stars;
        with fewer than 10 it is a Gaussian.
    psf_degree : int, optional
        Of the polynomial in the position in the model that is made, at least 1; by default 2
        from 50 stars on, else 1.
    mask, bg, err, gain, bg_size
        As in `measure_objects`. PSF fits and deblending get the Poisson noise of a `gain` as
        part of the noise map.
    saturation : float, optional
        Pixels of at least this value are masked. None or 0 masks none.
    exposure : float, optional
        In seconds; magnitudes are then those of the flux per second, unless it is None or 0.
    threshold : float, default 3
        Of the detection, in units of the background noise.
    passes : int, default 2
        Of the detection for "psf" and "deblended", where no `obj` is given: from the second on,
        objects are detected on the image without the stars found before, as they are fitted.
    verbose : bool or callable, default False
        Print what is done, or hand each message to a function.
    backend : {"numpy", "cupy"}, optional
        See `gpuphot.resolve_backend`.
    **options
        Further arguments of the function that `method` ends in, such as ``centroid_iter`` or
        ``sn``.

    Returns
    -------
    ImagePhotometry
        The columns of its table are those of the method's function. For "deblended", ``flux_psf``,
        ``flux_psf_err`` and the other columns of the fits stand beside them, and those of the
        diagnostics: ``flux_ap_raw`` is the plain aperture, ``fracflux`` the share of the light in
        it that is the star's own.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here, if nothing is detected, or if the image has
        no stars to learn their width from. The message names the argument.
    ImportError
        If `sep_x` is not installed where it is needed.
    BackendError
        If the backend asked for cannot compute.

    Notes
    -----
    Stars to learn from are the brightest without flags that are not among the brightest 2 %. The
    FWHM is the lower quartile of theirs, for neighbours and galaxies only widen; the PSF is that
    of 6 FWHM around those of about that width. It holds all the light by definition: fluxes of
    fits lack what lies farther out, 1 to 3 % of Moffat stars. For SEP's fits it is sampled once a
    pixel, which is too coarse for stars below 2 pixels: their fluxes are off by a per cent.

    In a crowd of 6000 stars in 1024 x 1024 pixels, of those with a signal-to-noise ratio above 30
    one pass of the detection finds 89 %, a second one 96 %; 0.5 % of all detections are none.
    """
    method = inputs.choice("method", method, tuple(METHODS))
    _check_options(method, aper, bkgann, options)
    resolve_backend(backend)
    inputs.read_gain(gain)
    if aper is not None:
        inputs.radius("aper", aper, 1.0)
    in_pixels = inputs.flag("in_pixels", in_pixels)
    passes = inputs.integer("passes", passes, 1)
    if psf_degree is not None:
        psf_degree = inputs.integer("psf_degree", psf_degree, 1)
    exposure = 0.0 if exposure is None else inputs.not_negative("exposure", exposure)
    model = inputs.read_psf(psf)
    if fwhm is None and model is not None and math.isfinite(model.fwhm):
        fwhm = model.fwhm
    _check_on_host(image=image, mask=mask, bg=bg, err=err)
    pixels = inputs.read_pixels(image, mask, bg, err, primitives)
    bad = _masked(pixels, saturation)
    # What hides behind the mask must neither be detected nor count as light of a star.
    values = np.where(bad, np.nan, pixels.image)
    clean = results.with_unit(values, pixels.unit)
    notes = _Notes(inputs.read_log(verbose))
    given: dict[str, Any] = {"mask": bad, "verbose": verbose, "backend": backend}
    sky: dict[str, Any] = {"bg": bg, "err": err, "gain": gain, "bg_size": bg_size}

    needs_model = method in _WITH_MODEL and model is None
    needs_fwhm = fwhm is None and not (method == "aperture" and in_pixels and aper is not None)
    found = None
    if obj is None or needs_model or needs_fwhm:
        found = _detect(clean, obj is not None, threshold, bg_size, notes)
    objects: Any = found if obj is None else inputs.read_table(obj)
    sources = objects if found is None else found
    maps: Any = measure_objects(sources, clean, _SEED_RADIUS, get_bg=True, **sky, **given)
    seeds, background, noise = maps
    background = np.asarray(background if pixels.bg is None else pixels.bg)
    noise = np.asarray(noise if pixels.err is None else pixels.err)
    data = np.asarray(values - background, dtype=np.float64)
    if needs_fwhm:
        fwhm = _estimate_fwhm(data, seeds, notes)
    scale = inputs.read_scale(fwhm, pixels.shape)
    if model is not None and fwhm is not None and math.isnan(model.fwhm):
        model = replace(model, fwhm=scale)
    if needs_model:
        # SEP sums a finer model over the pixels, which the samples of this one are sums of already.
        oversampling = 1 if method in _WITH_FITS else None
        model = _make_psf(data, bad, seeds, scale, psf_degree, oversampling, notes)

    radii = _read_radii(method, aper, bkgann, fwhm, scale if in_pixels else None)
    # SEP would add the Poisson noise of a gain to errors that know it from the noise map.
    known: dict[str, Any] = {"bg": background, "err": noise}
    if obj is None and method in _WITH_FITS:
        for _ in range(passes - 1):
            fits = measure_objects_sep(objects, image, psf=model, **known, **given)
            objects = _add_hidden(fits, data, bad, model, threshold, bg_size, backend, notes)
    if method == "deblended":
        table = _deblend(objects, clean, model, {**radii, **known, **given}, options)
    else:
        arguments = {
            "aperture": {**radii, **sky},
            "optimal": {**radii, **sky, "psf": model, "optimal": True},
            "sep": {**radii, **sky},
            "psf": {**known, "psf": model},
        }[method]
        table = METHODS[method](objects, image, **arguments, **given, **options)
    if len(table) < len(objects):
        notes.add(f"{len(objects) - len(table)} objects dropped by the filters")
    if exposure:
        _divide_by(exposure, table)
    return ImagePhotometry(
        table=table,
        fwhm=None if fwhm is None else scale,
        r_aper=radii["aper"] * scale,
        psf=model if method in _WITH_MODEL else None,
        background=background,
        noise=noise,
        mask=bad,
        notes=tuple(notes.lines),
    )


class _Notes:
    """What is decided on the way, said to the log at once and kept."""

    def __init__(self, log: inputs.Log | None) -> None:
        self.lines: list[str] = []
        self._log = log

    def add(self, line: str) -> None:
        self.lines.append(line)
        if self._log:
            self._log(line)


def _check_options(method: str, aper: Any, bkgann: Any, options: dict[str, Any]) -> None:
    """Refuse what has no effect."""
    function = METHODS[method]
    known = inspect.signature(function).parameters.keys() - _SET_HERE
    unknown = sorted(options.keys() - known)
    if unknown:
        raise TypeError(
            f"{unknown[0]} does not go with method={method!r}: {function.__name__} does not take it"
        )
    if bkgann is not None and method in _WITH_FITS:
        raise ValueError(f"bkgann has no effect with method={method!r}, got {bkgann!r}")
    if aper is not None and method == "psf":
        raise ValueError(f"aper has no effect with method={method!r}, got {aper!r}")


def _read_radii(
    method: str, aper: Any, bkgann: Any, fwhm: FWHM | None, scale: float | None
) -> dict[str, Any]:
    """Radii in FWHM, and the FWHM, as arguments of a measurement; with a scale, given in pixels."""
    unit = 1.0
    if scale is not None:
        unit = 1 / scale
        fwhm = None if fwhm is None else scale
    radii: dict[str, Any] = {
        "aper": _APER[method] if aper is None else inputs.radius("aper", aper, unit),
        "fwhm": fwhm,
    }
    if bkgann is not None:
        radii["bkgann"] = inputs.read_annulus(bkgann, unit, may_be_disc=method == "sep")
    return radii


def _check_on_host(**planes: Any) -> None:
    for name, plane in planes.items():
        if hasattr(plane, "__cuda_array_interface__"):
            raise TypeError(
                f"{name} must be an array on the host, where objects are detected, got one on a "
                "GPU: use its get()"
            )


def _masked(pixels: inputs.Pixels, saturation: Any) -> NDArray[np.bool_]:
    """Where the image is masked, not finite or saturated."""
    bad = ~np.isfinite(pixels.image)
    if pixels.mask is not None:
        bad |= pixels.mask
    limit = 0.0 if saturation is None else inputs.not_negative("saturation", saturation)
    if limit:
        bad |= pixels.image >= limit
    return bad


def _detect(
    image: Any, only_for_width: bool, threshold: float, bg_size: int, notes: _Notes
) -> Table:
    found = detect_objects(image, None, threshold, bg_size)
    if not len(found):
        advice = "; give fwhm, and psf where it is needed" if only_for_width else ""
        raise ValueError(
            f"image must have objects to detect, found none at threshold={threshold:g}{advice}"
        )
    notes.add(f"{len(found)} objects detected at {threshold:g} sigma")
    return found


def _estimate_fwhm(data: NDArray[np.float64], seeds: Table, notes: _Notes) -> float:
    width = float(np.median(seeds["a"])) * FWHM_PER_SIGMA
    stars = brightest_stars(seeds, data.shape, edge=2 * width)
    fwhm = estimate_fwhm(data, np.asarray(stars["x"]), np.asarray(stars["y"]), width)
    if math.isnan(fwhm):
        raise ValueError("fwhm must be given, for the image has no star to estimate it from")
    notes.add(f"FWHM of {fwhm:.2f} pixels from {len(stars)} stars")
    return fwhm


def _make_psf(
    data: NDArray[np.float64],
    bad: NDArray[np.bool_],
    seeds: Table,
    fwhm: float,
    degree: int | None,
    oversampling: int | None,
    notes: _Notes,
) -> PSFModel:
    """A model of the brightest stars, or a Gaussian where they are too few."""
    size = min(2 * math.ceil(_PSF_SIZE / 2 * fwhm) + 1, _largest_odd(min(data.shape)))
    stars = brightest_stars(seeds, data.shape, edge=size / 2)
    stars = stars[have_width_of_stars(data, np.asarray(stars["x"]), np.asarray(stars["y"]), fwhm)]
    if len(stars) < ENOUGH:
        notes.add(f"PSF: a Gaussian, for there are only {len(stars)} stars to make a model of")
        return PSFModel.gaussian(fwhm)
    if degree is None:
        degree = 2 if len(stars) >= _ENOUGH_FOR_DEGREE_2 else 1
    model = create_psf_model(
        data, stars, fwhm, size=size, mask=bad, oversampling=oversampling, degree=degree,
        neighbors_obj=seeds, subtract_background=True,
    )  # fmt: skip
    notes.add(f"PSF model of degree {degree} from {len(stars)} stars")
    return model


def _add_hidden(
    fits: Any,
    data: NDArray[np.float64],
    bad: NDArray[np.bool_],
    psf: Any,
    threshold: float,
    bg_size: int,
    backend: str | None,
    notes: _Notes,
) -> Table:
    """The detected objects where the fits have moved them, and those that they hid."""
    known = fits["x", "y", "a", "b", "theta", "peak", "sep_flag"]
    fitted = np.isfinite(fits["x_psf"]) & ((fits["flags"] & Flag.LARGE_SHIFT) == 0)
    for name in ("x", "y"):
        known[name] = np.where(fitted, fits[f"{name}_psf"], fits[name])
    x, y, flux = (np.asarray(fits[name], dtype=float) for name in ("x_psf", "y_psf", "flux"))
    hidden = detect_hidden(
        data, bad, psf, x, y, flux, threshold=threshold, bg_size=bg_size, backend=backend
    )
    notes.add(f"{len(hidden)} more objects detected without the light of these")
    return vstack([known, hidden])


def _largest_odd(n: int) -> int:
    return n - 1 + n % 2


def _deblend(
    objects: Table, image: Any, psf: Any, given: dict[str, Any], options: dict[str, Any]
) -> Table:
    """PSF fits, and apertures with what these say of the neighbours; plain ones where they fail."""
    apertures: Any = measure_objects(objects, image, **given)
    fits: Any = measure_objects_sep(objects, image, psf=psf, **given)
    fitted = np.isfinite(fits["x_psf"]) & np.isfinite(fits["flux"]) & (fits["flux"] > 0)
    x, y, seed = (
        np.where(fitted, np.asarray(fits[best]), np.asarray(apertures[plain]))
        for best, plain in (("x_psf", "x"), ("y_psf", "y"), ("flux", "flux"))
    )
    # The seeds are total fluxes already.
    defaults = {"aperture_correction": "none", "overlap_subpixel": 5}
    deblended = measure_aperture_deblended(
        image, x, y, psf=psf, flux_seed=seed, flux_psf=fits["flux"], flux_psf_err=fits["fluxerr"],
        diagnostics=True, **given, **{**defaults, **options},
    )  # fmt: skip
    return _side_by_side(fits, deblended)


def _side_by_side(fits: Table, deblended: Table) -> Table:
    """Deblended fluxes as the fluxes of the table of the fits, whose own become ``flux_psf``."""
    result = fits.copy()
    result["flux_psf"], result["flux_psf_err"] = fits["flux"], fits["fluxerr"]
    result["flags"] |= deblended["flags"]
    for name in deblended.colnames:
        if name not in ("x", "y", "flags"):
            result[name] = deblended[name]
    result.meta.update(deblended.meta)
    return result


def _divide_by(exposure: float, table: Table) -> None:
    """Make magnitudes those of the flux per second."""
    table["mag"] += 2.5 * math.log10(exposure)
    table["mag"].info.description = "Instrumental magnitude, -2.5 log10(flux / exposure)"
