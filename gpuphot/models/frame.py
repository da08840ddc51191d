"""The data that primitives exchange. Arrays live on the device of the backend that made them.

Nothing here computes: a backend prepares a `Frame`, ``measure`` makes the `Positions`, and a
`Measurement` collects the columns of the table to come.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = Any
"""An array of a backend: `numpy.ndarray` or `cupy.ndarray`."""


class Bad:
    """Bits of `Frame.bad`: why a pixel is not an ordinary one."""

    IMAGE = np.uint8(1)  # the image is not finite here; the value stored in `data` is 0
    MASK = np.uint8(2)  # masked by the user
    BACKGROUND = np.uint8(4)  # the user's background is not finite here, nor is `data`
    NOISE = np.uint8(8)  # `err` is not finite here

    MASKED = IMAGE | MASK  # counts as masked
    UNUSABLE = IMAGE | MASK | BACKGROUND  # has no value that backgrounds and centroids could use


@dataclass(frozen=True)
class Frame:
    """Background-subtracted images with their noise, as planes of shape (F, H, W).

    Attributes
    ----------
    data : float64 array
        Background-subtracted pixels; 0 where the image was not finite.
    bad : uint8 array
        `Bad` bits of every pixel.
    err : float64 array
        Standard deviation of every pixel.
    bkg_rms : float64 array or None
        Standard deviation of the background alone, if the background was estimated.
    """

    data: Array
    bad: Array
    err: Array
    bkg_rms: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the planes."""
        return self.data.shape[1:]


@dataclass(frozen=True)
class Positions:
    """Where the N sources are, in 0-based pixel centres.

    Attributes
    ----------
    x, y : (N,) float64 arrays
    valid : (N,) bool array
        False for rows without a finite position; they are not measured.
    frame : (N,) int32 array
        Plane of the `Frame` that each source lies on.
    order : (N,) integer array
        Rows in canonical order: by frame, y and x. What is combined across sources is combined
        in this order, so that no result depends on the order of the rows.
    """

    x: Array
    y: Array
    valid: Array
    frame: Array
    order: Array

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class ApertureSums:
    """Sums over circular apertures, each of shape (N, K); NaN where nothing overlaps the image.

    Attributes
    ----------
    flux : sum of w * data over the pixels of finite image value
    var : sum of w * err**2 over the same pixels
    area : sum of w over the same pixels
    bkg_var : sum of w * bkg_rms**2 over all pixels, or None without `Frame.bkg_rms`
    masked : bool, whether a masked pixel has its centre inside the aperture
    """

    flux: Array
    var: Array
    area: Array
    bkg_var: Array | None
    masked: Array


@dataclass(frozen=True)
class OptimalSums:
    """PSF-weighted sums, each of shape (N,); NaN, and 0 for `npix`, where there is none.

    Attributes
    ----------
    flux : scale of the PSF that fits the pixels best, all of them weighing the same
    fluxerr : standard deviation of `flux` from the pixel noise
    npix : int64, pixels of the fit
    chi2 : reduced chi-squared of the fit
    norm : light of the PSF on these pixels
    singular : bool, whether the pixels cannot tell the source from others of its group
    """

    flux: Array
    fluxerr: Array
    npix: Array
    chi2: Array
    norm: Array
    singular: Array


@dataclass(frozen=True)
class Overlaps:
    """Light of the models of stars in apertures, each of shape (M,).

    Attributes
    ----------
    enclosed : share of the target's own stamp in its aperture; NaN if it has no stamp
    light : flux of all stars in the aperture, the target's own included
    variance : sum of the variances of the neighbours' light in the aperture
    """

    enclosed: Array
    light: Array
    variance: Array


@dataclass(frozen=True)
class Groups:
    """Sources that are linked, directly or through others; arrays of shape (N,).

    Attributes
    ----------
    id : int64, from 1 in the order in which groups appear in the rows; -1 for rows without position
    size : int64, number of members; 0 for rows without position
    """

    id: Array
    size: Array


@dataclass(frozen=True)
class Column:
    """One measured quantity of N sources, still on the device.

    Attributes
    ----------
    values : (N,) array
    description : str
    dtype : dtype that the column of the table will have
    unit : unit of astropy, or None
    """

    values: Array
    description: str
    dtype: type = np.float64
    unit: Any = None


@dataclass
class Measurement:
    """The columns of a measurement, in the order of the table to come.

    Attributes
    ----------
    columns : dict of str to `Column`
    flags : (N,) int64 array
        `gpuphot.flags.Flag` bits raised by the measurement.
    unit : unit of astropy, or None
        Of the image, and so of fluxes.
    """

    flags: Array
    unit: Any = None
    columns: dict[str, Column] = field(default_factory=dict)

    def add(self, name: str, values: Array, description: str, dtype: type = np.float64) -> None:
        """Append a column."""
        self.columns[name] = Column(values, description, dtype)

    def add_flux(self, name: str, values: Array, description: str) -> None:
        """Append a column in the unit of the image."""
        self.columns[name] = Column(values, description, unit=self.unit)

    def __getitem__(self, name: str) -> Array:
        return self.columns[name].values
