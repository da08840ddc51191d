"""Dense solves in batches, and those of the normal equations of groups."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.numpy_backend.blocks import (
    NormalEquations,
    cholesky_solve,
    inverse_factor,
    is_dependent,
    solve_groups,
)


@pytest.mark.parametrize("m", [1, 3, 6])
def test_solves_systems_in_any_units(rng, m):
    root = rng.normal(size=(50, m, m + 3))
    units = 10 ** rng.uniform(-8, 8, (50, m))
    matrix = np.einsum("nik,njk->nij", root, root) * units[:, :, None] * units[:, None]
    rhs = rng.normal(size=(50, m)) * units
    solution, pivot = cholesky_solve(matrix.transpose(1, 2, 0).copy(), rhs.T)
    expected = np.stack([np.linalg.solve(a, b) for a, b in zip(matrix, rhs, strict=True)])
    np.testing.assert_allclose(solution.T * units, expected * units, rtol=1e-8, atol=1e-12)
    assert np.all((pivot > 0) & (pivot <= 1 + 1e-15))


def test_pivot_tells_singular_systems(rng):
    vectors = rng.normal(size=(3, 2))
    matrix = np.stack([vectors @ vectors.T, np.zeros((3, 3)), np.eye(3)], axis=2)
    _, pivot = cholesky_solve(matrix, np.ones((3, 3)))
    assert (pivot > 1e-10).tolist() == [False, False, True]


# ---- inverses ------------------------------------------------------------------------------------


def correlation_matrices(rng, n, m):
    """Matrices with unit diagonal, of vectors that are far from parallel."""
    vectors = rng.normal(size=(n, m, 2 * m + 4))
    vectors /= np.sqrt((vectors**2).sum(axis=2, keepdims=True))
    return vectors @ vectors.swapaxes(1, 2)


@pytest.mark.parametrize("m", [1, 2, 15, 16, 17, 31, 32, 33, 64, 70, 150])
def test_inverse_factor_is_that_of_cholesky(rng, m):
    matrix = correlation_matrices(rng, 4, m)
    factor = inverse_factor(matrix)
    assert not np.triu(factor, 1).any()
    for one, other in zip(factor, matrix, strict=True):
        np.testing.assert_allclose(one.T @ one, np.linalg.inv(other), rtol=0, atol=1e-12)


def test_only_lower_triangles_are_read(rng):
    matrix = correlation_matrices(rng, 3, 40)
    spoilt = np.where(np.triu(np.ones((40, 40)), 1) > 0, np.nan, matrix)
    np.testing.assert_array_equal(inverse_factor(spoilt), inverse_factor(matrix))


@pytest.mark.parametrize("m", [5, 16, 40, 64])
def test_an_inverse_does_not_depend_on_how_many_there_are(rng, m):
    matrix = correlation_matrices(rng, 7, m)
    together = inverse_factor(matrix)
    for part in (slice(0, 1), slice(1, 3), slice(3, 7)):
        np.testing.assert_array_equal(inverse_factor(matrix[part]), together[part])


@pytest.mark.parametrize("m", [6, 20, 50])
@pytest.mark.parametrize("kind", ["copies", "sums of others", "empty"])
def test_rows_that_depend_on_others_are_left_out(rng, m, kind):
    """The rest of the inverse is that of the matrix without them."""
    vectors = rng.normal(size=(m, 2 * m))
    last = np.arange(m) >= m - 3
    if kind == "copies":
        vectors[last] = vectors[0] + rng.normal(0, 1e-9, (3, 2 * m))
    elif kind == "sums of others":
        vectors[last] = rng.normal(size=(3, m - 3)) @ vectors[~last]
    vectors /= np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    if kind == "empty":
        vectors[last] = 0
    matrix = vectors @ vectors.T
    order = rng.permutation(m) if kind == "empty" else np.arange(m)
    factor = inverse_factor(matrix[order][:, order][None])
    dependent = is_dependent(factor)[0]
    np.testing.assert_array_equal(dependent, last[order])
    kept = factor[0][~dependent]
    expected = np.linalg.inv(matrix[order][:, order][~dependent][:, ~dependent])
    np.testing.assert_allclose((kept.T @ kept)[~dependent][:, ~dependent], expected, atol=1e-10)


# ---- groups --------------------------------------------------------------------------------------


def make_equations(rng, sizes, with_constant):
    """Groups of members with random stamps of 50 pixels in a cube of their own, and all pixels.

    Returns the equations, and for each group its columns, data and variances.
    """
    fits, names = [], ("power", "noise", "rhs", "light", "light_noise")
    sums = {name: [] for name in (*names, "own_area", "own_data", "own_noise", "group", "constant")}
    pairs, products, noise_products, first = [], [], [], 0
    for number, size in enumerate(sizes):
        columns = rng.uniform(0, 1, (2 * size + 30, size)) * (
            rng.random((2 * size + 30, size)) < 0.5
        )
        data, variance = rng.normal(20, 5, len(columns)), rng.uniform(1, 4, len(columns))
        noisy = columns * variance[:, None]
        i, j = np.triu_indices(size, 1)
        pairs.append(np.stack([i, j]) + first)
        products.append((columns.T @ columns)[i, j])
        noise_products.append((columns.T @ noisy)[i, j])
        owner = rng.integers(0, size, len(columns))
        values = {
            "power": (columns**2).sum(axis=0),
            "noise": (columns * noisy).sum(axis=0),
            "rhs": columns.T @ data,
            "light": columns.sum(axis=0),
            "light_noise": noisy.sum(axis=0),
            "own_area": np.bincount(owner, minlength=size).astype(float),
            "own_data": np.bincount(owner, data, size),
            "own_noise": np.bincount(owner, variance, size),
            "group": np.full(size, number),
            "constant": np.full(size, with_constant and number % 2 == 0),
        }
        for name, each in values.items():
            sums[name].append(each)
        fits.append((columns, data, variance))
        first += size
    sums = {name: np.concatenate(values) for name, values in sums.items()}
    i, j = np.concatenate(pairs, axis=1)
    equations = NormalEquations(
        i=i, j=j, products=np.concatenate(products), noise_products=np.concatenate(noise_products),
        has_constant=sums.pop("constant"), **sums,
    )  # fmt: skip
    return equations, fits


@pytest.mark.parametrize("with_constant", [False, True])
def test_groups_of_all_sizes_are_solved_together(rng, with_constant):
    """Each as its own least-squares fit, whatever the order of the members of all groups."""
    equations, fits = make_equations(rng, (2, 5, 1, 64, 5, 17, 2), with_constant)
    position = np.arange(len(equations.group), dtype=float)
    solution = solve_groups(equations, position, position, 10.0)
    assert not solution.singular.any()
    for number, (columns, data, variance) in enumerate(fits):
        rows, size = equations.group == number, columns.shape[1]
        fitted = equations.has_constant[rows].all()
        columns = np.hstack([columns, np.ones((len(columns), int(fitted)))])
        weights = np.linalg.pinv(columns)
        error = np.sqrt((weights**2 * variance).sum(axis=1))
        flux, constant = solution.flux[rows], solution.constant[rows]
        np.testing.assert_allclose(flux, (weights @ data)[:size], rtol=0, atol=1e-9)
        np.testing.assert_allclose(np.sqrt(solution.variance[rows]), error[:size], rtol=1e-9)
        expected = (weights @ data)[size] if fitted else 0.0
        np.testing.assert_allclose(constant, expected, rtol=0, atol=1e-9)


def test_a_group_does_not_depend_on_the_others(rng):
    """Bit by bit, in whatever company it is inverted."""
    sizes = (3, 3, 3, 20)
    equations, _ = make_equations(rng, sizes, True)
    position = np.arange(len(equations.group), dtype=float)
    together = solve_groups(equations, position, position, 10.0)
    for number, size in enumerate(sizes):
        rows = equations.group == number
        first = np.flatnonzero(rows)[0]
        of_group = rows[equations.i]
        alone = NormalEquations(
            **{
                name: values[of_group if name in ("products", "noise_products") else rows]
                for name, values in vars(equations).items()
                if name not in ("i", "j", "group")
            },
            i=equations.i[of_group] - first,
            j=equations.j[of_group] - first,
            group=np.zeros(size, int),
        )
        solution = solve_groups(alone, position[:size], position[:size], 10.0)
        for name, values in vars(solution).items():
            np.testing.assert_array_equal(values, getattr(together, name)[rows], name)


def test_members_without_light_do_not_disturb_their_group(rng):
    """Nor does one of two that are the same, whose flux they cannot share."""
    equations, _ = make_equations(rng, (9,), False)
    position = np.arange(9.0)
    expected = solve_groups(equations, position, position, 10.0)
    i, j = np.triu_indices(11, 1)
    lightless, twin = 9, 10

    def extended(values, of_twin):
        return np.concatenate([values, [0, of_twin]])

    def pairs(diagonal, products):
        matrix = np.zeros((11, 11))
        matrix[equations.i, equations.j] = matrix[equations.j, equations.i] = products
        matrix[np.arange(9), np.arange(9)] = diagonal
        matrix[twin], matrix[:, twin] = matrix[0], matrix[:, 0]
        return matrix[i, j]

    with_both = NormalEquations(
        i=i, j=j, products=pairs(equations.power, equations.products),
        noise_products=pairs(equations.noise, equations.noise_products),
        **{
            name: extended(getattr(equations, name), getattr(equations, name)[0])
            for name in ("power", "noise", "rhs", "light", "light_noise")
        },
        **{
            name: extended(getattr(equations, name), 0)
            for name in ("own_area", "own_data", "own_noise", "group")
        },
        has_constant=np.zeros(11, bool),
    )  # fmt: skip
    solution = solve_groups(with_both, np.arange(11.0), np.arange(11.0), 10.0)
    alone = np.arange(1, 9)
    assert np.flatnonzero(solution.singular).tolist() in ([0, twin], [0, lightless, twin])
    np.testing.assert_allclose(solution.flux[alone], expected.flux[alone], rtol=0, atol=1e-10)
    np.testing.assert_allclose(solution.variance[alone], expected.variance[alone], rtol=1e-10)
