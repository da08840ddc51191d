"""The primitives in NumPy, vectorised over chunks of sources: the twin of ``cupy_backend``."""

import numpy as xp

from .annulus import annulus_mode, annulus_polynomial
from .aperture import aperture_sums
from .centroid import com_centroid
from .frame import load_image, subtract_background
from .mesh import evaluate_surface, mesh_statistics

to_device = xp.asarray
to_host = xp.asarray

__all__ = [
    "annulus_mode",
    "annulus_polynomial",
    "aperture_sums",
    "com_centroid",
    "evaluate_surface",
    "load_image",
    "mesh_statistics",
    "subtract_background",
    "to_device",
    "to_host",
    "xp",
]
