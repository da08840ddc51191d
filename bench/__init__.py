"""Benchmarks: `python -m bench.aperture` and its siblings, run from the repository root."""

import os

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")

# Figures are of one core. BLAS reads these when NumPy is imported, which is after this module.
for _variable in THREAD_VARIABLES:
    os.environ.setdefault(_variable, "1")
