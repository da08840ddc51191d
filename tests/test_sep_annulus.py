"""Medians and clipped means of annuli in SEP's way: the numbers of sep_x, on both backends."""

from __future__ import annotations

import numpy as np
import pytest
import sep_x

from gpuphot.numpy_backend import chunks

from .scenes import positions_of
from .test_sep_aperture import sep_frame_of, sep_scene

ANNULI = [(15.0, 21.0), (6.0, 11.5), (0.0, 3.0), (0.0, 0.3), (0.5, 1.2), (3.0, 3.0)]
LARGE = 2.0, 50.0  # more pixels than shared memory holds on a GPU


def scene_of(rng, seed, levels="continuous", n=120):
    """A scene, its positions too; of many or few different pixel values."""
    scene, err, image, mask = sep_scene(rng, seed, n=n)
    if levels == "coarse":
        image = coarse(image).astype(np.float32)
    return image, mask, err, *(np.array(scene.table[name]) for name in "xy")


def coarse(image):
    """Pixels with few different values, zeros of both signs among them."""
    steps = 10 * np.round((image - np.median(image)) / 10)
    odd = np.indices(image.shape).sum(axis=0) % 2 == 1
    return np.where(odd & (steps == 0), -0.0, steps)


def radii_of(rng, r_in, r_out, n):
    """Radii like these, half of them exactly these."""
    grow = np.where(np.arange(n) % 2, rng.uniform(0, 0.2, n), 0)
    return r_in + grow, r_out + 2 * grow


def stats(image, mask, x, y, r_in, r_out, **kwargs):
    """All results of sep_x for the finite positions, NaN for others."""
    valid = np.isfinite(x) & np.isfinite(y)
    result = np.full((6, len(x)), np.nan)
    result[:, valid] = sep_x.stats_circann(
        image, x[valid], y[valid], r_in[valid], r_out[valid], mask=mask, **kwargs
    )
    return result


def median_of(ops, frame, pos, r_in, r_out):
    r_in, r_out = (ops.to_device(np.asarray(r, float)) for r in (r_in, r_out))
    return ops.to_host(ops.sep_annulus_median(frame, pos, r_in, r_out))


def means_of(ops, frame, pos, r_in, r_out, *options):
    r_in, r_out = (ops.to_device(np.asarray(r, float)) for r in (r_in, r_out))
    means = ops.sep_annulus_means(frame, pos, r_in, r_out, *options)
    return [ops.to_host(values) for values in (means.level, means.error, means.area)]


@pytest.mark.parametrize("levels", ["continuous", "coarse"])
@pytest.mark.parametrize("radii", ANNULI)
def test_medians_are_those_of_sep(rng, seed, ops, levels, radii):
    image, mask, _, x, y = scene_of(rng, seed, levels)
    r_in, r_out = radii_of(rng, *radii, len(x))
    frame = sep_frame_of(ops, image, mask)
    median = median_of(ops, frame, positions_of(ops, x, y), r_in, r_out)
    np.testing.assert_array_equal(median, stats(image, mask, x, y, r_in, r_out)[2])


def sample_counts(shape, x, y, r_in, r_out):
    """How many of its 5 x 5 samples every pixel has in an annulus, which SEP finds by adding up."""
    step = 1 / 5
    squares = []
    for n, centre in zip(shape, (y, x), strict=True):
        samples = [np.arange(n) - centre + 0.5 * (step - 1)]
        for _ in range(4):
            samples.append(samples[-1] + step)
        squares.append(np.square(np.stack(samples, axis=1)))
    d2 = squares[1] + squares[0][:, :, None, None]
    return np.count_nonzero((d2 > r_in**2) & (d2 < r_out**2), axis=(1, 3))


def test_medians_of_large_annuli(rng, seed, ops):
    image, mask, _, x, y = scene_of(rng, seed, n=100)
    r_in, r_out = radii_of(rng, *LARGE, len(x))
    frame = sep_frame_of(ops, image, mask)
    median = median_of(ops, frame, positions_of(ops, x, y), r_in, r_out)
    expected = stats(image, mask, x, y, r_in, r_out)[2]
    if ops.xp is not np:
        # Where the weights up to a value are half of all but for rounding, a GPU takes this one.
        other = np.flatnonzero(np.isfinite(median) & (median != expected))
        for k in other:
            counts = sample_counts(image.shape, x[k], y[k], r_in[k], r_out[k])
            counts *= (mask == 0) & np.isfinite(image)
            assert 2 * counts[np.float32(image) <= median[k]].sum() == counts.sum()
        values = np.unique(image[mask == 0])
        between = np.searchsorted(values, expected[other]) - np.searchsorted(values, median[other])
        assert np.all((between > 0) & (between < 20))
        expected[other] = median[other]
    np.testing.assert_array_equal(median, expected)


def assert_means_are_those_of_sep(ops, scene, r_in, r_out, clip):
    """Level, error and area, the latter two from their definition."""
    image, mask, err, x, y = scene
    gain = 1.7
    frame = sep_frame_of(ops, image, mask, err)
    level, error, area = means_of(ops, frame, positions_of(ops, x, y), r_in, r_out, *clip, gain)
    options = {"subpix": 1, "clip_sigma": clip[0], "clip_iters": clip[1]}
    expected = stats(image, mask, x, y, r_in, r_out, **options)[4]
    np.testing.assert_allclose(level, expected, rtol=1e-12, atol=1e-12)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    variance = np.float32(err) ** 2
    for k in range(0, len(x), 7):
        d2 = (columns - x[k]) ** 2 + (rows - y[k]) ** 2
        member = (d2 > r_in[k] ** 2) & (d2 < r_out[k] ** 2) & (mask == 0)
        assert area[k] == member.sum()
        assert np.isnan(error[k]) == np.isnan(level[k]) == (not member.any())
        noise = max(image[member].sum(dtype=float), 0) / gain
        noise += variance[member].sum(dtype=float) if clip[1] == 0 else 0
        if member.any():
            tolerance = 1e-12 * np.abs(image[member]).sum(dtype=float) + 1e-12 * noise
            assert abs((error[k] * area[k]) ** 2 - noise) <= tolerance


@pytest.mark.parametrize("levels", ["continuous", "coarse"])
@pytest.mark.parametrize("clip", [(3.0, 5), (2.0, 20), (1.5, 1), (3.0, 0)])
def test_means_are_those_of_sep(rng, seed, ops, levels, clip):
    scene = scene_of(rng, seed, levels)
    for radii in ANNULI:
        assert_means_are_those_of_sep(ops, scene, *radii_of(rng, *radii, 120), clip)


@pytest.mark.parametrize("clip", [(2.0, 5), (3.0, 0)])
def test_means_of_large_annuli(rng, seed, ops, clip):
    scene = scene_of(rng, seed, n=100)
    assert_means_are_those_of_sep(ops, scene, *radii_of(rng, *LARGE, 100), clip)


@pytest.mark.parametrize("iters", [5, 0])
@pytest.mark.parametrize("gain", [None, 2.0])
def test_means_are_what_sep_subtracts_from_apertures(rng, seed, ops, iters, gain):
    image, mask, err, x, y = scene_of(rng, seed)
    frame = sep_frame_of(ops, image, mask, err)
    r_in, r_out = np.full(len(x), 5.0), np.full(len(x), 9.0)
    level, error, area = means_of(
        ops, frame, positions_of(ops, x, y), r_in, r_out, 3.0, iters, gain
    )
    k = np.flatnonzero(area > 0)
    options = {"err": err.astype(np.float32), "gain": gain, "mask": mask}
    total, total_err, flag = sep_x.sum_circle(image, x[k], y[k], 3.0, **options)
    net, net_err, _ = sep_x.sum_circle(
        image, x[k], y[k], 3.0, bkgann=(5.0, 9.0), clip_iters=iters, **options
    )
    pixels, *_ = sep_x.sum_circle(np.ones_like(image), x[k], y[k], 3.0)
    pixels[flag & 64 != 0] = 0
    covered = np.isfinite(total)
    scale = np.abs(image).max()
    np.testing.assert_allclose(
        (total - level[k] * pixels)[covered], net[covered], rtol=1e-11, atol=1e-11 * scale
    )
    np.testing.assert_allclose(
        np.hypot(total_err, error[k] * pixels)[covered], net_err[covered], rtol=1e-11
    )


def test_annuli_that_there_are_not(ops, rng):
    image = rng.normal(0, 1, (30, 40))
    r_in = np.array([2.0, np.nan, 1.0, 3.0, -1.0, 0.0, np.inf, 1e300, 2.0, 1.0])
    r_out = np.array([4.0, 3.0, np.nan, 2.0, 2.0, np.inf, np.inf, 1e300, 1e19, 1e17])
    x, y = np.full(10, 20.0), np.full(10, 15.0)
    frame, pos = sep_frame_of(ops, image), positions_of(ops, x, y)
    median = median_of(ops, frame, pos, r_in, r_out)
    level, error, area = means_of(ops, frame, pos, r_in, r_out, 3.0, 5, None)
    exists = np.isin(np.arange(10), [0, 9])
    for values in (median, level, error):
        np.testing.assert_array_equal(np.isfinite(values), exists)
    np.testing.assert_array_equal(area > 0, exists)


def test_pixels_of_no_value_do_not_take_part(rng, ops):
    image, background = rng.normal(50, 3, (60, 70)), np.zeros((60, 70))
    x, y = rng.uniform(0, 70, 40), rng.uniform(0, 60, 40)
    r_in, r_out = np.full(40, 4.0), np.full(40, 8.0)
    background[rng.integers(0, 60, 50), rng.integers(0, 70, 50)] = np.nan
    mask = rng.random(image.shape) < 0.1
    frame = ops.sep_frame(*map(ops.to_device, (image, mask, background, np.ones_like(image))))
    masked = sep_frame_of(ops, image, mask | np.isnan(background))
    pos = positions_of(ops, x, y)
    np.testing.assert_array_equal(
        median_of(ops, frame, pos, r_in, r_out), median_of(ops, masked, pos, r_in, r_out)
    )
    for options in ((3.0, 5, None), (3.0, 0, 1.0)):
        for found, expected in zip(
            means_of(ops, frame, pos, r_in, r_out, *options),
            means_of(ops, masked, pos, r_in, r_out, *options),
            strict=True,
        ):
            np.testing.assert_array_equal(found, expected)


def test_far_outliers_are_clipped_without_a_trace(rng, ops):
    image = rng.normal(1000, 1, (60, 60))
    pos = positions_of(ops, rng.uniform(25, 35, 20), rng.uniform(25, 35, 20))
    r_in, r_out = np.full(20, 6.0), np.full(20, 14.0)
    spoilt = image.copy()
    spoilt[rng.integers(0, 60, 40), rng.integers(0, 60, 40)] = rng.choice([-1e30, 1e30], 40)
    level, _, area = means_of(ops, sep_frame_of(ops, spoilt), pos, r_in, r_out, 3.0, 20, None)
    x, y = (ops.to_host(values) for values in (pos.x, pos.y))
    expected = stats(spoilt.astype(np.float32), None, x, y, r_in, r_out, subpix=1, clip_iters=20)[4]
    np.testing.assert_allclose(level, expected, rtol=1e-13)
    assert np.all(np.abs(level - 1000) < 1)
    assert np.all(area > 400)


def test_results_depend_neither_on_other_rows_nor_on_chunks(rng, seed, ops, monkeypatch):
    image, mask, err, x, y = scene_of(rng, seed)
    r_in, r_out = radii_of(rng, 5.0, 9.0, len(x))
    r_out[::40] = 40.0
    frame = sep_frame_of(ops, image, mask, err)

    def everything(k):
        pos = positions_of(ops, x[k], y[k])
        median = median_of(ops, frame, pos, r_in[k], r_out[k])
        means = (means_of(ops, frame, pos, r_in[k], r_out[k], 3.0, iters, 1.0) for iters in (5, 0))
        return np.stack([median, *(values for results in means for values in results)])

    together = everything(np.arange(len(x)))
    some = rng.permutation(len(x))[: len(x) // 2]
    np.testing.assert_array_equal(everything(some), together[:, some])
    monkeypatch.setattr(chunks, "WORKSPACE", 1 << 10)
    np.testing.assert_array_equal(everything(some), together[:, some])


def test_no_sources(ops):
    frame, pos = sep_frame_of(ops, np.ones((5, 5))), positions_of(ops, [], [])
    assert median_of(ops, frame, pos, [], []).shape == (0,)
    assert all(v.shape == (0,) for v in means_of(ops, frame, pos, [], [], 3.0, 5, None))
