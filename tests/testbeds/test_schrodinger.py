"""Closed forms of Schroedinger bridges against known values, each other, and sampling."""

from math import log

import numpy as np
import pytest
import torch

from papertrial.testbeds.schrodinger import (
    Diagonal,
    Full,
    Potential,
    bw2_squared,
    bw2_uvp,
    cbw2_uvp,
    gaussian_pair,
    mixture_pair,
    normal,
    plan_covariance,
    planar_pair,
)


def potential(dim=2, K=3, eps=0.7, seed=1000):
    rng = np.random.default_rng(seed)
    log_a, r = torch.from_numpy(rng.uniform(-2, 1, K)), normal(rng, K, dim)
    return Potential(log_a, r, Diagonal(torch.from_numpy(rng.uniform(-1, 1, (K, dim)))), eps)


def full(v):
    """The same potential with full covariances."""
    return Potential(v.log_a, v.r, Full(torch.diag_embed(0.5 * v.S.log_s)), v.eps)


@pytest.mark.parametrize(("eps", "known"), [(0.1, 1.950625), (1, 1.561553), (10, 0.385165)])
def test_known_plan_covariances(eps, known):
    one, four = torch.eye(1, dtype=torch.float64), 4 * torch.eye(1, dtype=torch.float64)
    assert plan_covariance(one, four, eps).item() == pytest.approx(known, abs=5e-7)


def test_diagonal_and_full_covariances_are_the_same_algebra():
    v, x, y = potential(), normal(np.random.default_rng(1001), 6, 2), normal(np.random.default_rng(1002), 6, 2)
    w = full(v)
    assert torch.allclose(v.log_v(y), w.log_v(y), atol=1e-12) and torch.allclose(v.log_c(x), w.log_c(x), atol=1e-12)
    for a, b in zip((*v.moments(x), v.mean(x)), (*w.moments(x), w.mean(x)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert torch.allclose(v.sample(x, np.random.default_rng(0)), w.sample(x, np.random.default_rng(0)), atol=1e-12)
    mixture = torch.distributions.MultivariateNormal(v.r, v.eps * v.S.matrices())
    assert torch.allclose(v.log_v(y), torch.logsumexp(v.log_a + mixture.log_prob(y[:, None]), 1), atol=1e-12)


def test_samples_have_the_stated_moments():
    v, rng, n = potential(), np.random.default_rng(1003), 100_000
    x = torch.tensor([[0.8, -1.1]], dtype=torch.float64)
    mean, cov = v.moments(x)
    y = v.sample(x.expand(n, -1), rng)
    assert torch.allclose(y.mean(0), mean[0], atol=4 * (cov.max().item() / n) ** 0.5)
    assert torch.allclose(torch.cov(y.T), cov[0], rtol=0.03, atol=0.01)


def test_gaussian_bridge_is_a_potential_with_one_component():
    pair = gaussian_pair(3, 0.5, 1000)
    S = pair.plan.B  # y|x ~ N(r + S x, eps S)
    assert torch.allclose(S, S.T, atol=1e-10) and torch.allclose(pair.plan.C, pair.eps * S, atol=1e-10)
    x = pair.sample0(200_000, np.random.default_rng(1001))
    y = pair.plan.sample(x, np.random.default_rng(1002))  # has p1's moments
    target = pair.sample1(200_000, np.random.default_rng(1003))
    assert torch.allclose(torch.cov(y.T), torch.cov(target.T), atol=0.05) and torch.trace(torch.cov(y.T)).item() == (
        pytest.approx(pair.variance, rel=0.01)
    )


def test_bures_wasserstein():
    rng = np.random.default_rng(1000)
    C = torch.cov(normal(rng, 3, 9))
    m = torch.zeros(3, dtype=torch.float64)
    assert bw2_squared(m, C, m + 1, C).item() == pytest.approx(3)  # a shift
    assert bw2_squared(m, 4 * C, m, C).item() == pytest.approx(torch.trace(C).item())  # a scaling by 2
    assert bw2_squared(m, 0 * C, m, C).item() == pytest.approx(torch.trace(C).item())  # to a point


def test_error_of_the_truth_is_zero_and_of_a_shift_is_known():
    pair = mixture_pair(4, 0.5, 1000)
    x = pair.sample0(50, np.random.default_rng(1001))
    assert cbw2_uvp(pair.plan, pair.plan, x, pair.variance) == pytest.approx(0, abs=1e-8)

    class Moved:
        def moments(self, x):
            mean, cov = pair.plan.moments(x)
            return mean + 0.3, cov

    for uvp in (cbw2_uvp, bw2_uvp):
        assert uvp(Moved(), pair.plan, x, pair.variance) == pytest.approx(200 * 4 * 0.09 / pair.variance)


def test_benchmark_is_the_agreed_one():
    pair = mixture_pair(16, 1.0, 1000)
    assert torch.allclose(pair.plan.r.norm(dim=1), torch.tensor(5.0, dtype=torch.float64)) and len(pair.plan.r) == 5
    assert (pair.plan.S.log_s.abs() <= log(2)).all() and torch.allclose(
        pair.plan.log_a.exp().sum(), torch.tensor(1.0).double()
    )
    again = mixture_pair(16, 0.1, 1000)
    assert torch.equal(again.plan.r, pair.plan.r) and not torch.equal(mixture_pair(16, 1.0, 1001).plan.r, pair.plan.r)
    value = torch.linalg.eigvalsh(torch.cov(gaussian_pair(2, 1.0, 1000).sample1(50_000, np.random.default_rng(0)).T))
    assert value.min() > 0.24 and value.max() < 4.1


def test_extreme_cells_stay_finite():
    pair = mixture_pair(64, 0.1, 1000)
    x = 3 * pair.sample0(20, np.random.default_rng(1001))
    values = (pair.plan.log_c(x), pair.plan.log_v(x), *pair.plan.moments(x))
    assert all(torch.isfinite(v).all() for v in values)


def test_planar_pair_draws_the_densities():
    pair = planar_pair("ring8", "checker", 0.3)
    x, y = pair.sample0(4000, np.random.default_rng(0)), pair.sample1(4000, np.random.default_rng(0))
    assert x.norm(dim=1).mean().item() == pytest.approx(2, abs=0.02) and y.abs().max() < 2.4
