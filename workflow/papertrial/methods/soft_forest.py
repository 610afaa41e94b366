"""A forest of soft oblique decision trees, many forests at once, with gradients by hand.

Problem: classify x in R^d into {0, 1} by a function that is a decision tree and yet differentiable. Node i of a
tree of depth h sends x to its left child with probability n_i(x) = sigmoid(w_i . x) (oblique: it looks at all of
x), so leaf l is reached with probability p_l(x), the product of n_i or 1 - n_i along its path, and

    f(x) = mean over trees of  sum_l p_l(x) softmax(theta_l).

``x`` carries a constant feature, so the biases are part of w. Leading axes (S, L) run over data streams and over
configurations that see the same stream; one call serves all of them.

Nodes are in breadth-first order: the children of node i are 2i + 1 (left) and 2i + 2.

Source: Kontschieder et al., Deep Neural Decision Forests (2015); Basu Roy Chowdhury et al. (2024), section 3.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Array = np.ndarray


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)) of an array, without overflow; in place but for one new array, since it may be large."""
    s = 0.5 * z
    np.tanh(s, out=s)
    s *= 0.5
    s += 0.5
    return s


class Walk(NamedTuple):
    """What one example met on its way through the forest; T trees of I nodes and J leaves."""

    f: Array  # (S, L) probability of class 1
    n: Array  # (S, L, T, I) node decisions
    slope: Array  # (S, L, T, I) df/dn_i
    leaf: Array  # (S, L, T, J) leaf probabilities, summing to 1 over J
    q: Array  # (S, L, T, J) softmax(theta_l) of class 1


def gate_slope(walk: Walk) -> Array:
    """dn_i/dz_i = n_i (1 - n_i), (S, L, T, I): dn_i/dw_i is this times x, and no other node's w matters to n_i."""
    return walk.n * (1 - walk.n)


@dataclass(frozen=True)
class SoftForest:
    """Parameters are one array (S, L, size): all w, then all theta; so one optimizer step serves them all."""

    inputs: int  # d, the constant feature included
    trees: int = 3
    depth: int = 3

    @property
    def nodes(self) -> int:
        """Of a tree."""
        return 2**self.depth - 1

    @property
    def size(self) -> int:
        return self.trees * (self.nodes * self.inputs + 2 * 2**self.depth)

    def w(self, params: Array) -> Array:
        """The view (S, L, T*I, d) of the nodes' parameters."""
        cut = self.trees * self.nodes * self.inputs
        return params[..., :cut].reshape(*params.shape[:-1], self.trees * self.nodes, self.inputs)

    def theta(self, params: Array) -> Array:
        """The view (S, L, T, J, 2) of the leaves' logits."""
        cut = self.trees * self.nodes * self.inputs
        return params[..., cut:].reshape(*params.shape[:-1], self.trees, 2**self.depth, 2)

    def draw(self, rng: np.random.Generator) -> Array:
        """Initial parameters (size,): w from N(0, 1/d), so that no node starts saturated, theta from U(0, 1)."""
        nodes = self.trees * self.nodes * self.inputs
        w = rng.normal(scale=self.inputs**-0.5, size=nodes)
        return np.concatenate([w, rng.uniform(size=self.size - nodes)])

    def forward(self, params: Array, x: Array) -> tuple[Array, Walk]:
        """f(x) and the walk; params (S, L, size), x (S, d)."""
        z = self.w(params) @ x[:, None, :, None]  # (S, L, T*I, 1)
        n = sigmoid(z).reshape(*params.shape[:-1], self.trees, self.nodes)
        theta = self.theta(params)
        q = sigmoid(theta[..., 1] - theta[..., 0])

        reach = [np.ones_like(n[..., :1])]  # level by level from the root, (S, L, T, 2^k)
        for level in range(self.depth):
            left = reach[-1] * self._level(n, level)
            both = np.stack([left, reach[-1] - left], axis=-1)
            reach.append(both.reshape(*both.shape[:-2], -1))

        slope = np.empty_like(n)
        value = q  # what a subtree predicts, from the leaves up
        for level in reversed(range(self.depth)):
            right = value[..., 1::2]
            gain = value[..., ::2] - right
            np.multiply(reach[level], gain, out=self._level(slope, level))
            value = right + self._level(n, level) * gain
        slope /= self.trees
        f = value[..., 0].mean(axis=-1)
        return f, Walk(f, n, slope, reach[-1], q)

    def backward(self, walk: Walk, params: Array, x: Array, scale: Array, out: Array) -> None:
        """Write scale * d logit(f) / d params to out; scale (S, L), out (S, L, size).

        With scale = f - y that is the gradient of the cross-entropy, with f (1 - f) the one of f itself.
        """
        scale = (scale / (walk.f * (1 - walk.f)))[..., None, None]  # (S, L, 1, 1): from logit to f
        through = scale * walk.slope * gate_slope(walk)
        through = through.reshape(*out.shape[:-1], -1)
        np.multiply(through[..., None], x[:, None, None, :], out=self.w(out))
        leaf = scale * walk.leaf * walk.q * (1 - walk.q) / self.trees
        theta = self.theta(out)
        theta[..., 1] = leaf
        np.negative(leaf, out=theta[..., 0])

    @staticmethod
    def _level(nodes: Array, level: int) -> Array:
        return nodes[..., 2**level - 1 : 2 ** (level + 1) - 1]
