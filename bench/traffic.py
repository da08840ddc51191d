"""What kernels must do at least: bytes to move and operations, counted by hand from their source.

A kernel's unit is a source or a pixel. Its bytes are those of the pixels that a unit reads or
writes and those of the unit's own columns. An addition, multiplication, comparison, minimum,
conversion or shuffle in double precision is one operation, a division, square root or hypotenuse
10, an arc tangent or error function 50, about what they expand to; integer arithmetic is not
counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

DIVISION = 10
ARC_TANGENT = 50
ERROR_FUNCTION = 50
CLIPPINGS = 4
"""Times that statistics are computed while a sample is clipped; typical, not a bound."""
POLYNOMIAL_FITS = 3
"""Fits of an annulus, the first included; typical too."""
SELECTION_PASSES = 16
"""Reads of a sample that the streaming kernels need for a median: two ranks of eight digits."""


@dataclass(frozen=True)
class Case:
    """The example that kernels are counted and measured for.

    Attributes
    ----------
    n_sources, side : int
        Side of a square image in pixels.
    radius : float
    annulus, wide_annulus : (float, float)
        One that shared memory holds and one that it does not.
    half_size, n_iter : int
        Of the centroids' boxes.
    cell, large_cell : int
        Sides of mesh cells, likewise.
    stamp : int
        Side of the stamps of a PSF, and of its planes, which are sampled like the image.
    psf_degree : int
        Of the polynomial that combines the planes.
    fwhm : float
        Of a Gaussian PSF.
    """

    n_sources: int = 1_000_000
    side: int = 4096
    radius: float = 5.0
    annulus: tuple[float, float] = (10.0, 15.0)
    wide_annulus: tuple[float, float] = (30.0, 50.0)
    half_size: int = 2
    n_iter: int = 3
    cell: int = 64
    large_cell: int = 200
    stamp: int = 25
    psf_degree: int = 2
    fwhm: float = 3.0

    @property
    def n_pixels(self) -> int:
        return self.side**2


@dataclass(frozen=True)
class Work:
    """What one source or pixel takes.

    Attributes
    ----------
    unit : {"source", "pixel"}
    pixels : float
        Pixels of the image that a unit needs.
    bytes_per_pixel : float
    own_bytes : float
        What is read and written once for each unit.
    operations : float
    shared : int
        Bytes of dynamic shared memory of a block.
    """

    unit: str
    pixels: float
    bytes_per_pixel: float
    own_bytes: float
    operations: float
    shared: int = 0

    @property
    def bytes_per_unit(self) -> float:
        """What a unit loads and stores; neighbours may find its pixels in a cache."""
        return self.pixels * self.bytes_per_pixel + self.own_bytes

    def n_units(self, case: Case) -> int:
        """Sources or pixels of a case."""
        return case.n_sources if self.unit == "source" else case.n_pixels

    def least_bytes(self, case: Case) -> float:
        """What must be moved if every pixel is read once however many sources share it.

        Sources lie at random, so of H W pixels H W (1 - exp(-n pixels / (H W))) are needed.
        """
        if self.unit == "pixel":
            return case.n_pixels * self.bytes_per_unit
        covered = -math.expm1(-case.n_sources * self.pixels / case.n_pixels) * case.n_pixels
        return covered * self.bytes_per_pixel + case.n_sources * self.own_bytes


def disk_pixels(r: float) -> float:
    """Pixels that a disk at a random place overlaps, on average."""
    return math.pi * r * r + 4 * r + 1


def rim_pixels(r: float) -> float:
    """Pixels that its circle crosses: the circle crosses as many grid lines."""
    return 8 * r


def ring_pixels(annulus: tuple[float, float]) -> float:
    """Pixels with their centre in an annulus."""
    return math.pi * (annulus[1] ** 2 - annulus[0] ** 2)


def box_pixels(r_out: float) -> float:
    """Candidates for an annulus: the box around it and a pixel more on every side."""
    return (2 * r_out + 2) ** 2


def padded(n: float) -> int:
    """Values that are sorted for so many pixels: the next power of two."""
    return 1 << max(0, math.floor(n) - 1).bit_length()


def sort_operations(n: int) -> float:
    """Comparisons of a bitonic sort of a power of two."""
    levels = n.bit_length() - 1
    return n / 4 * levels * (levels + 1)


POSITION = 8 + 8 + 4 + 1  # x, y, frame, valid
MOVED = 4 * 8 + 4 + 1  # x and y read and written, frame, valid
PIXEL_TEST = 12  # edges, the nearest corner's distance, comparison
SPLINE = 2 * (14 + 23 + 5 * DIVISION) + 4 * 8 + 4 * 2 + 2  # weights of two axes, 4 x 4 nodes, clip


def _aperture_sums(case: Case) -> Work:
    r = case.radius
    n_edges = math.ceil(2 * r) + 2
    edge = 9 + DIVISION + ARC_TANGENT
    corner = 8
    return Work(
        unit="source",
        pixels=disk_pixels(r),
        bytes_per_pixel=3 * 8 + 1,  # data, err, bkg_rms, bad
        own_bytes=POSITION + 8 + 4 * 8 + 1,  # radius; flux, var, area, bkg_var, masked
        operations=(2 * r + 2) ** 2 * PIXEL_TEST
        + disk_pixels(r) * (8 + 14)  # the farthest corner's distance; sums
        + rim_pixels(r) * (4 * corner + 3)
        + 2 * n_edges * edge
        + 4 * 5 * 32,  # sums over the warp
        shared=4 * 2 * n_edges * 24,
    )


def _com_centroid(case: Case) -> Work:
    n = (2 * case.half_size + 1) ** 2
    step = 6 * n + 3 * 5 * 32 + 4 * DIVISION
    return Work(
        unit="source",
        pixels=n,
        bytes_per_pixel=8 + 1,
        own_bytes=MOVED,
        operations=case.n_iter * step,
    )


def _annulus_mode(case: Case) -> Work:
    n = ring_pixels(case.annulus)
    # The kernel makes room for squares of pixels, not centres: half a diagonal on either side.
    room = padded(ring_pixels((case.annulus[0] - 0.7072, case.annulus[1] + 0.7072)))
    return Work(
        unit="source",
        pixels=n,
        bytes_per_pixel=8 + 1,
        own_bytes=POSITION + 8,
        operations=box_pixels(case.annulus[1]) * PIXEL_TEST
        + sort_operations(padded(n))
        + n * (1 + 3 * CLIPPINGS),
        shared=8 * room,
    )


def _annulus_mode_streaming(case: Case) -> Work:
    n = ring_pixels(case.wide_annulus)
    candidates = box_pixels(case.wide_annulus[1]) * PIXEL_TEST
    return Work(
        unit="source",
        pixels=n,
        bytes_per_pixel=8 + 1,
        own_bytes=POSITION + 8,
        # Reference, its deviations, clipping: a pass for sums each, and those for the median.
        operations=(2 + CLIPPINGS) * ((1 + SELECTION_PASSES) * (candidates + 3 * n) + 4 * n),
    )


def _annulus_polynomial(case: Case, order: int) -> Work:
    n = ring_pixels(case.annulus)
    candidates = box_pixels(case.annulus[1]) * (PIXEL_TEST + DIVISION)
    evaluation = {1: 4, 2: 13}[order]
    # Relative value and position; monomials, their sums, and twice the terms for the right side.
    fit = {1: 8 + 6 + 2 * 3, 2: 40 + 15 + 2 * 6}[order]
    rejections = POLYNOMIAL_FITS - 1
    # Each fit and each round of residuals asks all earlier fits whether a pixel was kept.
    earlier = sum(range(POLYNOMIAL_FITS)) + sum(range(rejections))
    return Work(
        unit="source",
        pixels=n,
        bytes_per_pixel=8 + 1,
        own_bytes=POSITION + 8,
        operations=(POLYNOMIAL_FITS + rejections) * (candidates + 5 * n)
        + earlier * n * (evaluation + 2)
        + POLYNOMIAL_FITS * n * fit
        + rejections * n * (evaluation + 6),
    )


def _mesh_statistics(case: Case) -> Work:
    n = case.cell**2
    return Work(
        unit="pixel",
        pixels=1,
        bytes_per_pixel=8 + 1,
        own_bytes=2 * 8 / n,
        operations=sort_operations(padded(n)) / n + 1 + 3 * CLIPPINGS,
        shared=8 * padded(n),
    )


def _mesh_statistics_streaming(case: Case) -> Work:
    return Work(
        unit="pixel",
        pixels=1,
        bytes_per_pixel=8 + 1,
        own_bytes=2 * 8 / case.large_cell**2,
        operations=(3 + CLIPPINGS) * ((1 + SELECTION_PASSES) * 3 + 4),
    )


def _mark_bad_pixels(case: Case) -> Work:
    return Work("pixel", pixels=1, bytes_per_pixel=8 + 1, own_bytes=0, operations=1)


def _subtract_background(case: Case) -> Work:
    # Data and bits are read and written, both maps of the noise are written: with a gain.
    bytes_per_pixel = 2 * 8 + 2 * 1 + 2 * 8
    operations = 2 * SPLINE + 5 + 2 * DIVISION
    return Work("pixel", 1, bytes_per_pixel, own_bytes=0, operations=operations)


def _evaluate_surface(case: Case) -> Work:
    return Work("pixel", pixels=1, bytes_per_pixel=8, own_bytes=0, operations=SPLINE)


def _psf_stamps(case: Case) -> Work:
    n, taps = case.stamp, 4
    span = n + 3
    n_planes = (case.psf_degree + 1) * (case.psf_degree + 2) // 2
    combination = 2 * n_planes * span**2
    resampling = 2 * taps * (n * span + n * n)
    weight = 12 + DIVISION
    return Work(
        unit="source",
        pixels=0,
        bytes_per_pixel=0,
        own_bytes=2 * 8 + 8 * n**2,  # The planes are the same for all and stay in the cache
        operations=combination
        + resampling
        + 2 * n * taps * (weight + DIVISION)
        + n * n * (1 + DIVISION),
        shared=8 * (n_planes + n * (taps + span) + n * taps + span**2) + 4 * 2 * n,
    )


def _gaussian_stamps(case: Case) -> Work:
    n = 2 * math.ceil(3 * case.fwhm) + 1
    integral = 2 * (ERROR_FUNCTION + DIVISION) + 8
    return Work(
        unit="source",
        pixels=0,
        bytes_per_pixel=0,
        own_bytes=2 * 8 + 8 * n**2,
        operations=2 * n * (integral + 1 + DIVISION) + n * n,
        shared=2 * n * 8,
    )


def _render_tiles(case: Case) -> Work:
    n = case.stamp
    # Row and column of the stamp, the flux; the image is read and written once for all stars.
    own_bytes = 8 * n**2 + 2 * 4 + 8
    return Work("source", pixels=0, bytes_per_pixel=0, own_bytes=own_bytes, operations=2 * n**2)


WORK: dict[str, Callable[[Case], Work]] = {
    "mark_bad_pixels": _mark_bad_pixels,
    "subtract_background": _subtract_background,
    "evaluate_surface": _evaluate_surface,
    "mesh_statistics": _mesh_statistics,
    "mesh_statistics_streaming": _mesh_statistics_streaming,
    "com_centroid": _com_centroid,
    "annulus_mode": _annulus_mode,
    "annulus_mode_streaming": _annulus_mode_streaming,
    "annulus_plane": lambda case: _annulus_polynomial(case, 1),
    "annulus_quadratic": lambda case: _annulus_polynomial(case, 2),
    "aperture_sums": _aperture_sums,
    "psf_stamps": _psf_stamps,
    "gaussian_stamps": _gaussian_stamps,
    "render_tiles": _render_tiles,
}
"""By kernel of the registry: what its unit takes in a case."""
