"""Leverage scores, Lewis weights and sensitivities."""

import numpy as np
import pytest

from papertrial.methods.row_scores import (
    inclusion_probabilities,
    leverage_scores,
    lewis_weights,
    orthonormal_range,
    row_sensitivities,
    sensitivities,
)
from papertrial.testbeds.tall_matrices import coherent_rows, gaussian_rows

POWERS = [1, 1.5, 2, 3, 4]


def rng(seed=0):
    return np.random.default_rng(seed)


def test_leverage_scores_are_the_diagonal_of_the_projection():
    A = coherent_rows(60, 4, rng(), share=0.1, scale=20)
    P = A @ np.linalg.pinv(A)
    np.testing.assert_allclose(leverage_scores(A), np.diag(P), atol=1e-12)
    assert leverage_scores(np.hstack([A, A[:, :2]])).sum() == pytest.approx(4)  # the rank


@pytest.mark.parametrize("p", POWERS)
def test_lewis_weights_are_a_fixed_point(p):
    A = coherent_rows(200, 5, rng(1), share=0.1, scale=20)
    w = lewis_weights(A, p)
    assert w.sum() == pytest.approx(5, rel=1e-6)
    np.testing.assert_allclose(leverage_scores(A * w[:, None] ** (1 / 2 - 1 / p)), w, rtol=1e-4)


def test_at_p_2_all_scores_are_leverage_scores():
    A = gaussian_rows(80, 5, rng(2))
    tau = leverage_scores(A)
    np.testing.assert_allclose(row_sensitivities(A, 2), tau, atol=1e-10)
    np.testing.assert_allclose(lewis_weights(A, 2), tau, atol=1e-10)


@pytest.mark.parametrize("p", POWERS)
def test_maximisers_attain_their_sensitivities_and_no_direction_exceeds_them(p):
    A = coherent_rows(90, 4, rng(3), share=0.1, scale=20)
    Q, found = orthonormal_range(A), sensitivities(A, p)
    own = np.abs((Q * found.x).sum(axis=1)) ** p / (np.abs(Q @ found.x.T) ** p).sum(axis=0)
    np.testing.assert_allclose(own, found.sigma, rtol=1e-9)
    r = np.abs(Q @ rng(4).standard_normal((4, 3000))) ** p
    assert ((r / r.sum(axis=0)).max(axis=1) <= found.sigma * (1 + 1e-3)).all()


def test_chosen_rows_and_merged_rows():
    A = gaussian_rows(50, 3, rng(5))
    whole = sensitivities(A, 1.5).sigma
    np.testing.assert_allclose(sensitivities(A, 1.5, rows=np.array([7, 31])).sigma, whole[[7, 31]], rtol=1e-10)
    twice = row_sensitivities(np.vstack([A, A[::-1]]), 1.5)  # every row's share is halved
    np.testing.assert_allclose(twice, np.concatenate([whole, whole[::-1]]) / 2, rtol=1e-3)


@pytest.mark.parametrize("m", [1, 5.5, 19, 24.9, 25, 40])
def test_inclusion_probabilities(m):
    scores = rng(6).random(30) ** 4
    scores[:5] = 0
    q = inclusion_probabilities(scores, m)
    assert q.sum() == pytest.approx(min(m, 25)) and (q <= 1 + 1e-12).all() and (q[:5] == 0).all()
    free = (q > 0) & (q < 1 - 1e-9)
    if free.any():
        alpha = q[free] / scores[free]
        np.testing.assert_allclose(alpha, alpha[0])
        assert (alpha[0] * scores[q >= 1 - 1e-9] >= 1 - 1e-9).all()
