"""Detection of objects on an image with SEP, for those who come without a catalogue.

Nothing is measured here but what the detection itself yields; the photometry is in `measure`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from astropy.table import Column, Table
from numpy.typing import NDArray

from gpuphot.measure import inputs
from gpuphot.measure.containers import ImageLike
from gpuphot.numpy_backend import primitives

# Column of the result: (field of SEP's catalogue, type, unit, description).
_COLUMNS = {
    "x": ("x", np.float64, None, "Barycentre, 0-based pixel coordinate"),
    "y": ("y", np.float64, None, "Barycentre, 0-based pixel coordinate"),
    "a": ("a", np.float64, None, "Semi-major axis (rms) in pixels"),
    "b": ("b", np.float64, None, "Semi-minor axis (rms) in pixels"),
    "theta": ("theta", np.float64, "rad", "Angle of the major axis, from x towards y"),
    "peak": ("peak", np.float64, None, "Highest pixel above the background"),
    "sep_flag": ("flag", np.int64, None, "Extraction flags of SEP"),
}


def detect_objects(
    image: ImageLike,
    mask: ImageLike | None = None,
    threshold: float = 3.0,
    bg_size: int = 64,
) -> Table:
    """Find objects above the background of an image.

    The background and its noise are those of `sep_x.Background`; `sep_x.extract` then looks for
    groups of at least five pixels above the threshold, with its other parameters as they are by
    default (matched 3 x 3 filter, deblending, cleaning).

    Parameters
    ----------
    image : (H, W) array
        Of any real dtype and byte order. Non-finite pixels and those masked in a
        `numpy.ma.MaskedArray` count as masked. Of an `astropy.nddata.NDData` the unit and the mask
        are used, of its uncertainty where an inverse variance is not positive and finite.
    mask : (H, W) array, optional
        Non-zero where a pixel is masked. Nothing is detected on masked pixels.
    threshold : float, default 3
        Detection threshold in units of the background noise.
    bg_size : int, default 64
        Size of the background mesh cells in pixels.

    Returns
    -------
    Table
        One row per object, in the order of `sep_x.extract`, with the columns

        ``x``, ``y``
            Barycentre, 0-based pixel coordinates.
        ``a``, ``b``, ``theta``
            Semi-axes (rms) of the object's ellipse in pixels, and the angle of the major axis
            in radians, from x towards y.
        ``peak``
            Highest pixel above the background, in the unit of the image.
        ``sep_flag`` (int64)
            Extraction flags of SEP, not of `gpuphot.Flag`: 1 if the object was deblended, 2 if
            the image's edge cuts it.

    Raises
    ------
    ImportError
        If `sep_x` is not installed.
    TypeError, ValueError
        If an argument is not what is described here, and if SEP gives up, as it does when too
        many pixels lie above a low threshold.
    """
    sep_x = _import_sep()
    threshold = inputs.positive_number("threshold", threshold)
    bg_size = inputs.integer("bg_size", bg_size, 1)
    pixels = inputs.read_image(image, mask, primitives)
    data, bad = _as_sep_reads_it(pixels)
    background = sep_x.Background(data, mask=bad, bw=bg_size, bh=bg_size)
    background.subfrom(data)
    try:
        found = sep_x.extract(data, threshold, err=background.rms(), mask=bad)
    except Exception as error:  # SEP raises nothing more specific
        raise ValueError(f"sep_x.extract fails with threshold={threshold:g}: {error}") from error
    return _to_table(found, pixels.unit)


def _import_sep() -> Any:
    try:
        import sep_x
    except ImportError as error:
        raise ImportError("detection needs the package sep_x: pip install sep-x") from error
    return sep_x


def _as_sep_reads_it(pixels: inputs.Pixels) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A finite copy of the image in native byte order, and where it is masked."""
    data = np.array(pixels.image, dtype=np.float64, order="C")
    bad = ~np.isfinite(data)
    if pixels.mask is not None:
        bad |= pixels.mask
    data[bad] = 0.0  # SEP would detect what is masked, if it is bright enough
    return data, bad


def _to_table(found: NDArray, unit: Any) -> Table:
    table = Table(
        {
            name: Column(found[field].astype(dtype), unit=unit, description=description)
            for name, (field, dtype, unit, description) in _COLUMNS.items()
        }
    )
    table["peak"].unit = unit
    return table
