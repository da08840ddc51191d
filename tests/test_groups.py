"""Who belongs together: groups of linked sources, and medians over them. All is exact."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from gpuphot.models.frame import Groups

from .scenes import positions_of
from .test_bit_identity import ON_A_GRID

RADII = (1e-3, 0.1, 0.3, 1.0, 2.0, 2.5, 5.0, 7.07, 20.0, 1e3, 9e8)


def link(ops, x, y, radius):
    """Identities and sizes of the groups."""
    groups = ops.link_groups(positions_of(ops, x, y), ops.to_device(radius / 2))
    identity, size = ops.to_host(groups.id), ops.to_host(groups.size)
    assert identity.dtype == size.dtype == np.int64
    return identity, size


def link_pair_by_pair(x, y, radius):
    """The same by definition: the components of the graph of all pairs, as they appear.

    The radius is a number, or that of each source, of which two make a radius.
    """
    reach = np.broadcast_to(radius / 2, len(x))
    valid = np.flatnonzero(np.isfinite(x) & np.isfinite(y) & (reach >= 0))
    identity, size = np.full(len(x), -1), np.zeros(len(x), int)
    dx, dy = (v[valid][:, None] - v[valid] for v in (x, y))
    linked = dx * dx + dy * dy <= np.square(reach[valid][:, None] + reach[valid])
    _, component = connected_components(linked, directed=False)
    identity[valid] = in_order_of_appearance(component)
    size[valid] = np.bincount(identity[valid])[identity[valid]]
    return identity, size


def in_order_of_appearance(labels):
    """Labels from 1 on, for labels of any kind."""
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(label, len(numbers) + 1) for label in labels], int)


def random_positions(rng, kind, n=150, size=60):
    """Sources on and off the image, some of them without a position, some coincident."""
    x, y = (ON_A_GRID[kind](rng.uniform(-15, size + 15, n)) for _ in "xy")
    x[20:25], y[20:25] = x[30:35], y[30:35]
    x[:5] = np.nan, np.inf, 5.0, -400.0, 1e12
    y[:5] = 5.0, 7.0, -np.inf, 20.0, 3.0
    order = rng.permutation(n)
    return x[order], y[order]


# ---- linking -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ON_A_GRID)
@pytest.mark.parametrize("radius", RADII)
def test_groups_are_those_of_all_pairs(rng, ops, kind, radius):
    x, y = random_positions(rng, kind)
    identity, size = link(ops, x, y, radius)
    expected = link_pair_by_pair(x, y, radius)
    np.testing.assert_array_equal(identity, expected[0])
    np.testing.assert_array_equal(size, expected[1])
    assert np.array_equal(identity < 0, ~(np.isfinite(x) & np.isfinite(y)))


@pytest.mark.parametrize("kind", ON_A_GRID)
@pytest.mark.parametrize("typical", [0.5, 3.0, 12.0])
@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
def test_sources_with_reaches_of_their_own(rng, ops, kind, typical, spread):
    x, y = random_positions(rng, kind)
    radius = np.maximum(typical * np.exp(rng.normal(0, spread, len(x))), 1e-3)
    radius[rng.integers(0, len(x), 4)] = np.nan
    identity, size = link(ops, x, y, radius)
    expected = link_pair_by_pair(x, y, radius)
    np.testing.assert_array_equal(identity, expected[0])
    np.testing.assert_array_equal(size, expected[1])


@pytest.mark.parametrize("odd", [1e-2, 100.0, 1e5])
def test_one_odd_reach_among_others(rng, ops, odd):
    x, y = random_positions(rng, "random")
    radius = np.where(np.arange(len(x)) == 90, odd, 1.5)
    np.testing.assert_array_equal(link(ops, x, y, radius), link_pair_by_pair(x, y, radius))


def test_reaches_that_make_no_sense(ops):
    radius = np.array([0.0, 2.0, np.nan, 2.0, np.inf, -2.0, 1e-5, 1e300])
    identity, size = link(ops, [5.0, 6.0, 7.0, 8.0, 1e300, 9.0, 6.0, 9e3], np.full(8, 5.0), radius)
    assert identity.tolist() == [1, 2, -1, 2, 3, -1, 4, 2]
    assert size.tolist() == [1, 3, 0, 3, 1, 0, 1, 3]


def test_a_distance_equal_to_the_radius_links(ops):
    x, y = np.array([10.0, 13.0, 40.0]), np.array([20.0, 24.0, 20.0])
    assert link(ops, x, y, 5.0)[0].tolist() == [1, 1, 2]
    assert link(ops, x, y, np.nextafter(5.0, 0))[0].tolist() == [1, 2, 3]


def test_sources_are_linked_through_others(rng, ops):
    """A chain that winds through the image, and one whose last link is missing."""
    x, y = np.tile(np.arange(20.0), 2), np.repeat([0.0, 30.0], 20)
    x[-1] += 1e-9
    order = rng.permutation(40)
    identity, size = link(ops, x[order], y[order], 1.0)
    np.testing.assert_array_equal(size, np.where(order == 39, 1, np.where(order < 20, 20, 19)))
    assert identity.max() == 3


def test_no_sources_are_in_no_groups(ops):
    identity, size = link(ops, np.empty(0), np.empty(0), 3.0)
    assert len(identity) == len(size) == 0
    identity, size = link(ops, [np.nan, np.inf], [1.0, 2.0], 3.0)
    assert identity.tolist() == [-1, -1]
    assert size.tolist() == [0, 0]


def test_a_radius_of_zero_links_nothing(ops):
    """Not even coincident sources."""
    identity, size = link(ops, [5.0, 5.0, np.nan, 0.0, 0.0], [5.0, 5.0, 1.0, 0.0, 0.0], 0.0)
    assert identity.tolist() == [1, 2, -1, 3, 4]
    assert size.tolist() == [1, 1, 0, 1, 1]


def test_coincident_sources_are_linked_at_any_radius(ops):
    identity, size = link(ops, np.full(70, 3.3), np.full(70, 4.4), 1e-3)
    assert set(identity) == {1}
    assert set(size) == {70}


@pytest.mark.parametrize("far", [1e12, -1e12, 1e300])
def test_a_source_far_away_neither_links_nor_disturbs(rng, ops, far):
    x, y = random_positions(rng, "random", 60)
    expected, _ = link_pair_by_pair(x, y, 2.0)
    identity, size = link(ops, np.append(x, far), np.append(y, 3.0), 2.0)
    np.testing.assert_array_equal(identity[:-1], expected)
    assert (identity[-1], size[-1]) == (expected.max() + 1, 1)


@pytest.mark.parametrize("kind", ON_A_GRID)
def test_permuted_rows_are_in_the_same_groups(rng, ops, kind):
    x, y = random_positions(rng, kind)
    order = rng.permutation(len(x))
    for radius in (1.0, 3.0, 6.0):
        identity, size = link(ops, x, y, radius)
        permuted, permuted_size = link(ops, x[order], y[order], radius)
        np.testing.assert_array_equal(permuted_size, size[order])
        grouped = permuted > 0
        np.testing.assert_array_equal(
            permuted[grouped], in_order_of_appearance(identity[order][grouped])
        )


@pytest.mark.fresh_seed
def test_two_dense_clumps_are_not_linked(rng, ops):
    """Pairs are looked at until one is close enough; here 40,000 in vain."""
    x, y = rng.uniform(0, 1, (2, 400))
    x[200:] += 3.001
    identity, size = link(ops, x, y, 2.0)
    np.testing.assert_array_equal(identity, np.repeat([1, 2], 200))
    assert set(size) == {200}


@pytest.mark.fresh_seed
def test_one_pair_links_two_dense_clumps(rng, ops):
    """Wherever it comes among the 40,000."""
    x, y = rng.uniform(0, 1, (2, 400))
    x[200:] += 3.001
    x[rng.integers(200)], y[rng.integers(200)] = 1.0, 0.5
    for k in rng.integers(200, 400, 5):
        bridge = x.copy()
        bridge[k] = x[:200].max() + 1.0
        expected = link_pair_by_pair(bridge, y, 2.0)
        np.testing.assert_array_equal(link(ops, bridge, y, 2.0), expected)


@pytest.mark.fresh_seed
@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize("radius", [0.1, 20.0, 1e5, 9e8])
def test_memory_does_not_grow_with_the_number_of_pairs(rng, ops, radius, spread):
    """There are 5e9 of them. NumPy needs 0.8 kB a source, whatever the radius."""
    x, y = rng.uniform(0, 2000, (2, 100_000))
    radius = radius * np.exp(spread * rng.uniform(-1, 1, len(x))) if spread else radius
    tracemalloc.start()
    identity, size = link(ops, x, y, radius)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1500 * len(x)
    if np.min(radius) >= 10:
        assert set(identity) == {1}
        assert set(size) == {len(x)}
    else:
        assert size.max() < 10


# ---- medians -------------------------------------------------------------------------------------


def medians(ops, identity, values):
    size = np.array([np.count_nonzero(identity == each) for each in identity], np.int64)
    groups = Groups(ops.to_device(identity), ops.to_device(np.where(identity > 0, size, 0)))
    return ops.to_host(ops.group_median(groups, ops.to_device(values)))


def test_median_of_every_group(rng, ops):
    """Of odd and even numbers of values, of which some are missing."""
    n = 120
    identity = in_order_of_appearance(rng.integers(0, 30, n))
    identity[rng.integers(0, n, 8)] = -1
    values = np.round(rng.normal(3, 1, n), 1)
    values[rng.random(n) < 0.2] = np.nan
    values[identity == 3] = np.nan
    result = medians(ops, identity, values)
    for k in range(n):
        of_group = values[(identity == identity[k]) & np.isfinite(values)]
        expected = np.median(of_group) if identity[k] > 0 and len(of_group) else np.nan
        np.testing.assert_equal(result[k], expected)


def test_median_of_an_even_number_is_the_mean_of_two(ops):
    identity = np.array([1, 2, 1, 2, -1, 1, 1, 3])
    values = np.array([1.0, np.nan, 4.0, 7.0, 100.0, 2.0, 50.0, np.nan])
    expected = [3.0, 7.0, 3.0, 7.0, np.nan, 3.0, 3.0, np.nan]
    np.testing.assert_array_equal(medians(ops, identity, values), expected)


def test_median_of_nothing(ops):
    assert len(medians(ops, np.empty(0, np.int64), np.empty(0))) == 0
    assert np.isnan(medians(ops, np.array([-1, -1]), np.array([1.0, 2.0]))).all()


@pytest.mark.fresh_seed
def test_dense_clumps_out_of_reach_are_told_apart_by_their_boxes(rng, ops, backend):
    n = 50_000 if backend == "numpy" else 200
    x, y = rng.uniform(0, 1, (2, 2 * n))
    x[n:] += 3.01
    groups = ops.link_groups(positions_of(ops, x, y), 1.0)
    np.testing.assert_array_equal(ops.to_host(groups.id), np.repeat([1, 2], n))
