"""What learns from one example at a time: logistic regression, an MLP (the forest is in methods/), and Adam.

All have the forest's interface: parameters (S, L, size) for S streams and L configurations each, ``forward`` to the
probability of class 1 and a cache, ``backward`` to ``scale * d logit / d params``.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from papertrial.methods.soft_forest import sigmoid

Array = np.ndarray


class Learner(Protocol):
    size: int

    def draw(self, rng: np.random.Generator) -> Array:
        """Initial parameters (size,)."""

    def forward(self, params: Array, x: Array) -> tuple[Array, NamedTuple]:
        """f (S, L), the probabilities of class 1 of x (S, d), and what backward needs, f included."""

    def backward(self, cache: NamedTuple, params: Array, x: Array, scale: Array, out: Array) -> None:
        """Write scale * d logit(f) / d params to out (S, L, size); scale (S, L).

        With scale = f - y that is the gradient of the cross-entropy, with f (1 - f) that of f itself.
        """


class Pass(NamedTuple):
    f: Array  # (S, L) probability of class 1
    hidden: Array | None = None  # (S, L, width)


@dataclass(frozen=True)
class Logistic:
    inputs: int  # the constant feature included

    @property
    def size(self) -> int:
        return self.inputs

    def draw(self, rng: np.random.Generator) -> Array:
        return np.zeros(self.size)

    def forward(self, params: Array, x: Array) -> tuple[Array, Pass]:
        f = sigmoid((params @ x[:, :, None])[..., 0])
        return f, Pass(f)

    def backward(self, cache: Pass, params: Array, x: Array, scale: Array, out: Array) -> None:
        np.multiply(scale[..., None], x[:, None, :], out=out)


@dataclass(frozen=True)
class Mlp:
    """One hidden ReLU layer: first all of its weights (width, d), then the output's (width + 1)."""

    inputs: int
    width: int = 64

    @property
    def size(self) -> int:
        return self.width * self.inputs + self.width + 1

    def w(self, params: Array) -> Array:
        """The view (S, L, width, d) of the hidden layer's weights."""
        return params[..., : self.width * self.inputs].reshape(*params.shape[:-1], self.width, self.inputs)

    def v(self, params: Array) -> Array:
        """The view (S, L, width + 1) of the output's weights, its bias last."""
        return params[..., self.width * self.inputs :]

    def draw(self, rng: np.random.Generator) -> Array:
        """He's normal initialisation; biases 0."""
        w = rng.normal(scale=np.sqrt(2 / self.inputs), size=(self.width, self.inputs))
        w[:, -1] = 0
        v = np.append(rng.normal(scale=np.sqrt(1 / self.width), size=self.width), 0)
        return np.concatenate([w.ravel(), v])

    def forward(self, params: Array, x: Array) -> tuple[Array, Pass]:
        hidden = np.maximum((self.w(params) @ x[:, None, :, None])[..., 0], 0)
        v = self.v(params)
        f = sigmoid((hidden * v[..., :-1]).sum(axis=-1) + v[..., -1])
        return f, Pass(f, hidden)

    def backward(self, cache: Pass, params: Array, x: Array, scale: Array, out: Array) -> None:
        scale = scale[..., None]
        through = scale * self.v(params)[..., :-1] * (cache.hidden > 0)
        np.multiply(through[..., None], x[:, None, None, :], out=self.w(out))
        v = self.v(out)
        np.multiply(scale, cache.hidden, out=v[..., :-1])
        v[..., -1:] = scale


class Adam:
    """Adam (Kingma and Ba 2015) in place.

    The moments are kept without their factors 1 - beta, which go to the step size with the bias corrections: fewer
    passes over the memory, and at batch size 1 memory is what the time goes to.
    """

    def __init__(self, params: Array, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.lr, self.betas, self.eps = lr, betas, eps
        self.m, self.v, self.spare = (np.zeros_like(params) for _ in range(3))
        self.t = 0

    def step(self, params: Array, grad: Array) -> None:
        """Update params; grad is used up."""
        b1, b2 = self.betas
        self.t += 1
        self.m *= b1
        self.m += grad
        grad *= grad
        self.v *= b2
        self.v += grad
        root = float(np.sqrt((1 - b2**self.t) / (1 - b2)))  # sqrt(v) / root is the unbiased second moment's root
        np.sqrt(self.v, out=self.spare)
        self.spare += self.eps * root
        np.divide(self.m, self.spare, out=self.spare)
        self.spare *= self.lr * root * (1 - b1) / (1 - b1**self.t)
        params -= self.spare
