"""Batched dense solves."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.numpy_backend.blocks import cholesky_solve


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
