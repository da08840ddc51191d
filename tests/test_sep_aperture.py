"""Aperture sums in SEP's way: the numbers of sep_x, on both backends."""

from __future__ import annotations

import numpy as np
import pytest
import sep_x

from gpuphot.models.sep import SepFlag

from .scenes import make_scene, positions_of

NAMES = "flux", "fluxerr", "flag"


def sep_frame_of(ops, image, mask=None, err=1.0):
    """A frame of an image without background."""
    err = ops.to_device(np.array(np.broadcast_to(err, image.shape), float))
    return ops.sep_frame(ops.to_device(np.asarray(image, float)), mask, 0.0, err)


def sep_scene(rng, seed, shape=(130, 150), n=260):
    """A scene with its noise, and what sep_x takes: float32 pixels and a mask."""
    scene = make_scene(seed, shape=shape, n=n)
    err = rng.uniform(0.5, 20, shape)
    missing = ~np.isfinite(scene.image)
    image = np.where(missing, 0, scene.image).astype(np.float32)
    return scene, err, image, (scene.mask | missing).astype(np.uint8)


def sums_of(ops, frame, pos, r, gain, **kwargs):
    sums = ops.sep_aperture_sums(frame, pos, ops.to_device(r), gain, **kwargs)
    return [ops.to_host(getattr(sums, name)) for name in NAMES]


def assert_same_sums(found, expected, scale):
    """Equal but for the rounding of sums of values of this scale, with the same flags and NaN."""
    for values, reference in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(values, reference, rtol=1e-12, atol=1e-12 * scale)
    np.testing.assert_array_equal(found[2], expected[2])


@pytest.mark.parametrize("subpix", [5, 0, 1, 11])
@pytest.mark.parametrize("gain", [None, 0.7])
def test_sums_are_those_of_sep(rng, seed, ops, subpix, gain):
    scene, err, image, mask = sep_scene(rng, seed)
    x, y = (np.array(scene.table[name]) for name in "xy")
    x[90:100], y[90:100] = np.round(x[90:100]), np.round(y[90:100])
    r = rng.uniform(0, 9, len(x))
    r[80:100] = np.tile([0.0, 0.3, 0.7072, 1.0, 3.0], 4)
    r[100:104] = np.nan, 40.0, 500.0, 1e25
    pos = positions_of(ops, x, y)
    found = sums_of(
        ops, sep_frame_of(ops, scene.image, scene.mask, err), pos, r, gain, subpix=subpix
    )
    valid = np.isfinite(x) & np.isfinite(y)
    expected = sep_x.sum_circle(
        image, x[valid], y[valid], r[valid], err=err.astype(np.float32), gain=gain, mask=mask,
        subpix=subpix,
    )  # fmt: skip
    assert_same_sums([v[valid] for v in found], expected, np.abs(image).max())
    assert np.isnan(found[0][~valid]).all()
    assert np.isnan(found[1][~valid]).all()
    assert not found[2][~valid].any()


def test_radius_of_nan_is_truncated(ops):
    pos = positions_of(ops, [5.0, 6.0], [5.0, 6.0])
    flux, fluxerr, flag = sums_of(
        ops, sep_frame_of(ops, np.ones((12, 12))), pos, np.array([np.nan, 2.0]), None
    )
    assert np.isnan(flux[0])
    assert np.isnan(fluxerr[0])
    assert flag[0] == SepFlag.TRUNCATED
    assert np.isfinite(flux[1])
    assert flag[1] == 0


def test_masked_pixels_get_the_mean_of_the_others(ops):
    mask = np.zeros((40, 40), bool)
    mask[20, 18:23] = True
    mask[:8, :8] = True
    frame = sep_frame_of(ops, np.full((40, 40), 7.0), mask)
    flux, fluxerr, flag = sums_of(
        ops, frame, positions_of(ops, [20.3, 30.3, 3.0], [20.1, 30.1, 3.0]), np.full(3, 3.0), None
    )
    assert flux[0] == pytest.approx(flux[1], rel=0.01)
    assert flux[2] == fluxerr[2] == 0
    assert list(flag) == [SepFlag.HAS_MASKED, 0, SepFlag.HAS_MASKED | SepFlag.ALL_MASKED]


def test_noise_that_is_not_finite_spoils_only_the_error(rng, ops):
    err = np.ones((30, 30))
    err[10, 10] = np.nan
    pos = positions_of(ops, [10.0, 20.0], [10.0, 20.0])
    frame = sep_frame_of(ops, rng.normal(5, 1, (30, 30)), None, err)
    flux, fluxerr, flag = sums_of(ops, frame, pos, np.full(2, 3.0), None)
    assert np.isfinite(flux).all()
    assert list(np.isnan(fluxerr)) == [True, False]
    assert not flag.any()


def test_rows_are_independent(rng, seed, ops):
    scene, err, _, _ = sep_scene(rng, seed)
    frame = sep_frame_of(ops, scene.image, scene.mask, err)
    x, y = (np.array(scene.table[name]) for name in "xy")
    r = rng.uniform(0, 9, len(x))
    together = sums_of(ops, frame, positions_of(ops, x, y), r, 1.0)
    shuffled = rng.permutation(len(x))[: len(x) // 2]
    some = sums_of(ops, frame, positions_of(ops, x[shuffled], y[shuffled]), r[shuffled], 1.0)
    for values, reference in zip(some, together, strict=True):
        np.testing.assert_array_equal(values, reference[shuffled])


def test_no_sources(ops):
    sums = ops.sep_aperture_sums(
        sep_frame_of(ops, np.ones((5, 5))),
        positions_of(ops, [], []),
        ops.to_device(np.ones(0)),
        1.0,
    )
    assert all(getattr(sums, name).shape == (0,) for name in NAMES)
