"""What `measure` may call: the primitives of this backend, its array module, and the way home."""

from contextlib import nullcontext
from typing import Any

import numpy as xp

from .annulus import annulus_mode, annulus_polynomial
from .aperture import aperture_sums
from .centroid import com_centroid, psf_centroid
from .frame import load_image, subtract_background
from .group_fit import grouped_optimal_sums
from .mesh import evaluate_surface, mesh_statistics
from .neighbours import group_median, link_groups
from .optimal import optimal_sums
from .overlap import aperture_overlaps
from .render import render_psf_image
from .sep_annulus import sep_annulus_means, sep_annulus_median
from .sep_aperture import sep_aperture_sums
from .sep_fit import sep_psf_fit
from .sep_frame import sep_frame
from .sep_group_fit import sep_grouped_psf_fit
from .sep_group_optimal import sep_grouped_optimal_sums
from .sep_mesh import sep_background
from .sep_optimal import sep_optimal_sums
from .sep_stamps import sep_psf_stamps
from .sep_winpos import sep_psf_winpos, sep_winpos
from .smooth import grid_field, loess_field, median_and_deviation
from .stamps import psf_stamps


def device_of(*arrays: Any) -> nullcontext[None]:
    """There is but one device."""
    return nullcontext()


to_device = xp.asarray
to_host = xp.asarray

LARGE_PSF_GROUPS = "sep_x"
"""Who fits PSFs to groups of more than 64 sources."""

__all__ = [
    "LARGE_PSF_GROUPS",
    "annulus_mode",
    "annulus_polynomial",
    "aperture_overlaps",
    "aperture_sums",
    "com_centroid",
    "device_of",
    "evaluate_surface",
    "grid_field",
    "group_median",
    "grouped_optimal_sums",
    "link_groups",
    "load_image",
    "loess_field",
    "median_and_deviation",
    "mesh_statistics",
    "optimal_sums",
    "psf_centroid",
    "psf_stamps",
    "render_psf_image",
    "sep_annulus_means",
    "sep_annulus_median",
    "sep_aperture_sums",
    "sep_background",
    "sep_frame",
    "sep_grouped_optimal_sums",
    "sep_grouped_psf_fit",
    "sep_optimal_sums",
    "sep_psf_fit",
    "sep_psf_stamps",
    "sep_psf_winpos",
    "sep_winpos",
    "subtract_background",
    "to_device",
    "to_host",
    "xp",
]
