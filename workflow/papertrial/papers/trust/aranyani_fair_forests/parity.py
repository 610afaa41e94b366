"""Gradients of the demographic-parity penalty  sum_i H(F_i),  F_i = E[d_i | a=1] - E[d_i | a=0],  in a stream.

``d_i`` are the decisions that should not depend on the attribute a: the nodes of a forest, or a model's output.
Each class sees the examples one after the other and gives, at any time,

    H'(F_i) (E[grad d_i | a=1] - E[grad d_i | a=0]).

Shapes: S streams, L configurations of each, K decisions, D parameters that a decision depends on.
"""

from typing import NamedTuple, Protocol

import numpy as np

from papertrial.methods.soft_forest import SoftForest, Walk, gate_slope, sigmoid
from papertrial.papers.trust.aranyani_fair_forests.learners import Learner, Pass

Array = np.ndarray
DELTA = 0.01


def huber_slope(F: Array, delta: float = DELTA) -> Array:
    """H'(F) in the scaling of the public code: F near 0, its sign (not delta times it) outside."""
    return np.where(np.abs(F) < delta, F, np.sign(F))


class Penalty(Protocol):
    """What the learner's loop needs."""

    passes: int  # through further examples, so far
    floats: int  # stored for one stream and configuration

    def see(self, x: Array, a: Array, params: Array, cache: NamedTuple) -> None:
        """One example a stream, x (S, d) and a (S,), and what the model met on it."""

    def gradient(self, params: Array) -> Array:
        """The penalty's gradient (S, L, K, D); the caller may overwrite it."""

    def block(self, grad: Array) -> Array:
        """The view of the model's gradient (S, L, size) to which it belongs, in its shape."""


class GroupMeans:
    """Running means, per group of a, of decisions and of their gradients as they were when each example passed.

    A mean over all the past (decay 1) moves by 1/c towards its c-th value; an exponential mean with bias correction
    by (1 - decay) / (1 - decay^c), which tends to 1/c as the decay tends to 1.
    """

    def __init__(self, shape: tuple[int, int, int, int], decay: float, dtype: np.dtype) -> None:
        S, L, K, D = shape
        self.decay = decay
        self.count = np.zeros((S, 2), dtype=int)
        self.d = np.zeros((S, 2, L, K), dtype)
        self.grad_d = np.zeros((S, 2, L, K, D), dtype)
        self.spare = np.empty((S, L, K, D), dtype)

    @property
    def floats(self) -> int:
        """Stored for one stream and configuration."""
        S, _, L, _ = self.d.shape
        return (self.d.size + self.grad_d.size) // (S * L)

    def add(self, a: Array, d: Array, grad_d: Array) -> None:
        """One example a stream: a (S,), d (S, L, K), grad_d (S, L, K, D); grad_d is used up."""
        for s, group in enumerate(a):
            self.count[s, group] += 1
            c = int(self.count[s, group])
            rate = 1 / c if self.decay == 1 else (1 - self.decay) / (1 - self.decay**c)
            for mean, value in ((self.d[s, group], d[s]), (self.grad_d[s, group], grad_d[s])):
                mean *= 1 - rate
                value *= rate
                mean += value

    def gradient(self) -> Array:
        """H'(F) (E[grad d | 1] - E[grad d | 0]), (S, L, K, D); 0 until both groups were seen. Overwritten next time."""
        both = (self.count.min(axis=1) > 0)[:, None, None]
        slope = both * huber_slope(self.d[:, 1] - self.d[:, 0])
        np.subtract(self.grad_d[:, 1], self.grad_d[:, 0], out=self.spare)
        self.spare *= slope[..., None].astype(self.spare.dtype)
        return self.spare


class NodeAggregates:
    """Aranyani: parity of every node's decision, from running means: constant storage, no further pass."""

    passes = 0

    def __init__(self, model: SoftForest, streams: int, configurations: int, dtype: np.dtype, decay: float) -> None:
        self.model = model
        self.means = GroupMeans((streams, configurations, model.trees * model.nodes, model.inputs), decay, dtype)
        self.grad_n = np.empty_like(self.means.spare)

    @property
    def floats(self) -> int:
        return self.means.floats

    def see(self, x: Array, a: Array, params: Array, walk: Walk) -> None:
        S, L, _ = params.shape
        gate = gate_slope(walk).reshape(S, L, -1)
        np.multiply(gate[..., None], x[:, None, None, :], out=self.grad_n)
        self.means.add(a, walk.n.reshape(S, L, -1).copy(), self.grad_n)

    def gradient(self, params: Array) -> Array:
        return self.means.gradient()

    def block(self, grad: Array) -> Array:
        return self.model.w(grad)


class OutputAggregates:
    """The same running means for one decision, the model's output f(x), and all parameters."""

    passes = 0

    def __init__(self, model: Learner, streams: int, configurations: int, dtype: np.dtype) -> None:
        self.model = model
        self.means = GroupMeans((streams, configurations, 1, model.size), 1.0, dtype)
        self.grad_f = np.empty_like(self.means.spare)

    @property
    def floats(self) -> int:
        return self.means.floats

    def see(self, x: Array, a: Array, params: Array, cache: Pass) -> None:
        f = cache.f
        self.model.backward(cache, params, x, f * (1 - f), self.grad_f[:, :, 0])
        self.means.add(a, f[..., None].copy(), self.grad_f)

    def gradient(self, params: Array) -> Array:
        return self.means.gradient()

    def block(self, grad: Array) -> Array:
        return grad[:, :, None]


class NodeReservoir:
    """Parity of the nodes' decisions with the current parameters, on a uniform sample of the past (algorithm R)."""

    def __init__(self, model: SoftForest, draws: list[np.random.Generator], size: int, dtype: np.dtype) -> None:
        self.model, self.draws, self.seen, self.passes = model, draws, 0, 0
        self.x = np.zeros((len(draws), size, model.inputs), dtype)
        self.a = np.zeros((len(draws), size), int)

    @property
    def floats(self) -> int:
        return self.x[0].size + self.a[0].size

    def see(self, x: Array, a: Array, params: Array, walk: Walk) -> None:
        size = self.a.shape[1]
        for s, draw in enumerate(self.draws):
            place = self.seen if self.seen < size else draw.integers(self.seen + 1)
            if place < size:
                self.x[s, place], self.a[s, place] = x[s], a[s]
        self.seen += 1

    def gradient(self, params: Array) -> Array:
        held = min(self.seen, self.a.shape[1])
        self.passes += held
        w = self.model.w(params)
        return np.stack([exact_gradient(w[s], self.x[s, :held], self.a[s, :held]) for s in range(len(w))])

    def block(self, grad: Array) -> Array:
        return self.model.w(grad)


def exact_gradient(w: Array, x: Array, a: Array) -> Array:
    """The node penalty's gradient over examples x (m, d), a (m,), at nodes w (L, K, d): (L, K, d)."""
    ones = int(a.sum())
    if ones in (0, len(a)):
        return np.zeros_like(w)
    sign = np.where(a == 1, 1 / ones, -1 / (len(a) - ones)).astype(w.dtype)  # E[.|1] - E[.|0] is a product with it
    n = sigmoid(x @ w.reshape(-1, w.shape[-1]).T)  # (m, L*K)
    F = sign @ n
    gate = 1 - n
    gate *= n  # dn/dz
    gate *= sign[:, None]
    return (huber_slope(F)[:, None] * (gate.T @ x)).reshape(w.shape)
