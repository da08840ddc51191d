"""What kernels must do at least: bytes to move and operations, counted by hand from their source.

A kernel's unit is a source, a member of a group or a pixel. Its bytes are those of the pixels that
a unit reads or writes and those of the unit's own columns; what it reads of others is counted
apart, binary searches are not counted. An addition, multiplication, comparison, minimum, conversion
or shuffle in double precision is one operation, a division, square root or hypotenuse 10, an
exponential 30, an arc tangent or error function 50, about what they expand to; all of these are
half as much in single precision; integer arithmetic is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpuphot.cupy_backend.kernels.registry import KERNELS
from gpuphot.models.groups import CELL, CORE, MAX_DENSE
from gpuphot.models.overlap import box_half_size
from gpuphot.models.psf import gaussian_size
from gpuphot.models.sep import FWHM_PER_SIGMA, MAX_FIT_GROUP

DIVISION = 10
EXPONENTIAL = 30
ARC_TANGENT = 50
ERROR_FUNCTION = 50
CLIPPINGS = 4
"""Times that statistics are computed while a sample is clipped; typical, not a bound."""
POLYNOMIAL_FITS = 3
"""Fits of an annulus, the first included; typical too."""
SELECTION_PASSES = 16
"""Reads of a sample that the streaming kernels need for a median: two ranks of eight digits."""
PSF_STEPS = 15
"""Small steps of one step of a centroid with a PSF; typical where positions are 0.2 pixels
off and stars are crowded."""
SWEEPS = 3
"""Rounds that improve the solution for groups, each of which is solved at once; typical, too."""
WINDOW_STEPS = 13
PSF_WINDOW_STEPS = 16
"""Steps of windowed centroids; typical where stars are crowded."""
ROUNDS = 3
"""How often the blocks of large groups are fitted."""
POSITIVE_SWEEPS = 10
"""Rounds that the fluxes of a group take until they stay, none of them negative; typical."""
LOESS_STEPS = 4.5
"""Circles in which samples are counted until one holds just those wanted; typical."""
LOESS_COUNTED, LOESS_VISITED = 2.1, 1.4
"""Samples that each looks at, and that a fit looks at, of every one wanted; typical."""
LOESS_RUNS = 1.4
"""How often the runs of samples that a circle may hold are found anew; typical."""
OWN_SHARE = 0.5
"""Part of a member's circle that is not an earlier member's; typical where circles have the radius
up to which sources are linked."""


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
    clip : float
        Radius of the circle of optimal sums.
    cut_stamps : bool
        Whether of a stamp only the box around that circle is stored.
    link_radius : float
        Sources up to it apart are in one group. The default links as many as 2 FWHM do on XL.
    n_members : int
        Sources that are not alone in their group.
    neighbours : float
        Members of a member's group whose stamps overlap its own, on average.
    system, core : float
        Members of the system of equations that a member is solved in, and those that are solved
        there: both the whole group if that is small.
    subpix : int
        Sub-pixels along the side of a pixel, by which the light of models is weighed.
    nearest : int
        Samples that a value of a smooth field is fitted to.
    passes, group_passes : float
        Of PSF fits, of single sources and of groups. The default is that of the default field.
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
    clip: float = 3.0
    cut_stamps: bool = False
    link_radius: float = 3.0
    n_members: int = 820_000
    neighbours: float = 5.4
    system: float = 6.4
    core: float = 6.4
    subpix: int = 4
    nearest: int = 100
    passes: float = 10
    group_passes: float = 12

    @property
    def n_pixels(self) -> int:
        return self.side**2

    @property
    def density(self) -> float:
        """Sources per pixel."""
        return self.n_sources / self.n_pixels

    @property
    def n_planes(self) -> int:
        """Of the PSF."""
        return (self.psf_degree + 1) * (self.psf_degree + 2) // 2

    @property
    def gaussian_stamp(self) -> int:
        """Side of the stamp of a Gaussian."""
        return int(gaussian_size(self.fwhm))

    def stored(self, stamp: int) -> int:
        """Side of what is stored of a stamp."""
        return min(stamp, 2 * math.floor(self.clip) + 1) if self.cut_stamps else stamp

    @property
    def window(self) -> float:
        """Radius of the window of SEP's centroids."""
        return 4 * self.fwhm / FWHM_PER_SIGMA

    @property
    def fit_reach(self) -> float:
        """Where a star is as faint as 1 % of its peak: twice as far apart, they are linked."""
        return self.fwhm / 2 * math.sqrt(math.log2(100))

    def with_groups(self, sizes: NDArray[np.int64], half: int | None = None) -> Case:
        """The case of the members alone, fitted by Gaussians.

        Parameters
        ----------
        sizes : (n_sources,) integer array
            Of each source's group; some must be above 1. Large groups are taken for as dense as
            all sources.
        half : int, optional
            Half the side of the squares that may overlap; by default that of the stamps.
        """
        size = sizes[sizes > 1]
        half = self.gaussian_stamp // 2 if half is None else half
        block = CORE + 2 * max(3 * half, CORE)

        def mean(of_group: NDArray[np.int64], pixels: int) -> float:
            return float(np.where(size > MAX_DENSE, self.density * pixels, of_group).mean())

        return replace(
            self,
            n_sources=len(size),
            n_members=len(size),
            neighbours=mean(size - 1, (4 * half + 1) ** 2),
            system=mean(size, block**2),
            core=mean(size, CORE**2),
        )

    @property
    def core_side(self) -> float:
        """Side of the core of a block where PSFs are fitted: it has few enough members."""
        side = float(CORE)
        while self.density * side**2 > MAX_FIT_GROUP / 2:
            side /= 2
        return side

    @property
    def block_side(self) -> float:
        """Side of such a block if it has room for all members around the core."""
        return self.core_side + 2 * 4 * self.fit_reach

    def with_fits(self, sizes: NDArray[np.int64], n_iter: NDArray[np.int64]) -> Case:
        """The case of PSF fits of groups.

        Parameters
        ----------
        sizes, n_iter : (n_sources,) integer arrays
            Of each source's group, and the passes of its fit.
        """
        in_group, large = sizes > 1, sizes > MAX_FIT_GROUP
        of_block = min(MAX_FIT_GROUP, self.density * self.block_side**2)
        of_core = self.density * self.core_side**2

        def mean(values: NDArray, of: NDArray[np.bool_]) -> float:
            return float(values[of].mean()) if of.any() else 1.0

        return replace(
            self,
            link_radius=2 * self.fit_reach,
            n_members=int(in_group.sum()),
            system=mean(np.where(large, of_block, sizes), in_group),
            core=mean(np.where(large, of_core, sizes), in_group),
            passes=mean(n_iter, ~in_group),
            group_passes=mean(n_iter, in_group),
        )


@dataclass(frozen=True)
class Work:
    """What one source or pixel takes.

    Attributes
    ----------
    unit : {"source", "member", "single", "pixel"}
        A single source is no member of a group.
    pixels : float
        Pixels of the image that a unit needs.
    bytes_per_pixel : float
    own_bytes : float
        What is read and written once for each unit.
    operations : float
    cached_bytes : float
        Read besides, and in a cache at best: the planes of a PSF, columns and stamps of others,
        matrices that are worked on.
    shared : int
        Bytes of dynamic shared memory of a block.
    """

    unit: str
    pixels: float
    bytes_per_pixel: float
    own_bytes: float
    operations: float
    cached_bytes: float = 0
    shared: int = 0

    @property
    def bytes_per_unit(self) -> float:
        """What a unit loads and stores; neighbours may find its pixels in a cache."""
        return self.pixels * self.bytes_per_pixel + self.own_bytes

    def n_units(self, case: Case) -> int:
        """Sources, members, single sources or pixels of a case."""
        number = {
            "source": case.n_sources,
            "member": case.n_members,
            "single": case.n_sources - case.n_members,
            "pixel": case.n_pixels,
        }
        return number[self.unit]

    def least_bytes(self, case: Case) -> float:
        """What must be moved if every pixel is read once however many sources share it.

        Sources lie at random, so of H W pixels H W (1 - exp(-n pixels / (H W))) are needed.
        """
        n = self.n_units(case)
        if self.unit == "pixel":
            return n * self.bytes_per_unit
        covered = -math.expm1(-n * self.pixels / case.n_pixels) * case.n_pixels
        return covered * self.bytes_per_pixel + n * self.own_bytes


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


WARP_SUM = 5 * 32
BLOCK_SUM = 4 * WARP_SUM + 128 * 4  # four warps, then every thread adds up theirs
POSITION = 8 + 8 + 4 + 1  # x, y, frame, valid
MOVED = 4 * 8 + 4 + 1  # x and y read and written, frame, valid
PIXEL_TEST = 12  # edges, the nearest corner's distance, comparison
CIRCLE = 1 + DIVISION + 1  # from a square to its root, compared
MEMBER = 2 * 8 + 5 * 4 + 8 + 8  # position, frame, pixel, half sizes; background, list of neighbours
OTHER_MEMBER = 2 * 8 + 4 * 4  # position, pixel, half sizes
MEMBERS_CIRCLE = 2 * 4 + 3 + DIVISION + 1  # two distances, converted and squared, their root
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
        + 4 * WARP_SUM,
        shared=4 * 2 * n_edges * 24,
    )


def _com_centroid(case: Case) -> Work:
    n = (2 * case.half_size + 1) ** 2
    step = 6 * n + 3 * WARP_SUM + 4 * DIVISION
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


@dataclass(frozen=True)
class Resampling:
    """What a block takes to make the pixels of a stamp from planes, all of them at once."""

    operations: float
    cached_bytes: float
    shared: int


def resampling(case: Case) -> Resampling:
    """Of a PSF with planes that are sampled like the image."""
    n, taps = case.stamp, 4
    span = n + 3
    weight = 12 + DIVISION
    of_planes = 2 * (2 + DIVISION) + case.n_planes * (3 + 2 * DIVISION)
    combination = 2 * case.n_planes * span**2
    tables = 2 * n * taps * (weight + DIVISION)
    doubles = case.n_planes + n * (taps + span) + n * taps + span**2
    return Resampling(
        operations=of_planes + combination + tables + 2 * taps * (n * span + n * n),
        cached_bytes=8 * case.n_planes * span**2,
        shared=8 * doubles + 4 * (case.n_planes + 2 * n),
    )


def profile_operations(n: int) -> float:
    """Of the profile of a Gaussian over so many pixels."""
    # Both ends of a pixel and of the stamp; their difference.
    return n * (2 * (4 + 2 + ERROR_FUNCTION) + 1 + DIVISION) + 2 * (2 + ERROR_FUNCTION) + 1


def _psf_stamps(case: Case) -> Work:
    pixels, stored = case.stamp**2, case.stored(case.stamp) ** 2
    planes = resampling(case)
    return Work(
        unit="source",
        pixels=0,
        bytes_per_pixel=0,
        own_bytes=2 * 8 + 8 * stored,
        operations=planes.operations + pixels + BLOCK_SUM + stored * DIVISION,
        cached_bytes=planes.cached_bytes,
        shared=planes.shared,
    )


def _gaussian_stamps(case: Case) -> Work:
    n = case.stored(case.gaussian_stamp)
    return Work(
        unit="source",
        pixels=0,
        bytes_per_pixel=0,
        own_bytes=2 * 8 + 8 * n**2,
        operations=2 * profile_operations(n) + n * n,
        shared=2 * n * 8,
    )


def _render_tiles(case: Case) -> Work:
    n = case.stamp
    # Row and column of the stamp, the flux; the image is read and written once for all stars.
    own_bytes = 8 * n**2 + 2 * 4 + 8
    return Work("source", pixels=0, bytes_per_pixel=0, own_bytes=own_bytes, operations=2 * n**2)


def _centroid(n: int, stamp: float, usable: float, sums: float) -> Work:
    """One step with a stamp of n x n pixels, given what it takes to make it and to sum it up.

    `usable` is what it takes to count usable pixels.
    """
    pixel = 1 + 1 + 2 * 4  # light times weight, its sum and moments
    step = stamp + n * n * pixel + sums + 2 * DIVISION + 6
    return Work(
        unit="source",
        pixels=n * n,
        bytes_per_pixel=8 + 1,
        own_bytes=MOVED,
        operations=PSF_STEPS * step + usable,
    )


def _gaussian_centroid(case: Case) -> Work:
    n = case.gaussian_stamp
    stamp = 2 * profile_operations(n) + n * n
    work = _centroid(n, stamp, 2 * n * n + WARP_SUM, 3 * WARP_SUM)
    return replace(work, shared=4 * 2 * n * 8)


def _psf_centroid(case: Case) -> Work:
    n, planes = case.stamp, resampling(case)
    # Each of the four warps counts the usable pixels.
    work = _centroid(n, planes.operations, 4 * (2 * n * n + WARP_SUM), 3 * BLOCK_SUM)
    return replace(work, cached_bytes=PSF_STEPS * planes.cached_bytes, shared=planes.shared)


def _optimal_sums(case: Case) -> Work:
    box = (2 * math.floor(case.clip) + 1) ** 2
    n = ring_pixels((0, case.clip))
    fit = 1 + 2 + 1 + 2 + 3  # value; sums of P P, P, P D and P P V
    misfit = 1 + 2 + DIVISION + 2
    return Work(
        unit="source",
        pixels=n,
        bytes_per_pixel=2 * 8 + 1,  # data, err, bad
        own_bytes=POSITION + 8 + 8 * box + 5 * 8,  # background, stamp; the sums
        operations=2 * (box * CIRCLE + n) + n * (fit + misfit) + 6 * WARP_SUM,
    )


# ---- Groups, fitted by Gaussians


def _link_cells(case: Case) -> Work:
    # Half of the 24 cells around a cell. The first source of each cell does it all.
    of_cell = case.density * (CELL * case.link_radius) ** 2
    pairs, cells = 12 * of_cell, -math.expm1(-of_cell) / of_cell
    box = 5 * WARP_SUM + 4 * (DIVISION + 5)
    return Work(
        unit="source",
        pixels=0,
        bytes_per_pixel=0,
        own_bytes=4 + 8 + 3 * 8 + 2 * 4,  # grid, cell; position, reach; parent, read and written
        operations=pairs * 8 + cells * box,
        cached_bytes=pairs * 3 * 8,
    )


def _flatten_links(case: Case) -> Work:
    return Work("source", 0, 0, own_bytes=2 * 4, operations=0, cached_bytes=4)


def _list_neighbours(case: Case) -> Work:
    # Two launches, of which the second writes the list.
    own_bytes = 7 * 4 + 8 + 3 * 4 + 4 * case.neighbours / 2
    return Work("member", 0, 0, own_bytes, operations=0, cached_bytes=4 * case.neighbours)


def group_pixels(case: Case) -> float:
    """Pixels of its group on a member's stamp."""
    own = OWN_SHARE * ring_pixels((0, case.clip))
    return min(case.gaussian_stamp**2, own * (case.neighbours + 1))


def _member_sums(case: Case) -> Work:
    n, of_group = case.gaussian_stamp**2, group_pixels(case)
    # A pixel asks all neighbours for their circle until it finds itself in one.
    circles = n + case.neighbours * (n - of_group / 2)
    sums = 1 + 2 + 3 + 2 + 1 + 2  # V; P P, P P V, P D, P, P V
    own = OWN_SHARE * ring_pixels((0, case.clip)) * 3
    return Work(
        unit="member",
        pixels=n,
        bytes_per_pixel=2 * 8 + 1,
        # Neighbours; the stamp, which pixels are the group's; sums.
        own_bytes=MEMBER + 4 * case.neighbours + (8 + 1) * n + 8 * 8,
        operations=circles * MEMBERS_CIRCLE + 2 * n + of_group * sums + own + 8 * BLOCK_SUM,
        cached_bytes=case.neighbours * OTHER_MEMBER,
    )


def _pair_products(case: Case) -> Work:
    n = case.gaussian_stamp
    # Each pair once. Neighbours in a small group are a linking radius away along either axis.
    pairs, overlap = case.neighbours / 2, (n - min(case.link_radius, n)) ** 2
    of_group = min(overlap, group_pixels(case))
    return Work(
        unit="member",
        pixels=group_pixels(case),
        bytes_per_pixel=8,
        # Frame, pixel and half sizes; neighbours, two products with each; stamp and its pixels.
        own_bytes=5 * 4 + 8 + (4 + 2 * 8) * case.neighbours + (8 + 1) * n**2,
        operations=pairs * (of_group * (2 + 3) + 2 * WARP_SUM),
        cached_bytes=pairs * (8 * overlap + 2 * 4 + 2 * 8),
    )


def _group_residuals(case: Case) -> Work:
    n, circle = case.gaussian_stamp**2, ring_pixels((0, case.clip))
    own = OWN_SHARE * circle
    # A pixel of the circle asks those before the member for theirs.
    circles = n + circle * (1 + case.neighbours / 2)
    residual = 1 + 2 * (1 + case.neighbours) + 2 + DIVISION + 1
    return Work(
        unit="member",
        pixels=circle,
        bytes_per_pixel=2 * 8 + 1,
        # Neighbours; the stamp; flux, constant, sum.
        own_bytes=MEMBER + 4 * case.neighbours + 8 * own + 3 * 8,
        operations=circles * MEMBERS_CIRCLE + 2 * circle + own * residual + BLOCK_SUM,
        cached_bytes=case.neighbours * (OTHER_MEMBER + 8 + 8 * own),
    )


def _group_totals(case: Case) -> Work:
    own_bytes = 8 + 2 * 4 + 8
    return Work("member", 0, 0, own_bytes, operations=1 + WARP_SUM / case.system)


def _list_systems(case: Case) -> Work:
    # Begin and end, number and offset of each system. Two launches, the second writes the list.
    of_system = 2 * 4 + 4 + 8 + 4 * case.system / 2
    return Work("member", 0, 0, own_bytes=4 + of_system / case.core, operations=0)


def _invert_systems(case: Case) -> Work:
    m, core = case.system, case.core
    # Elements that each member has part in or goes through: those that the factorisation changes,
    # each as often as it does, those from its own diagonal on, and a triangle.
    updates = m**3 / 6 / core
    forward = (m**3 - (m - core) ** 3) / (6 * core)
    triangle = m * m / 2
    factor = 2 * updates + triangle / core * (DIVISION + 2) + m / core * 3 * DIVISION
    substitution = (m - core / 2) * (WARP_SUM + DIVISION + 4) + m * DIVISION
    row = 2 * forward + 2 * triangle + substitution
    variance = 3 * triangle + 4 * m + WARP_SUM
    return Work(
        unit="member",
        pixels=0,
        bytes_per_pixel=0,
        # Neighbours with one product each; sums; members; row of the inverse, what comes of it.
        own_bytes=8 + 12 * case.neighbours + 2 * 8 + 4 * m / core + 8 * m + 2 * 8,
        operations=factor + row + variance,
        cached_bytes=8 * (4 * updates + 2 * forward + 5 * triangle),
    )


def _left_of_equations(case: Case) -> Work:
    n = case.neighbours
    own_bytes = 8 + 12 * n + 4 * 8  # neighbours and products; diagonal, sides, solution, the rest
    return Work("member", 0, 0, own_bytes, operations=2 * n + WARP_SUM + 3, cached_bytes=8 * n)


def _add_inverse_product(case: Case) -> Work:
    m = case.system
    own_bytes = 2 * 4 + 8 * m + 2 * 8  # its number, its system; row of the inverse; result, twice
    of_system = 2 * 4 + 2 * 8 + (4 + 8) * m  # begin, count, offsets; members, the vector there
    return Work("member", 0, 0, own_bytes, 2 * m + WARP_SUM + 1, cached_bytes=of_system)


def _aperture_overlaps(case: Case) -> Work:
    box = (2 * box_half_size(case.radius, case.subpix) + 1) ** 2
    pixels, reach = case.stamp**2, case.stamp / 2 + case.radius
    # Stars in three bands as high as they reach, those near enough, their pixels in the circle.
    candidates = case.density * 3 * reach * 2 * reach
    near = case.density * math.pi * reach**2
    products = case.density * box * pixels
    subpixels = rim_pixels(case.radius) * case.subpix * (3 + case.subpix * 5)
    return Work(
        unit="source",
        pixels=0,
        bytes_per_pixel=0,
        # Position, row, ranges; three sums, read and written; the star there and its stamp.
        own_bytes=2 * 8 + 4 + 2 * 3 * 4 + 2 * 3 * 8 + 4 * 8 + 4 + 8 * pixels,
        operations=box * (2 * 8 + 6)
        + subpixels
        + candidates * 12
        + products * 2
        + near * (WARP_SUM + DIVISION + 7),
        cached_bytes=candidates * 2 * 8 + near * (2 * 8 + 4) + products * 8,
        shared=4 * 8 * box,
    )


# ---- Smooth fields, fitted to values at all sources

LOESS_BAND = 2 * (DIVISION + 4) + 8 + 5 * 2  # rows in reach, half a chord; samples counted up to it
LOESS_SAMPLE = 2 + 3 + 6  # two differences, squared; search of the run by shuffles


def _loess_reach(case: Case) -> Work:
    counted = LOESS_STEPS * LOESS_COUNTED * case.nearest
    found = LOESS_VISITED * case.nearest
    return Work(
        unit="source",
        pixels=0,
        bytes_per_pixel=0,
        own_bytes=2 * 8 + 4 + 2 * 8,  # query; number of the farthest; the sample there
        operations=counted * (LOESS_SAMPLE + 2 + 2)
        + found * (LOESS_SAMPLE + 1)
        + LOESS_RUNS * 32 * LOESS_BAND
        + LOESS_STEPS * (2 * WARP_SUM + DIVISION + 5)
        + 2 * WARP_SUM,
        cached_bytes=(counted + found) * 2 * 8,
    )


def _loess_predict(case: Case) -> Work:
    n, visited = case.nearest, LOESS_VISITED * case.nearest
    sums = 2 * 2 + 1 + 3 + EXPONENTIAL + 1 + 2 + 9 + 6
    line = 8 * DIVISION + 30
    return Work(
        unit="source",
        pixels=0,
        bytes_per_pixel=0,
        # Query, number of the farthest; the sample there, its value and weight, its rank; result.
        own_bytes=2 * 8 + 4 + 4 * 8 + 4 + 8,
        operations=visited * (LOESS_SAMPLE + 2)
        + 32 * LOESS_BAND
        + n * sums
        + 9 * WARP_SUM
        + 2 * DIVISION
        + line,
        cached_bytes=visited * 2 * 8 + n * 2 * 8,
    )


# ---- SEP's conventions: planes of single precision

SINGLE = 0.5
SEP_VALUE = 4 + 1  # data and bad
SEP_PIXEL = 4 + 4 + 1  # data, err, bad
SEP_MARGIN = 0.7072  # of a circle: pixels whose centre is nearer to it may be cut
DISTANCE = 2 * 2 + 3 + 2  # of a pixel: two differences, converted and squared; two comparisons
SIGMA = SINGLE + 1  # squared, converted


def sep_box_pixels(r: float) -> float:
    """Candidates for a circle."""
    return (2 * r + 1) ** 2


def sep_rim_pixels(r: float) -> float:
    """Pixels that are sampled because the circle may cut them."""
    return ring_pixels((r - SEP_MARGIN, r + SEP_MARGIN))


def sampled_pixels(r: float) -> float:
    """Pixels of which a circle holds one of 5 x 5 samples: these fill a square of side 0.8."""
    return math.pi * r * r + 4 * 0.8 * r + 0.8**2


SEP_SAMPLES = 5 * (5 * 6 + 3) + DIVISION + 4  # distance squared, compared twice, two running sums


def _sep_aperture_sums(case: Case) -> Work:
    r = case.radius
    visited = ring_pixels((0, r + SEP_MARGIN))
    return Work(
        unit="source",
        pixels=visited,
        bytes_per_pixel=SEP_PIXEL,
        own_bytes=POSITION + 8 + 3 * 8,  # radius; flux, error, flag
        operations=sep_box_pixels(r) * DISTANCE
        + sep_rim_pixels(r) * SEP_SAMPLES
        + visited * (1 + 3 + SIGMA + 2)  # area, datum, variance
        + 4 * WARP_SUM,
    )


SEP_ANNULUS = POSITION + 3 * 8  # radii, the most pixels that it may hold
SEP_CAPACITY = KERNELS["sep_annulus_median"].max_shared // 8  # pixels that shared memory holds


def _sorted_or_idle(case: Case, margin: float, work: Work) -> Work:
    """What an annulus takes that is sorted in shared memory; one that it does not hold, nothing."""
    r_in, r_out = case.annulus
    most = ring_pixels((r_in - margin, r_out + margin))
    if most > SEP_CAPACITY:
        return Work("source", 0, 0, own_bytes=8, operations=0, shared=8 * SEP_CAPACITY)
    return replace(work, shared=8 * padded(most))


def sampled_ring(annulus: tuple[float, float]) -> float:
    """Pixels of which an annulus holds a sample."""
    return ring_pixels(annulus) + 4 * 0.8 * sum(annulus)


def _ring_samples(annulus: tuple[float, float]) -> float:
    """What it takes to sample the pixels of an annulus."""
    rims = sum(sep_rim_pixels(r) for r in annulus)
    return sep_box_pixels(annulus[1]) * DISTANCE + rims * SEP_SAMPLES + sampled_ring(annulus)


def _sep_annulus_median(case: Case) -> Work:
    n = sampled_ring(case.annulus)
    work = Work(
        unit="source",
        pixels=n,
        bytes_per_pixel=SEP_VALUE,
        own_bytes=SEP_ANNULUS + 8,
        operations=_ring_samples(case.annulus) + sort_operations(padded(n)),
    )
    return _sorted_or_idle(case, SEP_MARGIN + 0.5657, work)


def _sep_annulus_median_streaming(case: Case) -> Work:
    # Five digits of eight bits.
    return Work(
        unit="source",
        pixels=sampled_ring(case.wide_annulus),
        bytes_per_pixel=SEP_VALUE,
        own_bytes=SEP_ANNULUS + 8,
        operations=5 * _ring_samples(case.wide_annulus),
    )


def _sep_annulus_means(case: Case) -> Work:
    n = ring_pixels(case.annulus)
    work = Work(
        unit="source",
        pixels=n,
        bytes_per_pixel=SEP_VALUE,
        own_bytes=SEP_ANNULUS + 3 * 8,
        # Clipping searches the sorted sample; sums of all and of what is left.
        operations=sep_box_pixels(case.annulus[1]) * DISTANCE
        + n
        + sort_operations(padded(n))
        + 6 * n
        + 2 * BLOCK_SUM,
    )
    return _sorted_or_idle(case, SEP_MARGIN, work)


def _sep_annulus_means_streaming(case: Case) -> Work:
    n = ring_pixels(case.wide_annulus)
    candidates = sep_box_pixels(case.wide_annulus[1]) * DISTANCE
    # A rank each for the reference, and for deviation and median in every clipping; sums.
    selection = SELECTION_PASSES / 2
    n_passes = 2 + selection + CLIPPINGS * (2 * selection + 1)
    return Work(
        unit="source",
        pixels=n,
        bytes_per_pixel=SEP_VALUE,
        own_bytes=SEP_ANNULUS + 3 * 8,
        operations=n_passes * (candidates + 6 * n),
    )


# Two ends of a column, the nearest of five samples.
SEP_LINE = 2 * (2 + ERROR_FUNCTION) + 1 + 1 + 3 + 5 + 2 * 4


def _circle_lines(case: Case) -> float:
    """What it takes to find the pixels of a circle that count, and their share of the light."""
    r = case.clip
    return 2 * (2 * r + 1) * SEP_LINE + sep_box_pixels(r) * 5 + sampled_pixels(r) * 2


def _lines_bytes(case: Case) -> int:
    return 4 * 2 * (2 * math.ceil(case.clip) + 3) * 3 * 8


def _sep_optimal_sums(case: Case) -> Work:
    n = sampled_pixels(case.clip)
    return Work(
        unit="source",
        pixels=n,
        bytes_per_pixel=SEP_PIXEL,
        # Radius, width; three sums, the number of pixels, flags.
        own_bytes=POSITION + 2 * 8 + 4 * 8 + 1 + 8,
        operations=_circle_lines(case)
        + n * (SIGMA + 1 + DIVISION + 3 + 2 + 1)
        + 3 * WARP_SUM
        + 3 * DIVISION,
        shared=_lines_bytes(case),
    )


def _sep_member_stamps(case: Case) -> Work:
    n = sampled_pixels(case.clip)
    return Work(
        unit="member",
        pixels=n,
        bytes_per_pixel=4 + 1,  # err, bad
        # Position, radius, width, frame; where the stamp begins, the stamp.
        own_bytes=4 * 8 + 4 + 8 + 8 * sep_box_pixels(case.clip),
        operations=_circle_lines(case) + n * (SIGMA + 1 + 2 * DIVISION) + 3 * DIVISION,
        shared=_lines_bytes(case),
    )


def _sep_pair_products(case: Case) -> Work:
    # Each pair once. Neighbours in a small group are a linking radius away along either axis.
    side = 2 * case.clip + 1
    pairs, overlap = case.neighbours / 2, max(side - case.link_radius, 0) ** 2
    return Work(
        unit="member",
        pixels=0,
        bytes_per_pixel=0,
        # Position, radius; where lists and stamp begin, neighbours, a product with each; stamp.
        own_bytes=3 * 8 + 2 * 8 + (4 + 8) * case.neighbours + 8 * side**2,
        operations=pairs * (2 * overlap + WARP_SUM),
        cached_bytes=pairs * (8 * overlap + 4 * 8),
    )


@dataclass(frozen=True)
class SepStamp:
    """What a block takes to make a stamp from planes, interpolated by Lanczos's kernel."""

    pixels: int
    operations: float
    cached_bytes: float
    scratch_bytes: int  # combined and resampled planes, and the stamp


def sep_stamp(case: Case) -> SepStamp:
    """Of a PSF with planes that are sampled like the image."""
    n, taps = case.stamp, 8
    size = n * n
    # Coordinate; the kernel from its table, the sum of the weights; these divided by it.
    weights = n / 2 + taps * (11 + 2) + DIVISION + taps
    # Weights of a column for each of the threads that share it, of a row for every pixel.
    n_weights = n * (128 // n if n < 128 else 1) + size
    resampled = n_weights * weights + 2 * size * 2 * taps
    combined = 2 * case.n_planes * size
    return SepStamp(
        pixels=size,
        operations=2 * (1 + DIVISION) + SINGLE * (combined + resampled),
        cached_bytes=4 * case.n_planes * size,
        scratch_bytes=4 * 3 * size,
    )


def _stamp_sum(stamp: SepStamp) -> float:
    return 2 * stamp.pixels + BLOCK_SUM


def _normed(stamp: SepStamp) -> float:
    """What it takes to make a stamp of sum 1."""
    return stamp.operations + _stamp_sum(stamp) + stamp.pixels * SINGLE * DIVISION


def _sep_psf_stamps(case: Case) -> Work:
    stamp = sep_stamp(case)
    return Work(
        unit="source",
        pixels=0,
        bytes_per_pixel=0,
        own_bytes=2 * 8 + 8 * stamp.pixels,
        operations=stamp.operations + _stamp_sum(stamp) + DIVISION + 2 * stamp.pixels,
        cached_bytes=stamp.cached_bytes,
        shared=stamp.scratch_bytes,
    )


SEP_MOVED = MOVED + 8  # flag
WINDOW_PIXEL = 2 * 2 + 3 + 2 + 1 + 2 * 2 + 2 + 1  # offsets; light, its sum and moments; area
WALK = 3 * DIVISION + 12  # from sums to a step


def _sep_winpos(case: Case) -> Work:
    r, n_samples = case.window, 11
    visited, rim = ring_pixels((0, r + SEP_MARGIN)), sep_rim_pixels(r)
    samples = 2 * n_samples**2 + 2 * 2 * n_samples + 8
    # Shares of a pixel are added up once for four sources.
    shares = n_samples**2 * (n_samples**2 + 1) / 2 / 4
    step = (
        sep_box_pixels(r) * DISTANCE
        + rim * samples
        + visited * (WINDOW_PIXEL + 4 + EXPONENTIAL)
        + 3 * WARP_SUM
        + WALK
    )
    return Work(
        unit="source",
        pixels=visited,
        bytes_per_pixel=SEP_VALUE,
        own_bytes=SEP_MOVED,
        operations=WINDOW_STEPS * step + shares,
    )


def _sep_psf_winpos(case: Case) -> Work:
    stamp = sep_stamp(case)
    step = stamp.operations + stamp.pixels * (WINDOW_PIXEL + 2) + 3 * BLOCK_SUM + WALK
    return Work(
        unit="source",
        pixels=stamp.pixels,
        bytes_per_pixel=SEP_VALUE,
        own_bytes=SEP_MOVED,
        operations=PSF_WINDOW_STEPS * step,
        cached_bytes=PSF_WINDOW_STEPS * stamp.cached_bytes,
        shared=stamp.scratch_bytes,
    )


def _sep_cell_levels(case: Case) -> Work:
    # Twice: to single precision, compared, converted and squared, two sums.
    return Work("pixel", 1, 8 + 1, 4 * 4 / case.cell**2, operations=2 * (1 + 2 * SINGLE + 4))


def _sep_cell_mode(case: Case) -> Work:
    # The place in a histogram. What follows are integers, and few of them.
    operations = 1 + SINGLE * (DIVISION + 4)
    return Work("pixel", 1, 8 + 1, own_bytes=6 * 4 / case.cell**2, operations=operations)


def _sep_mesh_rows(case: Case) -> Work:
    # A node and its derivative for each cell of a row, of two maps.
    node = SINGLE * 7 + SINGLE * (6 + 2) + 2 + DIVISION
    return Work("pixel", 0, 0, own_bytes=2 * 2 * 4 / case.cell, operations=2 * node / case.cell)


def _sep_mesh_maps(case: Case) -> Work:
    # Two nodes and their derivatives at each pixel, of two maps.
    return Work(
        unit="pixel",
        pixels=1,
        bytes_per_pixel=2 * 4,
        own_bytes=2 * 2 * 4 / case.cell,
        operations=2 * SINGLE * 12,
        cached_bytes=2 * 4 * 4,
    )


SEP_VARIANCE = 4 + 2 + DIVISION + 1  # noise squared, compared; the pixel's own light
SEP_WEIGHT = SEP_VARIANCE + 2 * DIVISION + 1  # of a pixel in fits
CHOLESKY = 6 * DIVISION + 14  # of three parameters
SUBSTITUTION = 6 * DIVISION + 12


def _sep_fit_sources(case: Case) -> Work:
    stamp = sep_stamp(case)
    n = stamp.pixels
    equations = n * (2 + 2 * (SINGLE + 3) + 1 + 2 + 9 * 2) + 9 * 4 * WARP_SUM + 9 * 4
    step = _normed(stamp) + equations + CHOLESKY + SUBSTITUTION + 2 * DIVISION + 8
    misfit = n * (1 + 2 + 3 + 1 + 2 + 1) + 2 * BLOCK_SUM + CHOLESKY + SUBSTITUTION + 2 * DIVISION
    return Work(
        unit="source",
        pixels=n,
        bytes_per_pixel=SEP_PIXEL,
        own_bytes=POSITION + 7 * 8,
        operations=n * (SEP_WEIGHT + 4) + case.passes * step + _normed(stamp) + misfit,
        cached_bytes=(case.passes + 1) * stamp.cached_bytes,
        shared=stamp.scratch_bytes + (4 + 8) * n,  # data and weights
    )


def _sep_fit_fluxes(case: Case) -> Work:
    work, stamp = _sep_fit_sources(case), sep_stamp(case)
    products = SEP_VARIANCE + 4 + 3 + (3 + DIVISION) + (2 + DIVISION)
    return replace(
        work,
        operations=_normed(stamp) + stamp.pixels * products + 2 * BLOCK_SUM + 3 * DIVISION,
        cached_bytes=stamp.cached_bytes,
    )


def _sep_reach(case: Case) -> Work:
    stamp = sep_stamp(case)
    # The peak, and which pixels are bright.
    return Work(
        unit="source",
        pixels=0,
        bytes_per_pixel=0,
        own_bytes=2 * 8 + 1 + 8,
        operations=_normed(stamp) + 2 * (3 * stamp.pixels + BLOCK_SUM),
        cached_bytes=stamp.cached_bytes,
        shared=stamp.scratch_bytes,
    )


def _sep_list_blocks(case: Case) -> Work:
    # Members as far up or down as the block is long, for each distance that is tried.
    n_distances = 2 if case.density * case.block_side**2 < MAX_FIT_GROUP else 22
    core = case.density * case.core_side**2
    asked = n_distances * case.density * case.block_side * case.side / core
    return Work(
        unit="member",
        pixels=0,
        bytes_per_pixel=0,
        own_bytes=4 + (3 * 4 + 4 * MAX_FIT_GROUP) / core,
        operations=asked * (2 * 5 + 3 + 2),
        cached_bytes=asked * (2 * 8 + 4),
    )


def _sep_fit_groups(case: Case) -> Work:
    stamp = sep_stamp(case)
    n, m, in_blocks = stamp.pixels, case.system, case.core < case.system
    # Pairs of members are a linking radius apart along either axis; others whose stamp has a pixel.
    pairs, overlap = (m - 1) / 2, max(case.stamp - case.link_radius, 0) ** 2
    others = min(m, m * overlap / n)
    pixel = SEP_WEIGHT + 2 + (1 + 3 * others if in_blocks else 0)
    # All for one member: stamp, derivatives and their products, its rows of the factor.
    derivatives = n * (pixel + 12 + 3 * 2 + 6 * 2) + 9 * WARP_SUM
    products = pairs * 9 * (2 * overlap + WARP_SUM)
    rows = 9 * m * m + 4.5 * m * DIVISION + 3 * 2 * DIVISION + 2 * 9 * m
    step = _normed(stamp) + derivatives + products + rows + 4 * DIVISION + 12
    # The same for fluxes, which are solved for in rounds; their variances.
    fluxes = _normed(stamp) + n * (pixel + SINGLE * DIVISION + 2 + 2 * 2) + 2 * WARP_SUM
    fluxes += pairs * (2 * overlap + WARP_SUM)
    fluxes += POSITIVE_SWEEPS * (2 * m + WARP_SUM + DIVISION + 5) + 2 * m * m / 3 + m * DIVISION
    before = _normed(stamp) if in_blocks else 0
    fitted = m / case.core  # for each member that gets its results there
    misfit = n * (pixel + (others + 1) * (3 + SINGLE * DIVISION + 2) + 3) + 2 * WARP_SUM
    # Derivatives are written, and read for each pair; the factor changes 4.5 m^3 elements.
    step_bytes = stamp.cached_bytes + 3 * 8 * (n + 2 * pairs * overlap) + 16 * 4.5 * m * m
    return Work(
        unit="member",
        pixels=n,
        bytes_per_pixel=SEP_PIXEL + (8 if in_blocks else 0),
        # Its number, its place and flux before; where it was, plane, system; results.
        own_bytes=4 + 5 * 8 + 2 * 4 + 7 * 8,
        operations=fitted * (before + case.group_passes * step + fluxes) + misfit,
        cached_bytes=fitted * case.group_passes * step_bytes,
    )


WORK: dict[str, Callable[[Case], Work]] = {
    "mark_bad_pixels": _mark_bad_pixels,
    "subtract_background": _subtract_background,
    "evaluate_surface": _evaluate_surface,
    "mesh_statistics": _mesh_statistics,
    "mesh_statistics_streaming": _mesh_statistics_streaming,
    "com_centroid": _com_centroid,
    "gaussian_centroid": _gaussian_centroid,
    "psf_centroid": _psf_centroid,
    "annulus_mode": _annulus_mode,
    "annulus_mode_streaming": _annulus_mode_streaming,
    "annulus_plane": lambda case: _annulus_polynomial(case, 1),
    "annulus_quadratic": lambda case: _annulus_polynomial(case, 2),
    "aperture_sums": _aperture_sums,
    "psf_stamps": _psf_stamps,
    "gaussian_stamps": _gaussian_stamps,
    "render_tiles": _render_tiles,
    "optimal_sums": _optimal_sums,
    "aperture_overlaps": _aperture_overlaps,
    "loess_reach": _loess_reach,
    "loess_predict": _loess_predict,
    "link_cells": _link_cells,
    "flatten_links": _flatten_links,
    "list_neighbours": _list_neighbours,
    "member_sums": _member_sums,
    "pair_products": _pair_products,
    "group_residuals": _group_residuals,
    "group_totals": _group_totals,
    "list_systems": _list_systems,
    "invert_systems": _invert_systems,
    "left_of_equations": _left_of_equations,
    "add_inverse_product": _add_inverse_product,
    "sep_cell_levels": _sep_cell_levels,
    "sep_cell_mode": _sep_cell_mode,
    "sep_mesh_rows": _sep_mesh_rows,
    "sep_mesh_maps": _sep_mesh_maps,
    "sep_psf_stamps": _sep_psf_stamps,
    "sep_winpos": _sep_winpos,
    "sep_psf_winpos": _sep_psf_winpos,
    "sep_aperture_sums": _sep_aperture_sums,
    "sep_annulus_median": _sep_annulus_median,
    "sep_annulus_median_streaming": _sep_annulus_median_streaming,
    "sep_annulus_means": _sep_annulus_means,
    "sep_annulus_means_streaming": _sep_annulus_means_streaming,
    "sep_optimal_sums": _sep_optimal_sums,
    "sep_member_stamps": _sep_member_stamps,
    "sep_pair_products": _sep_pair_products,
    "sep_fit_sources": _sep_fit_sources,
    "sep_fit_sources/fluxes": _sep_fit_fluxes,
    "sep_fit_sources/single": lambda case: replace(_sep_fit_sources(case), unit="single"),
    "sep_reach": _sep_reach,
    "sep_list_blocks": _sep_list_blocks,
    "sep_fit_groups": _sep_fit_groups,
}
"""By kernel of the registry, and what it is launched for: what its unit takes in a case."""
