"""Benchmark of aperture photometry: `python -m bench.aperture --help`.

The rows are the ways to measure fluxes in apertures; see README.md for what the figures mean.
"""

from __future__ import annotations

from . import references
from .comparison import Reference, Row, main

PHOTUTILS_SUMS = "aperture_photometry(method='exact')"
SEP_SUMS = "sum_circle(subpix=0)"
ANNULUS = {"aper": 1, "bkgann": [5, 7]}

ROWS = (
    Row(
        key="aperture",
        title="aperture",
        options={"aper": 1},
        references={
            "photutils": Reference(PHOTUTILS_SUMS, references.photutils_aperture),
            "sep_x": Reference(SEP_SUMS, references.sep_aperture),
        },
    ),
    Row(
        key="estimated",
        title="aperture, background and noise estimated",
        options={"aper": 1},
        maps_given=False,
        references={
            "photutils": Reference(
                f"Background2D(exclude_percentile=90), {PHOTUTILS_SUMS}",
                references.photutils_estimated,
            ),
            "sep_x": Reference(
                f"Background (its own clipping), {SEP_SUMS}", references.sep_estimated
            ),
        },
    ),
    Row(
        key="annulus0",
        title="aperture + annulus, order 0",
        options={**ANNULUS, "bkg_order": 0},
        references={
            "photutils": Reference(
                f"LocalBackground(ModeEstimatorBackground), {PHOTUTILS_SUMS}",
                references.photutils_annulus,
            ),
            "sep_x": Reference(
                f"stats_circann(subpix=1), its clipped mean, {SEP_SUMS}", references.sep_annulus
            ),
        },
    ),
    Row(
        key="annulus1",
        title="aperture + annulus, order 1",
        options={**ANNULUS, "bkg_order": 1},
    ),
    Row(
        key="annulus2",
        title="aperture + annulus, order 2",
        options={**ANNULUS, "bkg_order": 2},
    ),
    Row(
        key="com",
        title="COM centroid, 3 iterations",
        options={"aper": 1, "centroid_iter": 3},
        references={
            "photutils": Reference(
                f"centroid_sources(centroid_com) 3 times, {PHOTUTILS_SUMS}",
                references.photutils_centroid,
            ),
        },
    ),
)

if __name__ == "__main__":
    main("aperture", ROWS)
