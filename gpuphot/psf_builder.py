"""PSF models made of the stars of an image: `create_psf_model`.

Here the stars are chosen. A polynomial model is fitted in `models.psf_fit`, a constant one by
photutils.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
from astropy.nddata import NDData
from astropy.table import Table
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from gpuphot.detect import detect_objects
from gpuphot.measure import inputs
from gpuphot.measure.containers import ImageLike, TableLike
from gpuphot.measure.objects import measure_objects
from gpuphot.models.psf import PSFModel
from gpuphot.models.psf_fit import Background, Stars, fit_polynomial_psf
from gpuphot.numpy_backend import primitives
from gpuphot.stars import ENOUGH, suitable_stars

_DEFAULT_FWHM = 3.0
_WELL_SAMPLED_FWHM = 2.5
_DETECTION_THRESHOLD = 5.0
_DETECTION_APER = 3.0
_BACKGROUNDS: dict[Any, Background] = {
    None: "none",
    False: "none",
    "none": "none",
    True: "median",
    "median": "median",
    "edge": "median",
    "constant": "median",
    "plane": "plane",
    "tilt": "plane",
}


def create_psf_model(
    image: ImageLike,
    obj: TableLike | None = None,
    fwhm: Any = None,
    size: int | None = None,
    mask: ImageLike | None = None,
    oversampling: int | None = None,
    degree: int = 0,
    regularization: float = 1e-6,
    subtract_neighbors: bool = True,
    neighbors_obj: TableLike | None = None,
    subtract_background: bool | str | None = False,
    isolation: float | None = 2.0,
    get_raw: bool = False,
    verbose: bool | inputs.Log = False,
) -> PSFModel | Any:
    """Make a PSF model of the stars of an image.

    A constant model (`degree` 0) is the effective PSF that photutils' ``EPSFBuilder`` makes of the
    stars. A model that varies is made as stdpipe does it: cutouts of the stars are freed of their
    neighbours, resampled around their centres and scaled to the same flux; to what they have in
    each pixel of the model, a polynomial in the position is fitted, brighter stars counting more
    and outlying ones not at all; and its noise far from the centre is faded out.

    The samples of the model are integrals over image pixels, whatever its oversampling, so that
    its stamps are interpolated between them and never summed. The fits of SEP do sum them:
    `measure_objects_sep` wants a model with ``oversampling=1``, others make its fluxes 1 to 8 %
    too large.

    Parameters
    ----------
    image : (H, W) array
        Of any real dtype and byte order, its background subtracted. Of a Quantity or an
        `astropy.nddata.NDData`, the values and the mask are used.
    obj : Table, optional
        Stars with columns ``x`` and ``y`` (0-based pixel centres) and, if possible, ``flux`` and
        ``fwhm``; also a DataFrame, or whatever else `measure_objects` takes. Rows whose position
        is masked or not finite are ignored. By default, stars are detected, and those are used
        that are above the median flux, not among the brightest 2 %, not at the edge and without
        flags.
    fwhm : float or callable, optional
        Of the stars, in pixels; of a callable ``fwhm(x, y)``, its typical value. By default the
        median of the column ``fwhm`` of `obj`, or else 3.
    size : int, optional
        Rows and columns of the cutouts of stars, made odd; by default 5 `fwhm`, at least 15.
    mask : (H, W) array, optional
        Non-zero where a pixel does not count. At positive degrees, stars of which a tenth is
        masked are left out, as are those with a pixel that is not finite and not masked.
    oversampling : int, optional
        Model pixels per image pixel; by default 1, or 2 if `fwhm` is below 2.5.
    degree : int, default 0
        Of the polynomial in the position.
    regularization : float, default 1e-6
        Added to the diagonal of the normal equations of the polynomial.
    subtract_neighbors : bool, default True
        Whether to subtract other stars from the cutouts, as Gaussians; needs their fluxes.
        Positive degrees only.
    neighbors_obj : Table, optional
        The stars to subtract, with columns ``x``, ``y`` and ``flux``; by default all that were
        detected, or those of `obj` that passed the cut of `isolation`.
    subtract_background : bool, None or {"none", "median", "plane"}, default False
        What to subtract from each cutout: nothing, the median of its border (True), or a plane
        through it. Positive degrees only.
    isolation : float or None, default 2
        Stars with a neighbour within so many `fwhm` are not used, unless fewer than ten are left:
        then the most isolated fifth is, at least ten. 0 or None to use all.
    get_raw : bool, default False
        Return the model of photutils instead; `degree` 0 only, ignored otherwise.
    verbose : bool or callable, default False
        Print what is done, or call this function with each message.

    Returns
    -------
    PSFModel
        Or the ``ImagePSF`` of photutils, if `get_raw` asks for it.

    Raises
    ------
    ImportError
        If `degree` is 0 and photutils is not installed, or stars are to be detected without sep_x.
    TypeError, ValueError
        If an argument is not what is described here, or there are too few usable stars.

    References
    ----------
    ``stdpipe.psf.create_psf_model`` of stdpipe 0.4.1, whose models these are; it decides by the
    size of a model whether its stamps are interpolated or summed.
    """
    log = inputs.read_log(verbose)
    degree = inputs.integer("degree", degree, 0)
    regularization = _read_regularization(regularization)
    isolation = 0.0 if isolation is None else _read_finite("isolation", isolation)
    background = _read_background(subtract_background)
    image, bad = _read_image(image, mask)

    table = _detect(image, bad) if obj is None else inputs.read_catalogue("obj", obj)
    fwhm = _read_fwhm(fwhm, table, image.shape)
    size = _read_size(size, fwhm, image.shape)
    oversampling = _read_oversampling(oversampling, fwhm)
    neighbours = _read_neighbours(neighbors_obj, table if obj is None else None)
    if obj is None:
        table = table[suitable_stars(table, image.shape, size)]
    stars = _most_isolated(_read_stars("obj", table), isolation * fwhm)
    if log:
        log(f"PSF of degree {degree} from {len(stars)} stars, FWHM {fwhm:.2f}, size {size} pixels")

    if degree == 0:
        model = _build_constant_psf(image, bad, stars, size, oversampling, log is print)
        return model if get_raw else replace(PSFModel.from_photutils(model), fwhm=fwhm)
    if not inputs.flag("subtract_neighbors", subtract_neighbors):
        neighbours = stars[:0]
    elif neighbours is None:
        neighbours = stars
    return fit_polynomial_psf(
        image, bad, stars, neighbours, fwhm=fwhm, size=size, oversampling=oversampling,
        degree=degree, regularization=regularization, background=background,
    )  # fmt: skip


def _build_constant_psf(
    image: NDArray[np.float64],
    bad: NDArray[np.bool_],
    stars: Stars,
    size: int,
    oversampling: int,
    progress_bar: bool,
) -> Any:
    """Let photutils build an effective PSF; returns its model."""
    try:
        photutils = importlib.import_module("photutils.psf")
    except ImportError as error:
        raise ImportError(
            "a PSF of degree=0 is built by the package photutils: pip install photutils; "
            "other degrees need none"
        ) from error
    # Masked pixels have no weight, but the fits would stumble over a NaN in them.
    finite = np.isfinite(image)
    data = NDData(np.where(finite, image, 0), mask=bad | ~finite)
    cutouts = photutils.extract_stars(data, Table({"x": stars.x, "y": stars.y}), size=size)
    if not len(cutouts):
        raise ValueError(
            f"obj must have stars with their whole stamp of size={size} in the image and with "
            f"unmasked pixels, but none of {len(stars)} is usable"
        )
    builder = photutils.EPSFBuilder(
        oversampling=oversampling, maxiters=10, progress_bar=progress_bar
    )
    return builder(cutouts)[0]


# Which stars


def _detect(image: NDArray[np.float64], bad: NDArray[np.bool_]) -> Table:
    """All objects of an image, with what the choice of stars needs."""
    found = detect_objects(image, bad, threshold=_DETECTION_THRESHOLD)
    if not len(found):
        raise ValueError("image must have stars, but none are detected; pass them as obj")
    stars: Any = measure_objects(found, image, aper=_DETECTION_APER, mask=bad, backend="numpy")
    # The axes are those in the detection image, to whose variances its filter adds 1/2 each.
    variances = np.maximum(stars["a"] ** 2 + stars["b"] ** 2 - 1, 0)
    stars["fwhm"] = 2 * np.sqrt(math.log(2) * variances)
    return stars


def _most_isolated(stars: Stars, distance: float) -> Stars:
    """Stars without a neighbour within a distance; if there are too few, the best of the others."""
    if distance <= 0 or len(stars) < 2:
        return stars
    positions = np.stack([stars.x, stars.y], axis=1)
    nearest = np.asarray(cKDTree(positions).query(positions, k=[2])[0])[:, 0]
    isolated = nearest > distance
    if isolated.sum() >= ENOUGH:
        return stars[isolated]
    return stars[np.argsort(-nearest)[: max(ENOUGH, len(stars) // 5)]]


# What the caller hands over


def _read_image(image: Any, mask: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    pixels = inputs.read_image(image, mask, primitives)
    bad = np.zeros(pixels.shape, np.bool_) if pixels.mask is None else pixels.mask
    return np.asarray(pixels.image, dtype=np.float64), bad


def _read_stars(name: str, table: Table) -> Stars:
    """The rows with a position; what is no finite flux becomes NaN."""
    x, y = (inputs.read_column(name, table, axis, in_pixels=True) for axis in ("x", "y"))
    flux = np.full(len(table), np.nan)
    if "flux" in table.colnames:
        flux = inputs.read_column(name, table, "flux")
    return Stars(x, y, np.where(np.isfinite(flux), flux, np.nan))[np.isfinite(x) & np.isfinite(y)]


def _read_neighbours(neighbors_obj: Any, detected: Table | None) -> Stars | None:
    """The stars to subtract, or None if these are the ones that make the model."""
    if neighbors_obj is not None:
        table = inputs.read_catalogue("neighbors_obj", neighbors_obj, ("x", "y", "flux"))
        return _read_stars("neighbors_obj", table)
    return None if detected is None else _read_stars("obj", detected)


def _read_fwhm(fwhm: Any, table: Table, shape: tuple[int, int]) -> float:
    if fwhm is not None:
        return inputs.read_scale(fwhm, shape)
    if "fwhm" not in table.colnames:
        return _DEFAULT_FWHM
    widths = inputs.read_column("obj", table, "fwhm", in_pixels=True)
    widths = widths[np.isfinite(widths)]
    if not (len(widths) and np.median(widths) > 0):
        raise ValueError(
            "fwhm must be given, for the column 'fwhm' of obj has no positive, finite median"
        )
    return float(np.median(widths))


def _read_size(size: Any, fwhm: float, shape: tuple[int, int]) -> int:
    size = max(15, math.ceil(5 * fwhm)) if size is None else inputs.integer("size", size, 3)
    size += 1 - size % 2
    if size > min(shape):
        raise ValueError(f"size must be at most that of the image, {shape}, got {size} pixels")
    return size


def _read_oversampling(oversampling: Any, fwhm: float) -> int:
    if oversampling is None:
        return 1 if fwhm >= _WELL_SAMPLED_FWHM else 2
    return inputs.integer("oversampling", oversampling, 1)


def _read_finite(name: str, value: Any) -> float:
    number = inputs.real_number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return number


def _read_regularization(value: Any) -> float:
    number = _read_finite("regularization", value)
    if number < 0:
        raise ValueError(f"regularization must not be negative, got {value!r}")
    return number


def _read_background(value: Any) -> Background:
    try:
        return _BACKGROUNDS[value.strip().lower() if isinstance(value, str) else value]
    except (KeyError, TypeError):
        raise ValueError(
            "subtract_background must be a bool or one of 'none', 'median' and 'plane', "
            f"got {value!r}"
        ) from None
