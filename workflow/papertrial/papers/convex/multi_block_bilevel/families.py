"""Multi-block bilevel problems and what a mini-batch tells of them:

    min_x F(x) = (1/m) sum_i f_i(x, y_i*(x)),     y_i*(x) = argmin_y g_i(x, y).

Arrays carry lanes in front: C configurations of an algorithm that see the same draws, and S seeds, each with an
instance of its own. A draw names I of the m blocks for every seed, idx (S, I), and holds B samples of each; all
derivatives are taken at x (C, S, p) and at the blocks' own y, v (C, S, I, q).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

Array = np.ndarray
AHEAD = 50  # draws made at a time


def sigmoid(t: Array) -> Array:
    return 0.5 * np.tanh(0.5 * t) + 0.5


def pick(z: Array, idx: Array) -> Array:
    """The blocks of a draw: (C, S, m, ...) -> (C, S, I, ...)."""
    return z[:, np.arange(len(idx))[:, None], idx]


def put(z: Array, idx: Array, new: Array) -> Array:
    """A copy of z with these blocks replaced."""
    z = z.copy()
    z[:, np.arange(len(idx))[:, None], idx] = new
    return z


def blocks(rng: np.random.Generator, m: int, I: int) -> Array:
    """(AHEAD, I): I different blocks for every draw."""
    return rng.random((AHEAD, m)).argsort(axis=1)[:, :I]


class Noisy(NamedTuple):
    """Errors of the means of B samples of Q, P and q."""

    idx: Array
    Q: Array  # (S, I, q, q)
    P: Array  # (S, I, q, p)
    q: Array  # (S, I, q)


class Quadratic:
    """g_i = 1/2 y^T Q_i y - (P_i x + q_i)^T y and f_i = 1/2 ||y - r_i||^2 + sum_j x_j^2 / (1 + x_j^2).

    Q_i = I + W W^T / 8 (symmetric), P_i and q_i are seen with noise of s.d. 0.3 in every entry.
    """

    p, q, sd, smallest = 20, 8, 0.3, 0.5

    def __init__(self, seeds: list[int], m: int) -> None:
        rngs = [np.random.default_rng([seed, 0]) for seed in seeds]
        W = np.stack([r.standard_normal((m, self.q, self.q)) for r in rngs])
        self.m, self.seeds = m, seeds
        self.Q = np.eye(self.q) + W @ W.swapaxes(-1, -2) / self.q  # (S, m, q, q)
        self.P = np.stack([r.standard_normal((m, self.q, self.p)) for r in rngs]) / np.sqrt(self.p)
        self.b, self.r = np.stack([r.standard_normal((2, m, self.q)) for r in rngs], axis=1)
        self.start = np.stack([2 * r.standard_normal(self.p) for r in rngs])
        self.L = np.linalg.eigvalsh(self.Q).max(axis=(1, 2))[:, None, None]  # (S, 1, 1)
        slope = np.linalg.solve(self.Q, self.P)  # y_i* = slope x + offset
        offset = np.linalg.solve(self.Q, self.b[..., None])[..., 0]
        self.A = (slope.swapaxes(-1, -2) @ slope).mean(axis=1)  # (S, p, p)
        self.a = (slope.swapaxes(-1, -2) @ (offset - self.r)[..., None])[..., 0].mean(axis=1)

    def draws(self, I: int, B: int) -> Iterator[Noisy]:
        q, p, S = self.q, self.p, len(self.seeds)
        rngs = [np.random.default_rng([seed, 1]) for seed in self.seeds]
        while True:
            idx = np.stack([blocks(r, self.m, I) for r in rngs], axis=1)
            noise = np.stack([r.standard_normal((AHEAD, I, q * (q + p + 1))) for r in rngs], axis=1)
            noise *= self.sd / np.sqrt(B)  # a mean of B draws
            E, P, e = np.split(noise, [q * q, q * (q + p)], axis=-1)
            E = E.reshape(AHEAD, S, I, q, q)
            E = (E + E.swapaxes(-1, -2)) / np.sqrt(2)
            yield from map(Noisy, idx, E, P.reshape(AHEAD, S, I, q, p), e)

    def _of(self, z: Array, idx: Array) -> Array:
        return z[np.arange(len(idx))[:, None], idx]

    def hess(self, x: Array, y: Array, d: Noisy) -> Array:
        """(S, I, q, q), whatever the point."""
        return self._of(self.Q, d.idx) + d.Q

    def hvp(self, x: Array, y: Array, v: Array, d: Noisy) -> Array:
        return (self.hess(x, y, d) @ v[..., None])[..., 0]

    def grad_y_g(self, x: Array, y: Array, d: Noisy) -> Array:
        P = self._of(self.P, d.idx) + d.P
        return self.hvp(x, y, y, d) - (P @ x[:, :, None, :, None])[..., 0] - self._of(self.b, d.idx) - d.q

    def grad_y_f(self, x: Array, y: Array, d: Noisy) -> Array:
        return y - self._of(self.r, d.idx)

    def reduced(self, x: Array, y: Array, v: Array, d: Noisy) -> Array:
        """grad_x f_i - grad_xy g_i v, the mean over the draw's blocks: (C, S, p)."""
        P = self._of(self.P, d.idx) + d.P
        return self.bend(x) + (v[..., None, :] @ P)[..., 0, :].mean(axis=2)

    def bend(self, x: Array) -> Array:
        return 2 * x / (1 + x * x) ** 2

    def gradient(self, x: Array) -> Array:
        """grad F, exactly: (C, S, p)."""
        return (self.A @ x[..., None])[..., 0] + self.a + self.bend(x)


class Batch(NamedTuple):
    idx: Array
    z: Array  # (S, I, B, q) training images, their noisy labels -1 or 1, and validation images with labels
    t: Array  # (S, I, B)
    z_val: Array
    t_val: Array


class Digits:
    """m tasks: tell two classes of digits apart, though 30% of the training labels are flipped.

    x = (weights of a linear network with a sigmoid, which weighs the training images of all tasks; logarithm of the
    regularisation), y_i a task's logistic weights; f_i is its loss on clean validation images plus a little decay of x,
    without which an x that runs away saturates the sigmoid and counts as stationary.
    """

    smallest, decay = 0.05, 1e-3

    def __init__(self, seeds: list[int], m: int, images: Array, digits: Array, train: int, validation: int) -> None:
        x = images.reshape(len(images), -1) / 16.0
        x = x - x.mean(axis=0)
        x = x / np.linalg.norm(x, axis=1).mean()
        self.z = np.column_stack([x, np.ones(len(x))])  # (N, q)
        self.m, self.seeds, self.q = m, seeds, self.z.shape[1]
        self.p = self.q + 1
        tasks = [self._tasks(np.random.default_rng([seed, 0]), digits, train, validation) for seed in seeds]
        self.train, self.t, self.val, self.t_val = (np.stack(part) for part in zip(*tasks, strict=True))
        self.start = np.tile(np.append(np.zeros(self.q), np.log(0.1)), (len(seeds), 1))
        self.L = 0.25 * float((self.z**2).sum(axis=1).max()) + 0.1
        self.solved = np.zeros((1, len(seeds), m, self.q))

    def _tasks(self, rng: np.random.Generator, digits: Array, train: int, validation: int) -> tuple[Array, ...]:
        found = []
        for _ in range(self.m):
            a, b = rng.choice(10, size=2, replace=False)
            of_pair = rng.permutation(np.flatnonzero((digits == a) | (digits == b)))[: train + validation]
            label = np.where(digits[of_pair] == a, 1.0, -1.0)
            seen = label[:train] * np.where(rng.random(train) < 0.3, -1, 1)
            found.append((of_pair[:train], seen, of_pair[train:], label[train:]))
        return tuple(np.stack(part) for part in zip(*found, strict=True))

    def draws(self, I: int, B: int) -> Iterator[Batch]:
        rngs = [np.random.default_rng([seed, 1]) for seed in self.seeds]
        s = np.arange(len(self.seeds))[:, None, None]
        while True:
            idx = np.stack([blocks(r, self.m, I) for r in rngs], axis=1)
            j = np.stack([r.integers(self.train.shape[2], size=(AHEAD, I, B)) for r in rngs], axis=1)
            k = np.stack([r.integers(self.val.shape[2], size=(AHEAD, I, B)) for r in rngs], axis=1)
            for i, at, at_val in zip(idx, j, k, strict=True):
                where, where_val = (s, i[..., None], at), (s, i[..., None], at_val)
                z, z_val = self.z[self.train[where]], self.z[self.val[where_val]]
                yield Batch(i, z, self.t[where], z_val, self.t_val[where_val])

    def _weights(self, x: Array, d: Batch) -> Array:
        return sigmoid((d.z @ x[:, :, None, :-1, None])[..., 0])  # (C, S, I, B)

    def _ridge(self, x: Array) -> Array:
        """Its logarithm is x's last entry, within reason: (C, S, 1, 1)."""
        return 1e-3 + np.exp(np.clip(x[:, :, None, -1:], -20, 20))

    def _along(self, z: Array, v: Array) -> Array:
        return (z @ v[..., None])[..., 0]  # (C, S, I, B)

    def _mean(self, weight: Array, z: Array) -> Array:
        return (weight[..., None, :] @ z)[..., 0, :] / z.shape[-2]

    def grad_y_g(self, x: Array, y: Array, d: Batch) -> Array:
        pull = -d.t * sigmoid(-d.t * self._along(d.z, y))
        return self._mean(self._weights(x, d) * pull, d.z) + self._ridge(x) * y

    def _curvature(self, x: Array, y: Array, d: Batch) -> Array:
        chance = sigmoid(self._along(d.z, y))
        return self._weights(x, d) * chance * (1 - chance)

    def hvp(self, x: Array, y: Array, v: Array, d: Batch) -> Array:
        return self._mean(self._curvature(x, y, d) * self._along(d.z, v), d.z) + self._ridge(x) * v

    def grad_y_f(self, x: Array, y: Array, d: Batch) -> Array:
        return self._mean(-d.t_val * sigmoid(-d.t_val * self._along(d.z_val, y)), d.z_val)

    def reduced(self, x: Array, y: Array, v: Array, d: Batch) -> Array:
        """grad_x f_i - grad_xy g_i v, the mean over the draw's blocks: (C, S, p)."""
        w, pull = self._weights(x, d), -d.t * sigmoid(-d.t * self._along(d.z, y))
        of_net = self._mean(w * (1 - w) * pull * self._along(d.z, v), d.z)
        of_ridge = (self._ridge(x)[..., 0] - 1e-3) * (y * v).sum(axis=-1)
        return self.decay * x - np.concatenate([of_net, of_ridge[..., None]], axis=-1).mean(axis=2)

    def whole(self, seed: int) -> Batch:
        """All data of one seed as a draw of all blocks."""
        everything = self.z[self.train[seed]], self.t[seed], self.z[self.val[seed]], self.t_val[seed]
        return Batch(np.arange(self.m)[None], *(part[None] for part in everything))

    def gradient(self, x: Array) -> Array:
        """grad F with all tasks solved by Newton's method: (C, S, p)."""
        if len(self.solved) != len(x):
            self.solved = np.zeros((len(x), len(self.seeds), self.m, self.q))  # where the last solutions are kept
        found = np.zeros_like(x)
        for s in range(len(self.seeds)):
            d = self.whole(s)
            for c in range(len(x)):
                at, y = x[c : c + 1, s : s + 1], self.solved[c : c + 1, s : s + 1]
                for _ in range(100):
                    slope = self.grad_y_g(at, y, d)
                    if np.abs(slope).max() < 1e-10:
                        break
                    step = np.linalg.solve(self._hess(at, y, d), slope[..., None])[..., 0]
                    length = np.linalg.norm(step, axis=-1, keepdims=True)
                    y = y - step / np.where(length > 0.5, 1 + length, 1)  # damped far from the solution
                v = np.linalg.solve(self._hess(at, y, d), self.grad_y_f(at, y, d)[..., None])[..., 0]
                self.solved[c, s] = y[0, 0]
                found[c, s] = self.reduced(at, y, v, d)[0, 0]
        return found

    def _hess(self, x: Array, y: Array, d: Batch) -> Array:
        weighted = self._curvature(x, y, d)[..., None] * d.z / d.z.shape[-2]
        return d.z.swapaxes(-1, -2) @ weighted + self._ridge(x)[..., None] * np.eye(self.q)


Family = Quadratic | Digits
