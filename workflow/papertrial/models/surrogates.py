"""surrogates: small ReLU networks that stand for two simulators and read digits, for optimisation through networks.

A part is a training seed. Its state has the weights of three networks under process/, kinetics/ and digits/, to be read
by testbeds.surrogates.Network; inputs in [0, 1], outputs in the simulators' units or logits.
"""

import itertools
from collections.abc import Callable

import numpy as np

from papertrial.engine.checkpoints import Checkpoint
from papertrial.engine.results import Inputs, Results
from papertrial.testbeds.surrogates import SIMULATED, Network, log_softmax

Layers = list[tuple[np.ndarray, np.ndarray]]
LossGradient = Callable[[np.ndarray, np.ndarray], np.ndarray]  # outputs and targets (B, m) -> (B, m)


def fit(x: np.ndarray, y: np.ndarray, loss: str, widths: list[int], epochs: int, rng: np.random.Generator) -> Layers:
    """Adam on mean squared error (`squares`, y (N, m)) or cross-entropy (`entropy`, y (N, m) of 0 and 1).

    The rate falls from 3e-3 to 0 along a cosine; batches of 128.
    """
    sizes = [x.shape[1], *widths, y.shape[1]]
    layers = [(rng.standard_normal((a, b)) * np.sqrt(2 / a), np.zeros(b)) for a, b in itertools.pairwise(sizes)]
    moments = [[np.zeros_like(p), np.zeros_like(p)] for layer in layers for p in layer]
    batches = -(-len(x) // 128)
    for step in range(epochs * batches):
        if step % batches == 0:
            order = rng.permutation(len(x))
        rows = order[step % batches :: batches]
        gradients = backward(layers, x[rows], y[rows], LOSSES[loss])
        rate = 3e-3 * 0.5 * (1 + np.cos(np.pi * step / (epochs * batches)))
        flat = [p for layer in layers for p in layer]
        for p, g, m in zip(flat, gradients, moments, strict=True):
            m[0] += 0.1 * (g - m[0])
            m[1] += 0.001 * (g**2 - m[1])
            scale = np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
            p -= rate * scale * m[0] / (np.sqrt(m[1]) + 1e-8)
    return layers


def squares(out: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 2 * (out - y) / out.size


def entropy(out: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.exp(log_softmax(out)) - y) / len(y)


LOSSES = {"squares": squares, "entropy": entropy}


def backward(layers: Layers, x: np.ndarray, y: np.ndarray, loss_gradient: LossGradient) -> list[np.ndarray]:
    """Gradients of every layer's W and b, in order."""
    inputs = [x]
    for W, b in layers[:-1]:
        inputs.append(np.maximum(inputs[-1] @ W + b, 0))
    W, b = layers[-1]
    g, found = loss_gradient(inputs[-1] @ W + b, y), []
    for (W, _), h in zip(reversed(layers), reversed(inputs), strict=True):
        found = [h.T @ g, g.sum(axis=0), *found]
        g = (g @ W.T) * (h > 0)
    return found


def named(layers: Layers, prefix: str) -> dict[str, np.ndarray]:
    return {f"{prefix}{k}{i}": p for i, layer in enumerate(layers) for k, p in zip("Wb", layer, strict=True)}


def simulator(family: str, settings: dict, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], float]:
    """The network's weights, and the least R^2 of its outputs on 1000 new points."""
    simulate, n = SIMULATED[family].simulate, SIMULATED[family].n
    x, test = rng.random((settings["samples"], n)), rng.random((1000, n))
    y = simulate(x)
    mean, sd = y.mean(axis=0), y.std(axis=0)
    layers = fit(2 * x - 1, (y - mean) / sd, "squares", settings["widths"], settings["epochs"], rng)
    W, b = layers[0]
    layers[0] = (2 * W, b - W.sum(axis=0))  # takes x instead of 2 x - 1
    W, b = layers[-1]
    layers[-1] = (W * sd, b * sd + mean)
    state = named(layers, f"{family}/")
    y = simulate(test)
    r2 = 1 - ((Network(state, f"{family}/")(test) - y) ** 2).mean(axis=0) / y.var(axis=0)
    return state, float(r2.min())


def classifier(x: np.ndarray, y: np.ndarray, settings: dict, rng: np.random.Generator) -> tuple[dict, float]:
    """The network's weights, and its accuracy on the fifth of the digits that it wasn't trained on."""
    order = rng.permutation(len(x))
    train, test = order[len(x) // 5 :], order[: len(x) // 5]
    layers = fit(x[train], np.eye(10)[y[train]], "entropy", settings["widths"], settings["epochs_digits"], rng)
    state = named(layers, "digits/")
    return state, float((Network(state, "digits/")(x[test]).argmax(axis=1) == y[test]).mean())


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    seed = int(part)
    state, row = {}, {"seed": seed}
    for i, family in enumerate(SIMULATED):
        found, row[f"r2_{family}"] = simulator(family, settings, np.random.default_rng([seed, i]))
        state |= found
    digits = inputs.datasets["digits"]
    x = np.asarray(digits["x"], dtype=float).reshape(len(digits["y"]), -1)
    found, row["accuracy"] = classifier(x / x.max(), digits["y"], settings, np.random.default_rng([seed, 9]))
    return Results([row], state=state | found)
