"""Sketches are the matrices they say they are."""

import numpy as np
import pytest

from papertrial.methods import sketches
from papertrial.methods.sketches import (
    countsketch,
    gaussian,
    hadamard,
    mixed,
    osnap,
    power_of_two,
    rademacher,
    row_sample,
    signs,
    sparse_embedding,
    srht,
    tensor_srht,
)

SKETCHES = {
    "srht": srht,
    "tensor_srht": tensor_srht,
    "gaussian": gaussian,
    "rademacher": rademacher,
    "countsketch": countsketch,
    "osnap": osnap,
}


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("n", [1, 2, 8, 64, 256])
def test_fast_transform_is_the_hadamard_product(n):
    linalg = pytest.importorskip("scipy.linalg")
    A = rng(n).standard_normal((n, 3))
    kept = A.copy()
    np.testing.assert_allclose(hadamard(A), linalg.hadamard(n) @ A, atol=1e-10)
    np.testing.assert_array_equal(A, kept)


def test_the_order_of_hadamard_is_a_power_of_two():
    with pytest.raises(ValueError, match="power of two"):
        hadamard(np.ones((12, 1)))
    assert [power_of_two(n) for n in (1, 2, 3, 512, 513)] == [1, 2, 4, 512, 1024]


def test_mixing_preserves_norms():
    A = rng(1).standard_normal((128, 4))
    mix = mixed(A, signs(128, rng(2)))
    np.testing.assert_allclose(mix.T @ mix, A.T @ A, atol=1e-10)
    e = mixed(np.eye(128, 1), signs(128, rng(2)))
    np.testing.assert_allclose(np.abs(e), 128**-0.5)  # one spike is spread over all rows


def test_operations_are_counted():
    n, k, m = 256, 3, 10
    counted = []
    srht(np.ones((n, k)), m, rng(), counted.append)
    assert sum(counted) == n * k * 8 + n * k + m * k  # log2 n stages of additions, the signs, the scale


@pytest.mark.parametrize("name", SKETCHES)
def test_mean_of_StS_is_the_identity(name):
    """Entry by entry, within 5 standard errors of 2000 draws (and exact where an entry has no noise)."""
    n, m, draws = 16, 8, 2000
    S = np.stack([SKETCHES[name](np.eye(n), m, rng([7, i])) for i in range(draws)])  # (draws, m, n)
    G = np.einsum("tmi,tmj->tij", S, S)
    error = np.abs(G.mean(axis=0) - np.eye(n))
    assert (error <= 5 * G.std(axis=0) / np.sqrt(draws) + 1e-12).all()


@pytest.mark.parametrize("name", SKETCHES)
def test_sketches_are_linear(name):
    """The same generator gives the same S for any matrix."""
    A, B = rng(3).standard_normal((2, 20, 3))
    sketched = [SKETCHES[name](M, 6, rng(4)) for M in (A, B, A - 2 * B)]
    assert sketched[0].shape == (6, 3)
    np.testing.assert_allclose(sketched[2], sketched[0] - 2 * sketched[1], atol=1e-12)


def test_signs_are_fair_and_independent():
    s = signs((400, 50), rng())
    assert set(np.unique(s)) == {-1.0, 1.0}
    assert abs(s.mean()) < 4 / np.sqrt(s.size)
    gram = s.T @ s / 400 - np.eye(50)
    assert np.abs(gram).max() < 5 / np.sqrt(400)


def test_blocks_of_a_dense_sketch_are_one_sketch(monkeypatch):
    A = rng().standard_normal((30, 2))
    whole = gaussian(A, 25, rng(1))
    monkeypatch.setattr(sketches, "BLOCK", 100)
    np.testing.assert_allclose(gaussian(A, 25, rng(1)), whole, atol=1e-12)


def test_tensor_srht_has_product_signs():
    """Up to one scale, every row of S is u x v with u, v of entries +1, -1."""
    S = tensor_srht(np.eye(64), 5, rng(0)).reshape(5, 8, 8)
    assert all(np.linalg.matrix_rank(s) == 1 for s in S)
    np.testing.assert_allclose(np.abs(S), 5**-0.5)


def test_sparsity():
    S = sparse_embedding(40, 12, 1, rng())
    assert (np.diff(S.tocsc().indptr) == 1).all()
    S = sparse_embedding(40, 1000, 4, rng()).toarray()
    np.testing.assert_allclose((S**2).sum(axis=0), 1, atol=0.6)  # 1 but where two entries met
    assert ((S != 0).sum(axis=0) <= 4).all()


def test_row_sample_is_unbiased():
    A = rng(5).standard_normal((12, 2))
    q = np.arange(1, 13) / 78
    G = np.stack([np.square(w)[:, None] * A[i] for i, w in (row_sample(q, 7, rng([6, t])) for t in range(2000))])
    total = G.sum(axis=1)
    assert (np.abs(total.mean(axis=0) - A.sum(axis=0)) < 4 * total.std(axis=0) / np.sqrt(2000)).all()


def test_countsketch_is_distributed_as_scipys():
    """Mean and spread of ||S x||^2, and the share of empty buckets."""
    linalg = pytest.importorskip("scipy.linalg")
    x = rng(8).standard_normal((50, 1))
    ours = np.stack([countsketch(x, 20, rng([1, t])) for t in range(1500)])
    theirs = np.stack([linalg.clarkson_woodruff_transform(x, 20, rng=rng([2, t])) for t in range(1500)])
    for statistic in (lambda y: (y**2).sum(axis=1)[:, 0], lambda y: (y[..., 0] == 0).mean(axis=1)):
        a, b = statistic(ours), statistic(theirs)
        assert abs(a.mean() - b.mean()) < 4 * np.hypot(a.std(), b.std()) / np.sqrt(1500)
        assert a.std() == pytest.approx(b.std(), rel=0.15)
