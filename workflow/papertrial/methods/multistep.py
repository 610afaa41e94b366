"""Integrate the probability-flow ODE with one evaluation a step, from a polynomial through past network outputs.

Over a step from lam to lam_t = lam + h the exact solution is linear in a *mean* of the network's output y,

    noise, y = eps:  x_t = (alpha_t/alpha) x - sigma_t (e^h - 1) mean,     weight e^{+h (1 - theta)},
    data,  y = x0:   x_t = (sigma_t/sigma) x - alpha_t (e^-h - 1) mean,    weight e^{-h (1 - theta)},

    mean = Int_0^1 weight(theta) y(lam + theta h) dtheta / Int_0^1 weight(theta) dtheta.

A solver replaces y by the polynomial through known outputs at lam + r_j h (r_0 = 0; past ones have r_j < 0, a
corrector's new one r_j = 1), so that mean = sum_j w_j y_j with sum_j w_j r_j^k = E[theta^k]. Everything here is that
formula; ``dpm3m``, ``dpmpp3m``, ``unipc2``, ``unipc3`` are rules for ``samplers.solve``, with orders that grow over
the first steps as history allows.

Widespread implementations of the multistep third order weigh the second difference by half of what the polynomial
gives, which makes them of order 2; here they are of order 3, and DPM-Solver++(3M) is UniPC-3 without its corrector.
UniPC is its B_2(h) = e^h - 1 version, which for two points takes E[theta] = 1/2 (as DPM-Solver++(2M) does).

Sources: DPM-Solver arXiv 2206.00927, DPM-Solver++ arXiv 2211.01095, UniPC arXiv 2302.04867.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import expm1, factorial

import numpy as np
from torch import Tensor

from papertrial.methods.samplers import Flow, Rule

Known = tuple[float, Tensor]  # (lam, the output there)


@dataclass(frozen=True)
class Prediction:
    """What of the network is expanded in lam.

    output: of (flow, x, lam).
    advance: of (flow, x, lam, lam_t, mean) -> x_t.
    sign: of the weight e^{sign h (1 - theta)}.
    """

    output: Callable[[Flow, Tensor, float], Tensor]
    advance: Callable[[Flow, Tensor, float, float, Tensor], Tensor]
    sign: int


def _advance_data(flow: Flow, x: Tensor, lam: float, lam_t: float, mean: Tensor) -> Tensor:
    ratio = flow.path.sigma(lam_t) / flow.path.sigma(lam)
    return ratio * x - flow.path.alpha(lam_t) * expm1(lam - lam_t) * mean


NOISE = Prediction(Flow.eps, Flow.move, +1)
DATA = Prediction(Flow.x0, _advance_data, -1)


def phi(count: int, z: float) -> list[float]:
    """phi_1(z) .. phi_count(z), with phi_k(z) = Int_0^1 e^{(1 - u) z} u^{k-1} / (k-1)! du."""
    if abs(z) < 1:  # the recurrence would cancel
        return [sum(z**j / factorial(j + k) for j in range(20)) for k in range(1, count + 1)]
    found = [expm1(z) / z]
    for k in range(1, count):
        found.append((found[-1] - 1 / factorial(k)) / z)
    return found


def moments(count: int, z: float) -> np.ndarray:
    """(count,) E[theta^k], k = 0, 1, ..., of the density proportional to e^{z (1 - theta)} on [0, 1]."""
    return np.array([factorial(k) * f for k, f in enumerate(phi(count, z))]) / phi(1, z)[0]


def mean_output(
    prediction: Prediction, lam: float, lam_t: float, known: Sequence[Known], midpoint: bool = False
) -> Tensor:
    """The mean over [lam, lam_t] of the polynomial through known outputs.

    Args:
        known: (lam_j, y_j), in any order.
        midpoint: take E[theta] = 1/2 where two outputs are known; the order stays 2.
    """
    h = lam_t - lam
    nodes = np.array([(at - lam) / h for at, _ in known])
    target = moments(len(known), prediction.sign * h)
    if midpoint and len(known) == 2:
        target[1] = 0.5
    weights = np.linalg.solve(np.vander(nodes, increasing=True).T, target)
    return sum(float(w) * y for w, (_, y) in zip(weights, known, strict=True))


def multistep(prediction: Prediction, order: int, midpoint: bool = False) -> Rule:
    """A rule of this order; the polynomial goes through as many of the last outputs, as far as there are any."""

    def step(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
        known = [(lam, prediction.output(flow, x, lam)), *memory.get("known", [])][:order]
        memory["known"] = known
        return prediction.advance(flow, x, lam, lam_t, mean_output(prediction, lam, lam_t, known, midpoint))

    return step


def unipc(order: int, prediction: Prediction = DATA, midpoint: bool = True, correct: bool = True) -> Rule:
    """UniPC: the predictor of this order, and a corrector that raises it by one without a further evaluation.

    Once the output at a predicted x is there, the step that led to x is taken again with that output among the known;
    the output itself is not renewed. So the correction of a step happens at the start of the next one.
    """

    def step(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
        here = (lam, prediction.output(flow, x, lam))
        past = memory.get("known", [])
        if past and correct:
            lam_s, x_s = memory["from"]
            mean = mean_output(prediction, lam_s, lam, [*past, here], midpoint)
            x = prediction.advance(flow, x_s, lam_s, lam, mean)
        known = [here, *past][:order]
        memory |= {"known": known, "from": (lam, x)}
        return prediction.advance(flow, x, lam, lam_t, mean_output(prediction, lam, lam_t, known, midpoint))

    return step


dpm3m = multistep(NOISE, 3, midpoint=True)
dpmpp3m = multistep(DATA, 3, midpoint=True)
unipc2 = unipc(2)
unipc3 = unipc(3)
