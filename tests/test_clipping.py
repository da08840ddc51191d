"""Sigma-clipped statistics against the loops that define them."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.numpy_backend.clipping import SortedSamples


def clip(values, from_original):
    """Rejection beyond 3 standard deviations of the median, one value at a time."""
    kept = values
    for _ in range(10):
        median, std = np.median(kept), np.std(kept)
        inside = (kept >= median - 3 * std) & (kept <= median + 3 * std)
        bounds = median - 3 * std, median + 3 * std
        if inside.all():
            break
        kept = kept[inside]
    if from_original:
        kept = values[(values >= bounds[0]) & (values <= bounds[1])]
    return np.median(kept), np.mean(kept), np.std(kept), len(kept)


def samples_of(kind, rng, n, size):
    values = rng.normal(0, 1, (n, size))
    if kind == "stars":
        values[rng.random((n, size)) < 0.05] += 10 ** rng.uniform(1, 6)
    elif kind == "dead pixels":
        values[rng.random((n, size)) < 0.05] = -1e9
    elif kind == "bright sky":
        values += 1e6
    elif kind == "skewed":
        values = np.exp(2 * values)
    elif kind == "integers":
        values = np.rint(3 * values)
    elif kind == "constant":
        values[...] = np.sqrt(2)
    return values


@pytest.mark.parametrize(
    "kind", ["plain", "stars", "dead pixels", "bright sky", "skewed", "integers", "constant"]
)
@pytest.mark.parametrize("size", [1, 2, 7, 300])
@pytest.mark.parametrize("masked", [False, True])
def test_statistics_of_the_survivors(rng, kind, size, masked):
    values = samples_of(kind, rng, 20, size)
    keep = rng.random(values.shape) < 0.7 if masked else None
    samples = SortedSamples(values.copy(), keep)
    first, last, low, high = samples.clip()
    for from_original, interval in ((False, (first, last)), (True, samples.between(low, high))):
        median, mean, std = samples.median_mean_std(*interval)
        for k in range(len(values)):
            sample = values[k] if keep is None else values[k][keep[k]]
            if not len(sample):
                assert np.isnan(mean[k])
                continue
            expected = clip(sample, from_original)
            level = np.abs(sample).max()
            tolerance = 1e-12 * expected[2] + 1e-15 * level
            assert interval[1][k] - interval[0][k] == expected[3]
            assert abs(samples.reference[k] + median[k] - expected[0]) <= tolerance
            assert abs(samples.reference[k] + mean[k] - expected[1]) <= tolerance
            assert abs(std[k] - expected[2]) <= tolerance
