import numpy as np
import pytest

from papertrial.methods.soft_forest import SoftForest, gate_slope, sigmoid


@pytest.fixture
def forest():
    return SoftForest(inputs=5, trees=2, depth=3)


@pytest.fixture
def params(forest):
    return np.random.default_rng(1000).normal(size=(2, 3, forest.size))


@pytest.fixture
def x():
    return np.random.default_rng(1001).normal(size=(2, 5))


def test_leaf_probabilities_sum_to_one(forest, params, x):
    _, walk = forest.forward(10 * params, x)
    assert (walk.leaf >= 0).all()
    np.testing.assert_allclose(walk.leaf.sum(axis=-1), 1, atol=1e-12)
    _, single = forest.forward(params.astype(np.float32), x.astype(np.float32))
    np.testing.assert_allclose(single.leaf.sum(axis=-1), 1, atol=1e-6)


def test_depth_one_with_one_tree_is_logistic_gating_of_two_leaves(x):
    stump = SoftForest(inputs=5, trees=1, depth=1)
    params = np.random.default_rng(1000).normal(size=(2, 3, stump.size))
    f, _ = stump.forward(params, x)
    gate = sigmoid(np.einsum("sld,sd->sl", params[..., :5], x))
    left, right = (sigmoid(params[..., i + 1] - params[..., i]) for i in (5, 7))
    np.testing.assert_allclose(f, gate * left + (1 - gate) * right, rtol=1e-12)


def test_output_is_the_sum_over_paths(forest, params, x):
    f, walk = forest.forward(params, x)
    expected = np.zeros_like(f)
    for leaf in range(8):
        node, p = 0, 1.0
        for bit in (leaf >> 2 & 1, leaf >> 1 & 1, leaf & 1):  # 0: left
            p = p * (walk.n[..., node] if bit == 0 else 1 - walk.n[..., node])
            node = 2 * node + 1 + bit
        np.testing.assert_allclose(p, walk.leaf[..., leaf], rtol=1e-12)
        expected += (p * walk.q[..., leaf]).mean(axis=-1)
    np.testing.assert_allclose(f, expected, rtol=1e-12)


def test_gradient_of_the_output_equals_finite_differences(forest, params, x):
    f, walk = forest.forward(params, x)
    grad = np.empty_like(params)
    forest.backward(walk, params, x, f * (1 - f), grad)
    eps = 1e-6
    for k in range(forest.size):
        shift = np.zeros(forest.size)
        shift[k] = eps
        slope = (forest.forward(params + shift, x)[0] - forest.forward(params - shift, x)[0]) / (2 * eps)
        np.testing.assert_allclose(grad[..., k], slope, atol=1e-8)


def test_gradient_of_a_node_equals_finite_differences_and_other_nodes_do_not_matter(forest, params, x):
    _, walk = forest.forward(params, x)
    expected = gate_slope(walk).reshape(2, 3, 14)[..., None] * x[:, None, None]  # dn_i/dw_i
    eps = 1e-6
    for i, k in np.ndindex(14, 5):
        up, down = params.copy(), params.copy()
        forest.w(up)[..., i, k] += eps
        forest.w(down)[..., i, k] -= eps
        change = (forest.forward(up, x)[1].n - forest.forward(down, x)[1].n).reshape(2, 3, 14) / (2 * eps)
        np.testing.assert_allclose(change[..., i], expected[..., i, k], atol=1e-8)
        assert not np.delete(change, i, axis=-1).any()


def test_initial_nodes_are_not_saturated():
    forest = SoftForest(inputs=400)
    rng = np.random.default_rng(1000)
    params = forest.draw(rng)[None, None]
    _, walk = forest.forward(params, rng.normal(size=(1, 400)))
    assert 0.05 < walk.n.min() < walk.n.max() < 0.95
