"""Problems whose objective and constraints see x only through a trained network: max f(Phi(x)) s.t. c(Phi(x)) <= 0.

x lies in [0, 1]^n, the range that the network was trained on, and Phi(x) = (network(x), x): outputs, then the inputs
themselves, so f and c may depend on both. Three families:

    process          product of three stirred tanks in series, by-product and energy below bounds        n = 10
    counterfactual   the nearest picture to a given digit that the network takes for another one         n = 64
    kinetics         biodiesel from oil and methanol, less what it costs, impurities below a bound       n = 6
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from papertrial.testbeds.process_models import KINETICS, PROCESS, reactor_chain, transesterification


class Network:
    """A ReLU network from its weights, arrays W0, b0, W1, b1, ...: h <- relu(h W + b), the last layer linear."""

    def __init__(self, state: Mapping[str, np.ndarray], prefix: str = "") -> None:
        depth = sum(name.startswith(f"{prefix}W") for name in state)
        self.layers = [(np.asarray(state[f"{prefix}W{i}"]), np.asarray(state[f"{prefix}b{i}"])) for i in range(depth)]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(B, n) -> (B, m)"""
        h = x
        for W, b in self.layers[:-1]:
            h = np.maximum(h @ W + b, 0)
        W, b = self.layers[-1]
        return h @ W + b

    def vjp(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        """J^T u, the gradient of <u, network(x)>: x (B, n), u (B, m) -> (B, n)."""
        h, active = x, []
        for W, b in self.layers[:-1]:
            a = h @ W + b
            active.append(a > 0)
            h = np.maximum(a, 0)
        g = u @ self.layers[-1][0].T
        for (W, _), on in zip(reversed(self.layers[:-1]), reversed(active), strict=True):
            g = (g * on) @ W.T
        return g


@dataclass(frozen=True)
class Task:
    """One instance. Functions of Y = Phi(x) (B, m + n) take and return batches.

    f, f_gradient: (B,), (B, m + n)
    c, c_gradient: violations (B, q), feasible where all are <= 0; the gradient of the sum of positive ones
    start: (n,) feasible
    draw: k points (k, n) from where good ones may be
    truth: (B, n) -> f and largest c of the simulator that the network stands for
    """

    network: Network
    f: Callable[[np.ndarray], np.ndarray]
    f_gradient: Callable[[np.ndarray], np.ndarray]
    c: Callable[[np.ndarray], np.ndarray]
    c_gradient: Callable[[np.ndarray], np.ndarray]
    start: np.ndarray
    draw: Callable[[int, np.random.Generator], np.ndarray]
    truth: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

    def phi(self, x: np.ndarray) -> np.ndarray:
        return np.hstack([self.network(x), x])

    def pull_back(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        """J^T u of Phi: (B, n), (B, m + n) -> (B, n)."""
        m = u.shape[1] - x.shape[1]
        return self.network.vjp(x, u[:, :m]) + u[:, m:]

    def values(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f (B,) and the largest violation (B,)."""
        Y = self.phi(x)
        return self.f(Y), self.c(Y).max(axis=1)


# ---- surrogates of simulators: outputs bounded, a weighted sum maximised


@dataclass(frozen=True)
class Family:
    """Outputs (B, m) of a simulator; maximise weights . outputs with outputs[bounded] below a quantile of theirs."""

    simulate: Callable[[np.ndarray], np.ndarray]
    n: int
    weights: np.ndarray  # (m,)
    bounded: tuple[int, ...]
    quantile: float

    def bounds(self) -> np.ndarray:
        """(q,), over 2000 fixed points of the box."""
        outputs = self.simulate(np.random.default_rng(0).random((2000, self.n)))
        return np.quantile(outputs[:, list(self.bounded)], self.quantile, axis=0)


SIMULATED = {
    "process": Family(reactor_chain, len(PROCESS), np.array([1.0, 0, 0, 0]), (1, 2), 0.3),
    "kinetics": Family(transesterification, len(KINETICS), np.array([1.0, 0, -0.3, 0]), (1,), 0.3),
}


def simulated_task(family: Family, network: Network, rng: np.random.Generator) -> Task:
    m, n, places, bound = len(family.weights), family.n, list(family.bounded), family.bounds()
    u = np.concatenate([family.weights, np.zeros(n)])

    def c_gradient(Y: np.ndarray) -> np.ndarray:
        g = np.zeros_like(Y)
        g[:, places] = Y[:, places] > bound
        return g

    def truth(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = family.simulate(x)
        return outputs @ family.weights, (outputs[:, places] - bound).max(axis=1)

    points = rng.random((10_000, n))
    feasible = (network(points)[:, places] <= bound).all(axis=1)
    return Task(
        network,
        f=lambda Y: Y[:, :m] @ family.weights,
        f_gradient=lambda Y: np.broadcast_to(u, Y.shape),
        c=lambda Y: Y[:, places] - bound,
        c_gradient=c_gradient,
        start=points[feasible.argmax()],
        draw=lambda k, rng: rng.random((k, n)),
        truth=truth,
    )


# ---- counterfactual pictures

CONFIDENCE = 0.9


def counterfactual_task(network: Network, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> Task:
    """A random digit; the target class is another, and the start one of its digits that the network is sure of.

    Args:
        x: (N, 64) pictures in [0, 1].
        y: (N,) labels.
    """
    confidence = log_softmax(network(x))  # (N, 10)
    readable = np.unique(y[confidence[np.arange(len(x)), y] >= np.log(CONFIDENCE)])
    given = int(rng.integers(len(x)))
    target = int(rng.choice(readable[readable != y[given]]))
    sure = np.flatnonzero((y == target) & (confidence[:, target] >= np.log(CONFIDENCE)))
    start, reference = x[rng.choice(sure)], x[given]
    classes = len(network.layers[-1][1])

    def c_gradient(Y: np.ndarray) -> np.ndarray:
        p = np.exp(log_softmax(Y[:, :classes]))
        g = np.zeros_like(Y)
        g[:, :classes] = p
        g[:, target] -= 1  # of -log p_target
        return g * (c(Y) > 0)

    def c(Y: np.ndarray) -> np.ndarray:
        return (np.log(CONFIDENCE) - log_softmax(Y[:, :classes])[:, target])[:, None]

    def f(Y: np.ndarray) -> np.ndarray:
        return -((Y[:, classes:] - reference) ** 2).sum(axis=1)

    def draw(k: int, rng: np.random.Generator) -> np.ndarray:
        between = rng.random((k, 1))
        noise = 0.1 * rng.standard_normal((k, len(start)))
        return np.clip(between * start + (1 - between) * reference + noise, 0, 1)

    def f_gradient(Y: np.ndarray) -> np.ndarray:
        return np.hstack([np.zeros((len(Y), classes)), -2 * (Y[:, classes:] - reference)])

    def truth(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # the network is what is to be explained
        Y = np.hstack([network(points), points])
        return f(Y), c(Y)[:, 0]

    return Task(network, f, f_gradient, c, c_gradient, start, draw, truth)


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))
