"""The grid of cells that both backends link sources on."""

CELL = 0.7
"""Side of a cell in linking radii: below 1 / sqrt(2), so that all sources of a cell are linked."""

REACH = 2
"""Linked sources lie at most so many cells apart, along rows and columns."""

MAX_CELL = 2**30
"""Sources so many cells from the origin are off any image, and stay alone."""

MIN_RADIUS = 1e-3
"""In pixels; below it, cells of a whole image could not be numbered."""

MAX_PER_PIXEL = 16
"""More sources of one group on one pixel are not told apart: the rest of them is given up."""
