"""Benchmark of deblended apertures: `python -m bench.deblended --help`.

The rows are `measure_aperture_deblended` and two of its parts, the smooth field of flux ratios and
the model image; see README.md for what the figures mean.
"""

from __future__ import annotations

from functools import partial

from . import agreement, references
from .comparison import Reference, Row, main

DEBLENDED = "photometry_measure.measure_aperture_deblended(same arguments)"


def _row(key: str, title: str, called: str, equivalent, check, **fields) -> Row:
    """A row that needs the fluxes of all stars around."""
    return Row(
        key=key,
        title=title,
        corner=True,
        references={"stdpipe": Reference(called, equivalent)},
        check=check,
        **fields,
    )


ROWS = (
    _row(
        "deblended",
        "deblended",
        DEBLENDED,
        references.stdpipe_deblended,
        agreement.check_deblended,
        function="measure_aperture_deblended",
    ),
    _row(
        "no-errors",
        "deblended, neighbours' errors left out",
        DEBLENDED,
        partial(references.stdpipe_deblended, propagate_neighbour_errors=False),
        agreement.check_deblended,
        function="measure_aperture_deblended",
        options={"propagate_neighbour_errors": False},
    ),
    _row(
        "loess",
        "LOESS field",
        "smoothing.fit_vector_field_2d(backend='loess', k=100, scales=ptp/4)",
        references.stdpipe_loess,
        partial(agreement.check_arrays, "field"),
        function="loess_field",
    ),
    _row(
        "render",
        "model image, 25 x 25 stamps",
        "psf.place_psf_stamp for every star",
        references.stdpipe_render,
        partial(agreement.check_arrays, "image"),
        function="render_psf_image",
    ),
)

if __name__ == "__main__":
    main("deblended", ROWS, fluxes_given=True)
