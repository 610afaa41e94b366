"""What the dynamics minimise.

FULL (c1): f with value, grad and smoothness, for one seed and any number of points (points, d).
STOCHASTIC (c2): a gradient for each step, for a stack of seeds with a point each (S, d).
Both losses of mini-batches take x (S, d), a batch A (S, b, p) and its labels t (S, b), and return f (S,) and its
gradient (S, d).
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat

import numpy as np

from papertrial.engine.results import Inputs
from papertrial.testbeds.optbench.adult import Logistic, adult_logreg, design, sigmoid
from papertrial.testbeds.quadratics import Quadratic, random_quadratic, stack

HIDDEN = 8

Full = Quadratic | Logistic
Gradients = Callable[[int], Iterator[Callable[[np.ndarray], np.ndarray]]]  # number of steps -> a gradient for each


def quadratic(problem: dict, seed: int) -> Quadratic:
    return random_quadratic(np.random.default_rng(seed), problem["dim"], problem["condition"], problem["spread"])


FULL: dict[str, Callable[[dict, int, Inputs], Full]] = {
    "quadratic": lambda problem, seed, inputs: quadratic(problem, seed),
    "adult": lambda problem, seed, inputs: adult_logreg(inputs.datasets["adult"], 0.0, problem.get("people")),
}


def logistic(x: np.ndarray, A: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean logistic loss of the linear scores A x, d = p."""
    z = (A @ x[..., None])[..., 0]  # (S, b)
    return _loss(z, t), ((sigmoid(z) - t)[:, None] @ A)[:, 0] / t.shape[-1]


def tanh_net(x: np.ndarray, A: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean logistic loss of the scores w2.tanh(A W1 + b1) + b2, d = (p + 2) h + 1."""
    S, b, p = A.shape
    W1, b1 = x[:, : p * HIDDEN].reshape(S, p, HIDDEN), x[:, p * HIDDEN : -HIDDEN - 1]  # (S, p, h), (S, h)
    w2, b2 = x[:, -HIDDEN - 1 : -1], x[:, -1:]  # (S, h), (S, 1)
    a = np.tanh(A @ W1 + b1[:, None])  # (S, b, h)
    z = (a @ w2[..., None])[..., 0] + b2  # (S, b)
    dz = (sigmoid(z) - t) / b
    da = dz[..., None] * w2[:, None] * (1 - a * a)  # (S, b, h)
    gradients = [A.transpose(0, 2, 1) @ da, da.sum(axis=1), dz[:, None] @ a, dz.sum(axis=1)]
    return _loss(z, t), np.concatenate([g.reshape(S, -1) for g in gradients], axis=1)


def _loss(z: np.ndarray, t: np.ndarray) -> np.ndarray:
    return (np.logaddexp(0, z) - t * z).mean(axis=-1)


def tanh_net_start(rng: np.random.Generator, p: int) -> np.ndarray:
    """(d,): weights N(0, 1/fan-in), biases 0."""
    W1 = rng.standard_normal((p, HIDDEN)) / np.sqrt(p)
    w2 = rng.standard_normal(HIDDEN) / np.sqrt(HIDDEN)
    return np.concatenate([W1.ravel(), np.zeros(HIDDEN), w2, [0.0]])


def tumours(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Breast cancer: X (569, 30) standardised, y (569,)."""
    x, y = inputs.datasets["breast_cancer"]["x"], inputs.datasets["breast_cancer"]["y"]
    return (x - x.mean(axis=0)) / x.std(axis=0), y.astype(float)


def minibatches(
    X: np.ndarray, y: np.ndarray, seeds: Sequence[int], steps: int, batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """``steps`` batches A (S, batch, p), t (S, batch), drawn with replacement by a generator of each seed's own."""
    rngs = [np.random.default_rng(seed) for seed in seeds]
    for start in range(0, steps, 1000):
        size = (min(1000, steps - start), batch)
        drawn = np.stack([rng.integers(len(X), size=size) for rng in rngs], axis=1)  # (<= 1000, S, batch)
        for index in drawn:
            yield X[index], y[index]


def of_minibatches(loss: Callable, X: np.ndarray, y: np.ndarray, problem: dict, seeds: Sequence[int]) -> Gradients:
    """The same batches for every method and cell of a seed."""

    def gradients(steps: int) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
        for A, t in minibatches(X, y, seeds, steps, problem["batch"]):
            yield lambda x: loss(x, A, t)[1]

    return gradients


def of_quadratics(problem: dict, seeds: Sequence[int], inputs: Inputs) -> tuple[int, Gradients]:
    f = stack(quadratic(problem, seed) for seed in seeds)
    return f.d, lambda steps: repeat(f.grad, steps)


def of_adult(problem: dict, seeds: Sequence[int], inputs: Inputs) -> tuple[int, Gradients]:
    X, y = design(inputs.datasets["adult"])
    return X.shape[1], of_minibatches(logistic, X, y, problem, seeds)


def of_tanh_net(problem: dict, seeds: Sequence[int], inputs: Inputs) -> tuple[int, Gradients]:
    X, y = tumours(inputs)
    return (X.shape[1] + 2) * HIDDEN + 1, of_minibatches(tanh_net, X, y, problem, seeds)


STOCHASTIC: dict[str, Callable[[dict, Sequence[int], Inputs], tuple[int, Gradients]]] = {
    "quadratic": of_quadratics,
    "adult": of_adult,
    "tanh-net": of_tanh_net,
}
