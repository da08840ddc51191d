"""Twin of ``numpy_backend.sep_group_optimal``."""

from __future__ import annotations

from typing import Any

import cupy

from gpuphot.models.frame import Frame, Groups, Positions
from gpuphot.models.psf import PSFModel
from gpuphot.models.sep import AnnulusMeans, FitOptions, PSFFits, SepSums


def sep_grouped_optimal_sums(
    frame: Frame,
    pos: Positions,
    groups: Groups,
    r: Any,
    fwhm: Any,
    gain: float | None,
    annulus: AnnulusMeans | None = None,
) -> SepSums:
    """Optimal sums of Gaussians, the members of each group at the same time."""
    raise NotImplementedError


