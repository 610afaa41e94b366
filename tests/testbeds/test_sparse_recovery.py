"""Kronecker-structured sparse instances."""

import numpy as np
import pytest

from papertrial.testbeds.sparse_recovery import dense, kron_apply, kronecker_instances, outer


@pytest.mark.parametrize("modes", [1, 2, 3])
def test_kron_apply_is_the_big_matrix(modes):
    rng = np.random.default_rng(0)
    A = [rng.standard_normal((2, 3 + m, 4 + m)) for m in range(modes)]
    X = rng.standard_normal((2, *(4 + m for m in range(modes))))
    for s in range(2):
        expected = dense([a[s] for a in A]) @ X[s].ravel()
        np.testing.assert_allclose(kron_apply(A, X)[s].ravel(), expected, atol=1e-12)


def test_outer_is_the_kronecker_product_of_vectors():
    rng = np.random.default_rng(0)
    f = [rng.standard_normal((2, n)) for n in (2, 3, 4)]
    np.testing.assert_allclose(outer(f)[1].ravel(), dense([g[1] for g in f]))


@pytest.mark.parametrize("kind", ["gaussian", "steering"])
def test_instances(kind):
    found = kronecker_instances(range(40), kind, 6, 10, 2, 10)
    assert (found.support.reshape(40, -1).sum(axis=1) == 8).all()
    for mode in range(3):
        per_mode = found.support.any(axis=tuple(a for a in (1, 2, 3) if a != mode + 1))
        assert (per_mode.sum(axis=1) == 2).all()
        np.testing.assert_allclose(np.linalg.norm(found.A[mode], axis=1), 1)
    clean = kron_apply(found.A, found.x)
    noise = (np.abs(found.y - clean) ** 2).mean(axis=(1, 2, 3))
    signal = (np.abs(clean) ** 2).mean(axis=(1, 2, 3))
    assert np.mean(10 * np.log10(signal / noise)) == pytest.approx(10, abs=0.2)
    assert (found.nmse(np.zeros_like(found.x)) == 1).all() and (found.nmse(found.x) == 0).all()
    assert np.iscomplexobj(found.x) == (kind == "steering")
    x = found.x[found.support]
    assert np.mean(np.abs(x) ** 2) == pytest.approx(1, abs=0.25)
