"""Data structures: the prepared image, the positions, the background mesh, the FWHM."""
