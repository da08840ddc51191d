"""GPU-accelerated photometry of star-field images.

Importing this package imports neither CuPy nor SEP; a backend is chosen when something is
measured (see `resolve_backend`).
"""

from ._version import __version__
from .backend import Backend, BackendError, resolve_backend
from .chain import ImagePhotometry, measure_image
from .flags import Flag
from .measure.deblended import measure_aperture_deblended
from .measure.objects import measure_objects
from .measure.objects_sep import measure_objects_sep
from .models.psf import PSFModel, load_psf
from .pipeline import FileError, FileReport, measure_file
from .psf_builder import create_psf_model
from .rendering import place_psf_stamps, render_psf_image

__all__ = [
    "Backend",
    "BackendError",
    "FileError",
    "FileReport",
    "Flag",
    "ImagePhotometry",
    "PSFModel",
    "__version__",
    "create_psf_model",
    "load_psf",
    "measure_aperture_deblended",
    "measure_file",
    "measure_image",
    "measure_objects",
    "measure_objects_sep",
    "place_psf_stamps",
    "render_psf_image",
    "resolve_backend",
]
