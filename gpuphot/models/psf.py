"""What a star looks like: planes that are combined for every position, or a Gaussian.

A `PSFModel` says what is to be computed; the stamps are made by the backends (`psf_stamps`). Models
come from what others made: dictionaries and files of PSFEx, models of photutils. Those that are
fitted to an image are made in `psf_builder`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import spline_filter

from . import psf_input
from .polynomial import polynomial_terms

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))

SPLINE_BEFORE, SPLINE_AFTER = 1, 2
"""Nodes that a cubic spline needs before the first and after the last pixel of a plane."""


@dataclass(frozen=True, eq=False)
class PSFModel(Mapping[str, Any]):
    """A point spread function that may vary over the image. It equals only itself.

    It is also a read-only mapping with the entries of stdpipe's PSF dictionaries: ``width``,
    ``height``, ``sampling``, ``ncoeffs``, ``degree``, ``x0``, ``y0``, ``sx``, ``sy``, ``fwhm`` and
    ``data``, as far as the model has them. A Gaussian has no planes and a gridded model no
    polynomial; an unknown FWHM is no entry.

    Attributes
    ----------
    planes : (B, h, w) float64 array or None
        Basis planes on the pixels of the model, read-only; None for a Gaussian.
    degree : int
        Of the polynomial in the position that combines the planes; 0 for a constant model.
    x0, y0, sx, sy : float
        The arguments of the polynomial are ``(x - x0) / sx`` and ``(y - y0) / sy``.
    sampling : float
        Image pixels per model pixel; below 1 if the model is finer than the image.
    width, height : int
        Nominal size in model pixels, which decides the size of interpolated stamps.
    fwhm : float
        In image pixels; NaN if unknown.
    n_sub : int
        Model pixels along the side of an image pixel, if stamps are block sums of them. Stamps of
        a model with 1 are interpolated at the centres of the image pixels.
    grid_x, grid_y : (nx,) and (ny,) float64 arrays or None
        Strictly rising positions of the nodes of a gridded model, read-only. Plane ``iy * nx + ix``
        belongs to the node ``grid_x[ix], grid_y[iy]``; positions between nodes are interpolated
        linearly, and those outside the grid moved to its border.
    """

    planes: NDArray[np.float64] | None = field(repr=False)
    sampling: float
    width: int
    height: int
    fwhm: float = math.nan
    degree: int = 0
    x0: float = 0.0
    y0: float = 0.0
    sx: float = 1.0
    sy: float = 1.0
    n_sub: int = 1
    grid_x: NDArray[np.float64] | None = field(default=None, repr=False)
    grid_y: NDArray[np.float64] | None = field(default=None, repr=False)

    @classmethod
    def gaussian(cls, fwhm: float) -> PSFModel:
        """A circular Gaussian, integrated over the pixels.

        Parameters
        ----------
        fwhm : float
            In pixels.
        """
        if not (math.isfinite(fwhm) and fwhm > 0):
            raise ValueError(f"the FWHM of psf must be a positive number, got {fwhm!r}")
        size = int(gaussian_size(fwhm))
        return cls(planes=None, sampling=1.0, width=size, height=size, fwhm=float(fwhm))

    @classmethod
    def from_psfex_dict(cls, psf: Mapping[str, Any]) -> PSFModel:
        """Model from a dictionary like that of ``stdpipe.psf.load_psf``.

        As in stdpipe, its stamps are block sums of model pixels if a whole number of them fills
        an image pixel and the planes, and interpolated otherwise.

        Parameters
        ----------
        psf : mapping
            Must have ``data``, the planes (or a single one), and ``sampling``; for a ``degree``
            above 0 also ``x0``, ``y0``, ``sx`` and ``sy``. May have ``width``, ``height``,
            ``ncoeffs`` and ``fwhm``.

        Raises
        ------
        ValueError
            If an entry is missing or not what it should be.
        """
        return cls(**psf_input.fields_of_psfex_dict(psf))

    @classmethod
    def from_photutils(cls, model: Any) -> PSFModel:
        """Model from an ``ImagePSF``, ``GriddedPSFModel`` or ``EPSFModel`` of photutils.

        These are effective PSFs: their samples are already integrals over image pixels, and the
        stamps are interpolated at the centres of the pixels.

        Parameters
        ----------
        model : object
            Read are its ``data``, ``oversampling``, ``origin`` and ``grid_xypos``. Its parameters
            (flux and position) are not.

        Raises
        ------
        ValueError
            If the oversampling differs between the axes, the origin is not the centre of the
            data, the data are not finite planes, or the grid is not a full rectangle.
        """
        return cls(**psf_input.fields_of_photutils(model))

    @property
    def stamp_shape(self) -> tuple[int, int]:
        """Rows and columns of a stamp; its centre lies on pixel (rows // 2, columns // 2)."""
        if self.planes is not None and self.n_sub > 1:
            return self.planes.shape[1] // self.n_sub, self.planes.shape[2] // self.n_sub
        return (
            2 * math.floor(self.height * self.sampling / 2) + 1,
            2 * math.floor(self.width * self.sampling / 2) + 1,
        )

    def core_shape(self, half_size: int | None, own_widths: bool) -> tuple[int, int]:
        """Rows and columns of the stamps up to `half_size` pixels from the central one.

        None is the whole stamp. Gaussians with `own_widths` have stamps of all sizes: the half
        size alone decides.
        """
        rows, columns = self.stamp_shape
        if half_size is None:
            return rows, columns
        if own_widths:
            return 2 * half_size + 1, 2 * half_size + 1
        return 2 * min(half_size, rows // 2) + 1, 2 * min(half_size, columns // 2) + 1

    @property
    def has_central_pixel(self) -> bool:
        """Whether stamps have an odd number of rows and of columns, as those of a fit must."""
        return all(length % 2 == 1 for length in self.stamp_shape)

    def weights(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights of the planes at positions.

        Parameters
        ----------
        x, y : (N,) float64 arrays
            Positions in the image.

        Returns
        -------
        (N, B) float64 array
            Terms of the polynomial, the power of x rising first: 1, x, x^2, ..., y, x y, ...; or
            the bilinear weights of the nodes of a grid.
        """
        if self.grid_x is not None and self.grid_y is not None:
            weights_y, weights_x = _node_weights(self.grid_y, y), _node_weights(self.grid_x, x)
            return (weights_y[:, :, None] * weights_x[:, None, :]).reshape(len(x), -1)
        return polynomial_terms((x - self.x0) / self.sx, (y - self.y0) / self.sy, self.degree)

    def __getitem__(self, key: str) -> Any:
        return self._entries()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What was pickled or copied is read-only again, which NumPy forgets."""
        self.__dict__.update(state)
        for array in (self.planes, self.grid_x, self.grid_y):
            if array is not None:
                array.flags.writeable = False

    def _entries(self) -> dict[str, Any]:
        entries = {
            "width": self.width,
            "height": self.height,
            "sampling": self.sampling,
            "fwhm": None if math.isnan(self.fwhm) else self.fwhm,
            "data": self.planes,
        }
        if self.planes is not None and self.grid_x is None:
            names = ("degree", "x0", "y0", "sx", "sy")
            entries |= {"ncoeffs": len(self.planes)} | {name: getattr(self, name) for name in names}
        return {name: value for name, value in entries.items() if value is not None}


def gaussian_size(fwhm: Any) -> Any:
    """Rows and columns of a Gaussian's stamp: whole pixels up to three FWHM from the centre.

    Parameters
    ----------
    fwhm : float or array of either backend
        In pixels.

    Returns
    -------
    float or array
        Whole numbers, odd.
    """
    return 1 - 2 * (-3 * fwhm // 1)


def as_psf_model(psf: Any) -> PSFModel:
    """Model from whatever may stand for a PSF.

    Parameters
    ----------
    psf : PSFModel, mapping, str or path, float, or model of photutils
        A dictionary like stdpipe's, the path of a PSFEx file, the FWHM of a Gaussian in pixels, or
        an ``ImagePSF`` or ``GriddedPSFModel``.

    Returns
    -------
    PSFModel

    Raises
    ------
    TypeError
        If it is something else.
    ValueError, OSError
        If there is something wrong with it.
    """
    if isinstance(psf, PSFModel):
        return psf
    if isinstance(psf, Mapping):
        return PSFModel.from_psfex_dict(psf)
    if isinstance(psf, (str, os.PathLike)):
        return load_psf(psf)
    if isinstance(psf, (int, float, np.integer, np.floating)) and not isinstance(psf, bool):
        return PSFModel.gaussian(float(psf))
    if hasattr(psf, "data") and hasattr(psf, "oversampling"):
        return PSFModel.from_photutils(psf)
    raise TypeError(
        "psf must be a PSFModel, a dictionary like stdpipe's, the path of a PSFEx file, a FWHM in "
        f"pixels, or an ImagePSF or GriddedPSFModel of photutils, got {type(psf).__name__}"
    )


def load_psf(path: str | os.PathLike[str]) -> PSFModel:
    """Read a model from a ``.psf`` file of PSFEx.

    The model is in the first extension: the planes in the first row and column of its table, and
    what combines them in its header, see the appendices of the documentation of PSFEx [1]_. Its
    POLZERO1 and POLZERO2 count pixels from 1; as in stdpipe, they are compared with positions
    that count from 0, an offset of one pixel in the argument of a slowly varying polynomial.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    PSFModel

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is not a FITS file, or holds no model or one that contradicts itself.

    References
    ----------
    .. [1] https://psfex.readthedocs.io
    """
    with open(path, "rb"):
        pass  # What cannot be opened is an error of its own
    try:
        return PSFModel.from_psfex_dict(psf_input.read_psfex_file(path))
    except Exception as error:  # Broken FITS files raise all kinds of exceptions
        raise ValueError(f"psf file {os.fspath(path)!r} cannot be used: {error}") from error


def _node_weights(nodes: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of linear interpolation between nodes along one axis; (N, n nodes)."""
    return np.stack([np.interp(v, nodes, unit) for unit in np.eye(len(nodes))], axis=1)


def spline_coefficients(planes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic B-spline coefficients of basis planes, mirrored at the edges.

    Parameters
    ----------
    planes : (B, h, w) float64 array

    Returns
    -------
    (B, h + 3, w + 3) float64 array
        With `SPLINE_BEFORE` nodes more at the beginning and `SPLINE_AFTER` at the end of an axis.
    """
    coefficients = [spline_filter(plane, 3, np.float64, mode="mirror") for plane in planes]
    margin = (SPLINE_BEFORE, SPLINE_AFTER)
    return np.pad(np.stack(coefficients), ((0, 0), margin, margin), mode="reflect")
