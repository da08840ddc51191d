"""Model images of star fields, and artificial stars in images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .backend import resolve_backend
from .measure import inputs, results
from .measure.containers import ImageLike
from .models.frame import Array


def render_psf_image(
    psf: Any,
    x: ArrayLike,
    y: ArrayLike,
    flux: ArrayLike,
    shape: tuple[int, int],
    *,
    backend: str | None = None,
) -> Array:
    """Make the model image of a star field: the light of its stars, without sky and noise.

    Every star puts a stamp of the PSF, which has a sum of 1, times its flux around the pixel that
    its position is rounded to, halves to even. What lies outside the image is cut off. Every
    pixel sums its stars in the order of y, x and flux: the order of the rows changes no bit.

    Parameters
    ----------
    psf : PSFModel, mapping, str or path, float, or model of photutils
        A dictionary like stdpipe's, the path of a PSFEx file, the FWHM of a Gaussian in pixels, or
        an ``ImagePSF``, ``EPSFModel`` or ``GriddedPSFModel``. Its stamps must have an odd number
        of rows and columns.
    x, y : (N,) arrays
        Positions in 0-based pixel centres.
    flux : (N,) array or float
        Of each star, or of every star, in the units of the image. May be negative. Stars with a
        position or flux that is masked or not finite put no light. May be a Quantity.
    shape : (int, int)
        Height and width of the image.
    backend : {None, "numpy", "cupy"}
        See `gpuphot.resolve_backend`.

    Returns
    -------
    (H, W) float64 array
        On the GPU if `x`, `y` or `flux` is an array there, else a NumPy array; a Quantity, never on
        the GPU, if `flux` has a unit.

    Raises
    ------
    TypeError, ValueError, OSError
        If an argument is not what is described here.
    BackendError
        If the backend asked for cannot compute.

    See Also
    --------
    place_psf_stamps : Add stars to an image.

    References
    ----------
    The stamps are those of ``stdpipe.psf.get_psf_stamp`` of stdpipe 0.4.1: the planes of the
    model, combined for the position and resampled by a cubic spline.
    """
    ops = resolve_backend(backend, x, y, flux).primitives
    height, width = inputs.read_shape("shape", shape)
    unit = inputs.unit_of("flux", flux)
    with ops.device_of(x, y, flux):
        light = _render((height, width), psf, x, y, flux, unit, ops)
        if unit is None and any(map(_on_device, (x, y, flux))):
            return light
        return results.with_unit(ops.to_host(light), unit)


def place_psf_stamps(
    image: ImageLike,
    psf: Any,
    x: ArrayLike,
    y: ArrayLike,
    flux: ArrayLike,
    gain: float | None = None,
    rng: np.random.Generator | int | None = None,
    *,
    backend: str | None = None,
) -> Array:
    """Add artificial stars to a copy of an image.

    Unlike ``stdpipe.psf.place_psf_stamp``, which adds one star to the image that it is given, this
    adds all stars at once and leaves the caller's image as it is.

    Parameters
    ----------
    image : (H, W) array
        Of any real dtype and byte order, a Quantity or an `astropy.nddata.NDData`. Of a masked
        image the data are used; neither its mask nor its uncertainty is kept.
    psf, x, y, flux
        As in `render_psf_image`, the flux in the units of the image, or converted to them.
    gain : float, optional
        In electrons per count. If given, the light has Poisson noise: in each pixel the light of
        all stars together, where it is positive, becomes ``rng.poisson(light * gain) / gain``. The
        image has its own noise already and gets no more.
    rng : numpy.random.Generator, int or None
        Draws the noise, on the host; a seed or anything else that `numpy.random.default_rng`
        takes. None for different noise in every call.
    backend : {None, "numpy", "cupy"}
        See `gpuphot.resolve_backend`.

    Returns
    -------
    (H, W) float64 array
        On the GPU if `image` is an array there, else a NumPy array; a Quantity if the image has a
        unit.

    Raises
    ------
    TypeError, ValueError, OSError
        If an argument is not what is described here.
    BackendError
        If the backend asked for cannot compute.

    See Also
    --------
    render_psf_image : The light of the stars alone.

    References
    ----------
    ``stdpipe.psf.place_psf_stamp`` of stdpipe 0.4.1, called for every star. It draws the noise of
    every star by itself; a sum of Poisson variates is one, and so a draw for each pixel will do.
    """
    ops = resolve_backend(backend, image, x, y, flux).primitives
    gain = None if gain is None else inputs.positive_number("gain", gain)
    generator = inputs.read_rng(rng)
    with ops.device_of(image, x, y, flux):
        pixels = inputs.read_image(image, None, ops)
        result = _render(pixels.shape, psf, x, y, flux, pixels.unit, ops)
        if gain is not None:
            result = ops.to_host(result)
            _make_noisy(result, gain, generator)
        result = ops.to_device(result) if _on_device(image) else ops.to_host(result)
        result += pixels.image
        return results.with_unit(result, pixels.unit)


def _render(
    shape: tuple[int, int], psf: Any, x: Any, y: Any, flux: Any, unit: Any, ops: Any
) -> Array:
    """Light of the stars that the caller describes, in a unit, on the backend's device."""
    model = inputs.read_stamps(psf)
    x, y = inputs.read_points(x, y, ops)
    light = inputs.read_fluxes(flux, len(x), unit, ops)
    return ops.render_psf_image(shape, model, x, y, light)


def _make_noisy(light: NDArray[np.float64], gain: float, rng: np.random.Generator) -> None:
    """Replace the light, where there is any, by a random number of electrons in counts."""
    for row in light:
        bright = row > 0
        try:
            electrons = rng.poisson(row[bright] * gain)
        except ValueError as error:
            raise ValueError(
                f"flux times gain must be less than 9e18 electrons: {error}"
            ) from error
        row[bright] = electrons / gain


def _on_device(values: Any) -> bool:
    return hasattr(values, "__cuda_array_interface__")
