"""Closed forms against finite differences, numerical integration and known values."""

import numpy as np
import pytest
import torch

from papertrial.testbeds.mixtures import DENSITIES, Mixture, density

torch.set_default_dtype(torch.float32)
A, S = 0.8, 0.6


def oblique(k=3, d=3, seed=1000):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((d, d))
    return Mixture(rng.standard_normal((k, d)), root @ root.T / d + 0.1 * np.eye(d), rng.uniform(0.5, 2, k))


def points(n=5, d=3, seed=1001):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d)))


def test_densities_are_the_agreed_ones():
    shapes = {name: density(name).means.shape[0] for name in DENSITIES}
    assert shapes == {"ring8": 8, "grid25": 25, "spiral": 100, "checker": 512}
    assert torch.allclose(density("ring8").means.norm(dim=1), torch.tensor(2.0, dtype=torch.float64))
    assert density("spiral").means[49].tolist() == pytest.approx([-2.5, 0.0], abs=1e-12)  # t = 3 pi
    assert density("grid25").means.abs().amax() == 2
    cells = torch.floor(density("checker").means + 2).sum(1) % 2
    assert (cells == 0).all()


def test_logpdf_integrates_to_one():
    side = torch.linspace(-5, 5, 400, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    mass = density("ring8").logpdf(x, A, 0.3).exp().sum() * (side[1] - side[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-6)


def test_score_and_hessian_are_derivatives_of_logpdf():
    m, x = oblique(), points().requires_grad_()
    score = torch.autograd.grad(m.logpdf(x, A, S).sum(), x)[0]
    assert torch.allclose(m.score(x, A, S), score, atol=1e-10)
    rows = [torch.autograd.grad(m.score(x, A, S)[:, j].sum(), x)[0] for j in range(3)]
    assert torch.allclose(m.hessian(x, A, S), torch.stack(rows, 1), atol=1e-10)


def test_tweedie():
    m, x = oblique(), points()
    assert torch.allclose(m.x0(x, A, S), (x + S**2 * m.score(x, A, S)) / A, atol=1e-10)
    assert torch.allclose(A * m.x0(x, A, S) + S * m.eps(x, A, S), x, atol=1e-10)
    d = 1e-5  # Cov(x0 | x) = (s^2/a) d x0 / dx
    columns = [(m.x0(x + d * e, A, S) - m.x0(x - d * e, A, S)) / (2 * d) for e in torch.eye(3, dtype=torch.float64)]
    assert torch.allclose(m.covariance(x, A, S), S**2 / A * torch.stack(columns, 2), atol=1e-7)


def test_one_gaussian():
    m = Mixture([[0.0]], 1.0)
    x = points(4, 1)
    assert torch.allclose(m(x, S), x / (1 + S**2))
    assert torch.allclose(m.hessian(x, A, S), torch.full((4, 1, 1), -1 / (A**2 + S**2), dtype=torch.float64))


def test_a_level_for_each_point():
    m, x = oblique(), points()
    s, a = torch.linspace(0.1, 2, 5, dtype=torch.float64), torch.linspace(0.2, 1, 5, dtype=torch.float64)
    for f in (m.x0, m.score, m.eps, m.hessian, m.covariance, m.logpdf):
        one_by_one = torch.cat([f(x[i : i + 1], a[i].item(), s[i].item()) for i in range(5)])
        assert torch.allclose(f(x, a, s), one_by_one, atol=1e-12)


def test_finite_far_out_and_at_zero_noise():
    m = density("checker")
    far = torch.tensor([[60.0, -80.0]], dtype=torch.float64)
    assert torch.isfinite(m(far, 20.0)).all() and torch.isfinite(m(far, 0.02)).all()
    assert torch.isfinite(m.score(m.means[:3], 1.0, 0.0)).all()


def test_posterior_is_bayes():
    m, x = oblique(), points(6)
    forward, y, sy = torch.from_numpy(np.random.default_rng(2).standard_normal((2, 3))), torch.tensor([0.3, -1.0]), 0.4
    y = y.double()
    log_likelihood = -((y - x @ forward.T) ** 2).sum(1) / (2 * sy**2)
    evidence = m.posterior(forward, y, sy).logpdf(x) - m.logpdf(x) - log_likelihood
    assert torch.allclose(evidence, evidence[0].expand(6), atol=1e-9)  # constant in x


def test_posterior_of_ring8_by_known_values():
    post = density("ring8").posterior(torch.tensor([[1.0, 0.0]]).double(), torch.tensor([1.2]).double(), 0.3)
    mean = post.weights @ post.means
    second = (post.weights @ post.means[:, 1] ** 2 + post.cov[1, 1]).item()
    assert mean.tolist() == pytest.approx([1.3853, 0], abs=5e-5)
    assert second == pytest.approx(1.9577, abs=5e-5)
    assert post.weights[[0, 1, 7]].tolist() == pytest.approx([0.0344, 0.4818, 0.4818], abs=5e-5)


def test_samples_have_the_moments():
    m = oblique()
    x, k = m.sample_labelled(40_000, torch.Generator().manual_seed(1000))
    mean = m.weights @ m.means
    spread = (m.means - mean).T @ (m.weights[:, None] * (m.means - mean)) + m.cov
    assert torch.allclose(x.mean(0), mean, atol=0.03)
    assert torch.allclose(torch.cov(x.T), spread, atol=0.06)
    assert torch.allclose(torch.bincount(k) / len(k), m.weights.float(), atol=0.02)
    again = m.sample(40_000, torch.Generator().manual_seed(1000))
    assert torch.equal(x, again)
