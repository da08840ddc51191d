"""Benchmark of optimal extraction: `python -m bench.optimal --help`.

The rows are the ways to weight pixels with a PSF, and to centre on it; see README.md for what the
figures mean.
"""

from __future__ import annotations

from . import references
from .comparison import Reference, Row, main

CENTROID = {"aper": 1, "centroid_iter": 1, "centroid_method": "psf"}
UNGROUPED = {"aper": 1, "optimal": True, "group_sources": False}
GROUPED = {"aper": 1, "optimal": True, "group_sources": True}

ROWS = (
    Row(
        key="centroid",
        title="PSF centroid, 1 call, Gaussian",
        options=CENTROID,
    ),
    Row(
        key="centroid-model",
        title="PSF centroid, 1 call, PSFEx model",
        options=CENTROID,
        psf_given=True,
    ),
    Row(
        key="ungrouped",
        title="optimal, Gaussian, ungrouped",
        options=UNGROUPED,
        references={
            "sep_x": Reference("sum_circle_optimal(grouped=False)", references.sep_optimal)
        },
    ),
    Row(
        key="ungrouped-model",
        title="optimal, PSFEx model, ungrouped",
        options=UNGROUPED,
        psf_given=True,
    ),
    Row(
        key="grouped",
        title="optimal, Gaussian, grouped",
        options=GROUPED,
        grouped=True,
        references={
            "sep_x": Reference("sum_circle_optimal(grouped=True)", references.sep_optimal_grouped)
        },
    ),
    Row(
        key="grouped-model",
        title="optimal, PSFEx model, grouped",
        options=GROUPED,
        psf_given=True,
        grouped=True,
    ),
)

if __name__ == "__main__":
    main("optimal", ROWS)
