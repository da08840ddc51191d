"""Every kernel of the package: where it is, how it is launched and what it may use.

CuPy's loading, the compilation check and the tests that run kernels on a CPU all read this table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent

# Without contraction a kernel rounds like its NumPy twin; where speed needs it, kernels say fma().
OPTIONS = ("--std=c++17", "--fmad=false")

_INCLUDE = re.compile(r'\s*#\s*include\s*"([^"]+)"')


@dataclass(frozen=True)
class Kernel:
    """An ``extern "C"`` kernel.

    Attributes
    ----------
    name : str
    file : str
        The ``.cu`` file that holds it.
    block : int
        Threads of a block.
    max_registers : int
        Registers that a thread may use on any architecture.
    max_shared : int
        Most bytes of dynamic shared memory that it is launched with.
    """

    name: str
    file: str
    block: int
    max_registers: int
    max_shared: int = 0


# Budgets leave a block of warps at least a quarter of a multiprocessor's threads.
_ALL = (
    Kernel("mark_bad_pixels", "frame.cu", block=256, max_registers=32),
    Kernel("subtract_background", "frame.cu", block=256, max_registers=80),
    Kernel("evaluate_surface", "frame.cu", block=256, max_registers=80),
    Kernel("mesh_statistics", "mesh.cu", block=256, max_registers=64, max_shared=32 * 1024),
    Kernel("mesh_statistics_streaming", "mesh.cu", block=256, max_registers=96),
    Kernel("com_centroid", "centroid.cu", block=128, max_registers=96),
    Kernel("gaussian_centroid", "centroid.cu", block=128, max_registers=128, max_shared=46 * 1024),
    Kernel("psf_centroid", "centroid.cu", block=128, max_registers=128, max_shared=46 * 1024),
    Kernel("annulus_mode", "annulus_mode.cu", block=128, max_registers=64, max_shared=32 * 1024),
    Kernel("annulus_mode_streaming", "annulus_mode.cu", block=128, max_registers=128),
    Kernel("annulus_plane", "annulus_polynomial.cu", block=128, max_registers=128),
    Kernel("annulus_quadratic", "annulus_polynomial.cu", block=128, max_registers=128),
    Kernel("psf_stamps", "stamps.cu", block=128, max_registers=80, max_shared=46 * 1024),
    Kernel("gaussian_stamps", "stamps.cu", block=128, max_registers=64, max_shared=46 * 1024),
    Kernel("render_tiles", "render.cu", block=256, max_registers=64),
    Kernel("loess_reach", "loess.cu", block=128, max_registers=80),
    Kernel("loess_predict", "loess.cu", block=128, max_registers=80),
    Kernel("link_cells", "neighbours.cu", block=128, max_registers=96),
    Kernel("flatten_links", "neighbours.cu", block=256, max_registers=32),
    Kernel("list_neighbours", "neighbours.cu", block=128, max_registers=64),
    Kernel("optimal_sums", "optimal.cu", block=128, max_registers=96),
    Kernel("member_sums", "group_fit.cu", block=128, max_registers=96),
    Kernel("pair_products", "group_fit.cu", block=128, max_registers=96),
    Kernel("group_residuals", "group_fit.cu", block=128, max_registers=96),
    Kernel("group_totals", "blocks.cu", block=256, max_registers=48),
    Kernel("list_systems", "blocks.cu", block=128, max_registers=64),
    Kernel("invert_systems", "blocks.cu", block=256, max_registers=80),
    Kernel("left_of_equations", "blocks.cu", block=128, max_registers=64),
    Kernel("add_inverse_product", "blocks.cu", block=128, max_registers=64),
    Kernel("aperture_sums", "aperture.cu", block=128, max_registers=96, max_shared=46 * 1024),
    Kernel(
        "aperture_overlaps",
        "aperture_overlaps.cu",
        block=128,
        max_registers=96,
        max_shared=46 * 1024,
    ),
    Kernel("sep_psf_stamps", "sep_stamps.cu", block=128, max_registers=64, max_shared=46 * 1024),
    Kernel("sep_reach", "sep_group_links.cu", block=128, max_registers=64, max_shared=46 * 1024),
    Kernel("sep_list_blocks", "sep_group_links.cu", block=128, max_registers=64),
    Kernel("sep_fit_groups", "sep_group_fit.cu", block=128, max_registers=128),
    Kernel("sep_fit_sources", "sep_fit.cu", block=128, max_registers=128, max_shared=46 * 1024),
    Kernel("sep_optimal_sums", "sep_optimal.cu", block=128, max_registers=96, max_shared=24 * 1024),
    Kernel(
        "sep_member_stamps",
        "sep_group_optimal.cu",
        block=128,
        max_registers=96,
        max_shared=24 * 1024,
    ),
    Kernel("sep_pair_products", "sep_group_optimal.cu", block=128, max_registers=64),
    Kernel("sep_winpos", "sep_winpos.cu", block=128, max_registers=128),
    Kernel("sep_psf_winpos", "sep_winpos.cu", block=128, max_registers=112, max_shared=46 * 1024),
    Kernel("sep_cell_levels", "sep_mesh.cu", block=128, max_registers=64),
    Kernel("sep_cell_mode", "sep_mesh.cu", block=128, max_registers=64),
    Kernel("sep_mesh_rows", "sep_mesh.cu", block=64, max_registers=80),
    Kernel("sep_mesh_maps", "sep_mesh.cu", block=256, max_registers=48),
    Kernel("sep_aperture_sums", "sep_aperture.cu", block=128, max_registers=96),
    Kernel("sep_annulus_median", "sep_annulus.cu", block=128, max_registers=96, max_shared=2**15),
    Kernel("sep_annulus_median_streaming", "sep_annulus.cu", block=128, max_registers=128),
    Kernel("sep_annulus_means", "sep_annulus.cu", block=128, max_registers=96, max_shared=2**15),
    Kernel("sep_annulus_means_streaming", "sep_annulus.cu", block=128, max_registers=128),
)

KERNELS = {kernel.name: kernel for kernel in _ALL}
FILES = tuple(dict.fromkeys(kernel.file for kernel in _ALL))


def source(file: str) -> str:
    """A ``.cu`` file as one string, its local includes in their places.

    CuPy's cache of compiled kernels does not look into included files, hence none are left.
    """
    return _flatten(FOLDER / file, set())


def _flatten(path: Path, seen: set[Path]) -> str:
    if path in seen:
        return ""
    seen.add(path)
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        include = _INCLUDE.match(line)
        if include:
            lines.append(_flatten(path.parent / include[1], seen))
            lines.append(f'#line {number + 1} "{path.name}"')
        elif line.strip() != "#pragma once":
            lines.append(line)
        else:
            lines.append("")
    return "\n".join(lines)
