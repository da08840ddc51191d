"""What `measure` may call: the primitives of this backend, its array module, and the way home."""

import cupy as xp

from .annulus import annulus_mode, annulus_polynomial
from .aperture import aperture_sums
from .centroid import com_centroid, psf_centroid
from .frame import load_image, subtract_background
from .group_fit import grouped_optimal_sums
from .launch import device_of, to_device, to_host
from .mesh import evaluate_surface, mesh_statistics
from .neighbours import group_median, link_groups
from .optimal import optimal_sums
from .render import render_psf_image
from .stamps import psf_stamps

__all__ = [
    "annulus_mode",
    "annulus_polynomial",
    "aperture_sums",
    "com_centroid",
    "device_of",
    "evaluate_surface",
    "group_median",
    "grouped_optimal_sums",
    "link_groups",
    "load_image",
    "mesh_statistics",
    "optimal_sums",
    "psf_centroid",
    "psf_stamps",
    "render_psf_image",
    "subtract_background",
    "to_device",
    "to_host",
    "xp",
]
