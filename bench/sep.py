"""Benchmark of SEP's conventions: `python -m bench.sep --help`.

The rows are the ways to measure with `measure_objects_sep`; see README.md for what the figures
mean.
"""

from __future__ import annotations

from functools import partial

from . import references
from .comparison import Reference, Row, main
from .workloads import FWHM

APERTURE = {"aper": 1, "gain": references.GAIN}
ANNULUS = {"bkgann": [5, 7]}
OPTIMAL = {**APERTURE, "optimal": True}
ALONE = {"group_sources": False}


def _row(key: str, title: str, called: str, equivalent, **fields) -> Row:
    """A row that has an equivalent in sep_x."""
    return Row(
        key=key,
        title=title,
        function="measure_objects_sep",
        references={"sep_x": Reference(called, equivalent)},
        **fields,
    )


ROWS = (
    _row("aperture", "sep: aperture", "sum_circle", references.sep_plain, options=APERTURE),
    _row(
        "estimated",
        "sep: aperture, background estimated",
        "Background, sum_circle",
        references.sep_estimated_plain,
        options=APERTURE,
        maps_given=False,
    ),
    _row(
        "annulus",
        "sep: aperture + annulus",
        "sum_circle, stats_circann",
        references.sep_median,
        options={**APERTURE, **ANNULUS},
    ),
    _row(
        "centroid",
        "sep: windowed centroid",
        "winpos, sum_circle",
        references.sep_winpos,
        options={**APERTURE, "centroid_iter": 1},
    ),
    _row(
        "optimal",
        "sep: optimal",
        "sum_circle_optimal(grouped=False)",
        partial(references.sep_weighted, grouped=False),
        options={**OPTIMAL, **ALONE},
    ),
    _row(
        "optimal-annulus",
        "sep: optimal + annulus",
        "sum_circle_optimal(grouped=False, bkgann)",
        partial(references.sep_weighted, grouped=False, annulus=True),
        options={**OPTIMAL, **ALONE, **ANNULUS},
    ),
    _row(
        "grouped",
        "sep: optimal, grouped",
        "sum_circle_optimal(grouped=True)",
        partial(references.sep_weighted, grouped=True),
        options=OPTIMAL,
        grouped=True,
        link=2 * FWHM,
    ),
    _row(
        "grouped-annulus",
        "sep: optimal, grouped + annulus",
        "sum_circle_optimal(grouped=True, bkgann)",
        partial(references.sep_weighted, grouped=True, annulus=True),
        options={**OPTIMAL, **ANNULUS},
        grouped=True,
        link=2 * FWHM,
    ),
    _row(
        "fit",
        "sep: PSF fit",
        "psf_fit(grouped=False)",
        partial(references.sep_fit, grouped=False),
        options={**APERTURE, **ALONE},
        psf_given=True,
    ),
    _row(
        "fit-grouped",
        "sep: PSF fit, grouped",
        "psf_fit(grouped=True)",
        partial(references.sep_fit, grouped=True),
        options=APERTURE,
        psf_given=True,
        grouped=True,
    ),
)

if __name__ == "__main__":
    main("sep", ROWS)
