"""Detection, apart from what the command line's tests hold."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot import place_psf_stamps
from gpuphot.detect import detect_objects

pytest.importorskip("sep_x")


@pytest.mark.parametrize("value", [1e6, np.inf, np.nan])
def test_what_is_masked_is_not_detected(rng, value):
    image = place_psf_stamps(rng.normal(100, 5, (120, 150)), 3.0, [40.0], [60.0], 5000.0)
    mask = np.zeros(image.shape, bool)
    mask[20:24, 100:104] = True
    image[mask] = value
    before = image.copy()
    found = detect_objects(image, mask, threshold=6)
    assert len(found) == 1
    assert np.hypot(found["x"][0] - 40, found["y"][0] - 60) < 0.1
    np.testing.assert_array_equal(image, before)
