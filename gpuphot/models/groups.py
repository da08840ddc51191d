"""What both backends need to agree on about groups: how sources are linked, and solved for."""

CELL = 0.7
"""Side of a cell in linking radii: below 1 / sqrt(2), so that all sources of a cell are linked."""

N_GRIDS = 40
"""Grids, each for sources of reaches from those of the grid before up to twice as wide ones; the
last one for all wider ones, too."""

MARGIN = 1e-6
"""Cells that are so many of their sides out of reach are looked at, too, in view of rounding."""

MAX_CELL = 2**30
"""Sources so many cells from the origin are off any image, and stay alone."""

MIN_RADIUS = 1e-3
"""In pixels; below it, cells of a whole image could not be numbered."""

MIN_REACH = MIN_RADIUS / 2
"""Sources whose own reach is below it stay alone."""

MAX_REACH = 2.0**40
"""Reaches are not let above it, which no image has room for."""

CROWD = 8
"""Side of the squares, in pixels, in which members of a group are counted."""

MAX_CROWD = 32
"""Members in such a square that are fitted. Where there are more, over half a star a pixel, they
cannot be told apart: all are given up, and the first ones fitted for the sake of others."""

MAX_DENSE = 64
"""Members of the largest group that is solved at once; larger ones are cut into blocks."""

CORE = 32
"""Side of the core of a block, in pixels."""

MAX_BLOCK = 4096
"""Members of a block; a core with more around it, over half a star a pixel, is given up."""

MAX_SWEEPS = 20
"""Rounds of solving for what is left of the right-hand sides, at most."""

NEGLIGIBLE_CHANGE = 1e-11
"""A round that changes no well-determined flux by so much of its error is the last."""

WELL_DETERMINED = 1e4
"""Largest inflation of the variance of such a flux. Others may never stop changing by rounding."""

MIN_PIVOT = 1e-13
"""Squared pivots of a matrix with unit diagonal are not let below it, about the rounding error of
a large one: those of rows that depend on others are nothing but such errors."""

MAX_INFLATION = 1e8
"""A flux whose variance the other members of its group inflate more than so is not determined."""
