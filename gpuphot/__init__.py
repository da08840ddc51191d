"""GPU-accelerated photometry of star-field images.

Importing this package imports neither CuPy nor SEP; a backend is chosen when something is
measured (see `resolve_backend`).
"""

from ._version import __version__
from .backend import Backend, BackendError, resolve_backend
from .flags import Flag
from .measure.objects import measure_objects

__all__ = [
    "Backend",
    "BackendError",
    "Flag",
    "__version__",
    "measure_objects",
    "resolve_backend",
]
