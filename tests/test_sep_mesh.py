"""SEP's background: the maps of both backends are those of SEP, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import sep_x

from gpuphot.models import sep_mesh

from .scenes import add_stars

SHAPE = (97, 113)


def field(rng, shape=SHAPE, sky=100.0):
    """Stars on an uneven background with a step."""
    height, width = shape
    image = sky + rng.normal(0, 5, shape) + np.linspace(0, rng.uniform(-40, 40), width)
    image[height // 2 :] += 10
    n = height * width // 200
    x, y = rng.uniform(0, width, n), rng.uniform(0, height, n)
    add_stars(image, x, y, 10 ** rng.uniform(2, 5, n))
    return image


def holes(rng, shape=SHAPE):
    """Single pixels, a block of many cells, columns up to the edge and most of one more cell."""
    mask = rng.random(shape) < 0.1
    top, left = (rng.integers(0, size // 3 + 1) for size in shape)
    mask[top : top + shape[0] // 2, left : left + shape[1] // 2] = True
    mask[:, shape[1] - shape[1] // 8 :] = True
    return mask


def background(ops, image, mask, bg_size):
    """The maps of a backend, and those of SEP."""
    data, bad = ops.load_image(ops.to_device(image), mask)
    before = [ops.to_host(v).copy() for v in (data, bad)]
    maps = [ops.to_host(v) for v in ops.sep_background(data, bad, bg_size)]
    for array, copy in zip((data, bad), before, strict=True):
        np.testing.assert_array_equal(ops.to_host(array), copy)
    with np.errstate(over="ignore"):
        pixels = before[0].astype(np.float32)
    mesh = sep_x.Background(pixels, mask=before[1], bw=bg_size, bh=bg_size)
    return maps, [mesh.back(), mesh.rms()]


def check(ops, image, mask, bg_size):
    maps, expected = background(ops, image, mask, bg_size)
    for values, reference in zip(maps, expected, strict=True):
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, reference)
    return maps


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bg_size", [5, 8, 16, 17, 31, 32, 50, 64, 100, 1000])
def test_maps_are_those_of_sep(rng, ops, bg_size, masked):
    check(ops, field(rng), holes(rng) if masked else None, bg_size)


@pytest.mark.parametrize("bg_size", [2, 3, 4])
def test_cells_of_a_few_pixels(rng, ops, bg_size):
    shape = (29, 38)
    check(ops, field(rng, shape), holes(rng, shape), bg_size)


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (1, 200), (150, 1), (2, 2), (40, 40), (40, 41), (80, 80), (81, 80), (120, 120)],
)
def test_meshes_of_few_cells(rng, ops, shape):
    check(ops, field(rng, shape), rng.random(shape) < 0.1, 40)


@pytest.mark.parametrize("bg_size", [32, 64])
def test_cell_of_one_pixel(rng, ops, bg_size):
    check(ops, field(rng, (257, 257)), None, bg_size)


@pytest.mark.parametrize("sky", [-100.0, -1e4, 1e3, 1e5, 1e7])
def test_sums_of_a_bright_sky_round_like_those_of_sep(rng, ops, sky):
    check(ops, field(rng, sky=sky), holes(rng), 32)


@pytest.mark.parametrize("bg_size", [7, 40])
@pytest.mark.parametrize(
    "image",
    [
        lambda rng: np.full(SHAPE, rng.normal(0, 100)),
        lambda rng: np.rint(field(rng) / 10) * 10,
        lambda rng: np.where(rng.random(SHAPE) < 0.05, field(rng), 0),
        lambda rng: 10 ** rng.uniform(-20, 20, SHAPE),
        lambda rng: field(rng) * 1e-30,
    ],
    ids=["constant", "quantised", "sparse", "of all sizes", "faint"],
)
def test_unusual_pixels(rng, ops, image, bg_size):
    check(ops, image(rng), holes(rng), bg_size)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_masked(rng, ops, value):
    image = field(rng)
    image[rng.random(SHAPE) < 0.2] = value
    image[40:70, 30:60] = value
    for values in check(ops, image, rng.random(SHAPE) < 0.1, 16):
        assert np.isfinite(values).all()


@pytest.mark.parametrize("value", [1e39, -1e39, 1e38, -1e30])
def test_pixels_at_the_limits_of_single_precision(rng, ops, value):
    image = field(rng)
    # In a corner, along an edge and inside: what the filter leaves of them differs.
    image[3, 110], image[0, 60], image[10, 40], image[50, 60] = value, value, value, -value
    check(ops, image, None, 16)


def test_cells_half_unmasked_are_good(rng, ops):
    image, mask = field(rng, (40, 45), sky=0.0), np.zeros((40, 45), bool)
    mask[:5, :10] = True
    mask[10:15, :10] = mask[10, 0] = True
    mask[15, 0] = True
    mask[:5, 40:] = mask[15:20, 40:] = mask[14, 40] = True
    check(ops, image, mask, 10)


def test_no_good_cell_gives_0_and_1(rng, ops):
    level, rms = check(ops, field(rng), np.ones(SHAPE, bool), 16)
    assert (level == 0).all()
    assert (rms == 1).all()


def test_cells_larger_than_any_image(rng, ops):
    data, bad = ops.load_image(ops.to_device(field(rng)), None)
    largest = ops.sep_background(data, bad, 10**12)
    for values, reference in zip(largest, ops.sep_background(data, bad, 1000), strict=True):
        np.testing.assert_array_equal(ops.to_host(values), ops.to_host(reference))


# ---- The host's part alone: a cell of equal pixels has their value as its level


def interpolated(nodes, shape, cell):
    """A mesh on the pixels of an image, in single precision."""
    lower, t = sep_mesh.row_weights(shape[0], cell)
    curvature = sep_mesh.second_derivatives(nodes)
    level, curvature = nodes[0], curvature[0]
    if len(level) > 1:
        t = t[:, None]
        s, upper = 1 - t, lower + 1
        level = s * level[lower] + t * level[upper] + (s * s * s - s) * curvature[lower]
        level += (t * t * t - t) * curvature[upper]
        curvature = sep_mesh.second_derivatives(level.T[None])[0].T
    else:
        level = np.broadcast_to(level, (shape[0], level.shape[1]))
        curvature = np.zeros_like(level)
    if level.shape[1] == 1:
        return np.broadcast_to(level, shape)
    left, d = sep_mesh.column_weights(shape[1], cell)
    c, right = 1 - d, left + 1
    return c * (level[:, left] + (c * c - 1) * curvature[:, left]) + d * (
        level[:, right] + (d * d - 1) * curvature[:, right]
    )


@pytest.mark.parametrize("cell", [2, 3, 8, 13])
@pytest.mark.parametrize("n_cells", [(1, 1), (1, 7), (6, 1), (2, 2), (3, 3), (2, 9), (31, 23)])
@pytest.mark.parametrize("bad", [0.0, 0.3, 0.97])
def test_any_mesh_is_filled_filtered_and_interpolated_like_by_sep(rng, n_cells, cell, bad):
    mesh = rng.normal(100, 30, n_cells).astype(np.float32)
    mask = rng.random(n_cells) < bad
    image, masked = (np.kron(v, np.ones((cell, cell), v.dtype)) for v in (mesh, mask))
    cells = np.where(mask, np.float32(np.nan), np.stack([mesh, np.zeros_like(mesh)]))
    expected = sep_x.Background(image, mask=masked, bw=cell, bh=cell).back()
    nodes = sep_mesh.smooth_mesh(cells)
    assert nodes.dtype == np.float32
    np.testing.assert_array_equal(interpolated(nodes, image.shape, cell), expected)


def test_windows_of_the_filter_shrink_at_the_edges(rng):
    cells = rng.normal(100, 30, (2, 9, 12)).astype(np.float32)
    for (plane, j, i), value in np.ndenumerate(sep_mesh.smooth_mesh(cells)):
        b, a = min(1, j, 8 - j), min(1, i, 11 - i)
        assert value == np.median(cells[plane, j - b : j + b + 1, i - a : i + a + 1])
