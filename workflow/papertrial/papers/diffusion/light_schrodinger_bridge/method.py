"""LightSB: learn a Schroedinger bridge in minutes on a CPU, as the minimum of one plain expectation.

With the potential v_theta(y) = sum_k a_k N(y | r_k, eps S_k) the plan, its normaliser c_theta(x) and the drift of the
bridge have closed forms (testbeds.schrodinger.Potential), and
    L(theta) = E_{x ~ p0} log c_theta(x) - E_{y ~ p1} log v_theta(y)
is, up to a constant, KL(pi* || pi_theta): no adversary, no simulation, independent draws of p0 and p1 suffice.

Source: Korotin et al. 2023 (arXiv 2310.01174).
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from math import log, sqrt
from time import process_time

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Inputs, Results
from papertrial.papers.diffusion.light_schrodinger_bridge.baselines import (
    EntropicMap,
    independent,
    linear,
    sinkhorn_map,
)
from papertrial.papers.diffusion.light_schrodinger_bridge.digits import threes_to_eights
from papertrial.papers.diffusion.light_schrodinger_bridge.neural import (
    Drift,
    bridge_matching,
    moments_of_draws,
    simulate,
)
from papertrial.testbeds.schrodinger import (
    Diagonal,
    Full,
    Pair,
    Plan,
    Potential,
    bw2_squared,
    bw2_uvp,
    cbw2_uvp,
    gaussian_pair,
    mixture_pair,
    normal,
    planar_pair,
)

Objective = Callable[[Potential, Tensor, Tensor], Tensor]


def light(v: Potential, x: Tensor, y: Tensor) -> Tensor:
    """L(theta) of draws x (n, D) of p0 and y (m, D) of p1."""
    return v.log_c(x).mean() - v.log_v(y).mean()


def without_x(v: Potential, x: Tensor, y: Tensor) -> Tensor:
    """The control: log c at x = 0 only, which is maximum likelihood of the mixture v for p1."""
    return v.log_c(torch.zeros_like(x[:1])).mean() - v.log_v(y).mean()


COVARIANCES = {"diagonal": (Diagonal, lambda r: torch.zeros_like(r)), "full": (Full, lambda r: torch.diag_embed(0 * r))}


TRAIN, TEST = 1, 2


def stream(seed: int, dim: int, purpose: int) -> np.random.Generator:
    """Random numbers of a seed, for training or for what a plan is tested on."""
    return np.random.default_rng([seed, dim, purpose])


def fit(pair: Pair, how: dict, rng: np.random.Generator, objective: Objective = light) -> Potential:
    """Minimise the objective by Adam over log a (K,), r (K, D) and the logs in S, with fresh draws at every step."""
    r = pair.sample1(how["K"], rng)  # the components start at draws of p1, S_k = I
    shape, start = COVARIANCES[how["covariance"]]
    theta = [torch.full_like(r[:, 0], -log(how["K"])), r, start(r)]
    for part in theta:
        part.requires_grad_()
    v = Potential(theta[0], theta[1], shape(theta[2]), pair.eps)
    adam = torch.optim.Adam(theta, how["lr"], fused=True)
    for step in range(how["steps"]):
        loss = objective(v, pair.sample0(how["batch"], rng), pair.sample1(how["batch"], rng))
        adam.param_groups[0]["lr"] = how["lr"] * min(1.0, (1 - step / how["steps"]) / how["decay"])
        adam.zero_grad()
        loss.backward()
        adam.step()
    log_a, r, raw = (part.detach() for part in theta)
    return Potential(log_a, r, shape(raw), pair.eps)


def drift(v: Potential, x: Tensor, t: float) -> Tensor:
    """g(x, t) (n, D) of the bridge dX = g dt + sqrt(eps) dW from x at time 0 to v's plan at time 1; S diagonal.

    eps grad_x {-|x|^2/(2 eps (1-t)) + log sum_k a_k N(r_k | 0, eps S_k) |A_k|^-1/2 exp(h_k' A_k^-1 h_k / 2)}
    = (E[X_1 | X_t = x] - x) / (1 - t), where component k of X_1 has mean A_k^-1 h_k.
    """
    s = v.eps * v.S.log_s.exp()  # (K, D), eps S_k
    A = t / (v.eps * (1 - t)) + 1 / s
    h = x[:, None] / (v.eps * (1 - t)) + v.r / s  # (n, K, D)
    log_w = v.log_a + 0.5 * (h.square() / A - v.r.square() / s - (s * A).log()).sum(2)
    end = (torch.softmax(log_w, dim=1)[..., None] * h / A).sum(1)
    return (end - x) / (1 - t)


def paths(v: Potential, x: Tensor, steps: int, rng: np.random.Generator) -> Tensor:
    """(steps + 1, n, D): Euler-Maruyama paths of the bridge from x."""
    found = [x]
    for i in range(steps):
        x = x + drift(v, x, i / steps) / steps + sqrt(v.eps / steps) * normal(rng, *x.shape, device=x.device)
        found.append(x)
    return torch.stack(found)


SOLVERS: dict[str, Callable[[Pair, dict, np.random.Generator], Plan]] = {
    "lightsb": fit,
    "lightsb-k10": fit,
    "no-x": partial(fit, objective=without_x),
    "independent": independent,
    "linear": linear,
    "sinkhorn": sinkhorn_map,
}
FAMILIES = {"mixture": mixture_pair, "gaussian": gaussian_pair}


def accuracy(p: dict, method: str, seeds: list[int], device: str) -> Results:
    """c1: how far the conditionals are from those of the known plan; printed, the same for the y-marginal."""
    found = Results([])
    for seed, dim, eps in product(seeds, p["dims"], p["epsilons"]):
        pair = FAMILIES[p["family"]](dim, eps, seed, device=device)
        plan = SOLVERS[method](pair, p, stream(seed, dim, TRAIN))
        x = pair.sample0(p["test_x"], stream(seed, dim, TEST))
        error, marginal = (f(plan, pair.plan, x, pair.variance) for f in (cbw2_uvp, bw2_uvp))
        found.rows.append({"seed": seed, "dim": dim, "eps": eps, "error": error, "marginal": marginal})
    return found


def cost(p: dict, method: str, seeds: list[int], device: str) -> Results:
    """c2: CPU seconds of training, and the error of what it leads to."""
    found = Results([])
    for seed in seeds:
        pair = mixture_pair(p["dim"], p["eps"], seed, device=device)
        x, key = pair.sample0(p["cost_x"], stream(seed, p["dim"], TEST)), {"seed": seed, "dim": p["dim"]}
        error, work, seconds, traces = TIMED[method](pair, p, seed, x)
        found.rows.append({**key, "error": error, **work})
        found.timings.append({**key, "cpu_s": seconds})
        found.traces += [{**key, **trace} for trace in traces]
    return found


def timed_light(pair: Pair, p: dict, seed: int, x: Tensor) -> tuple[float, dict, float, list[dict]]:
    began = process_time()
    plan = fit(pair, p, stream(seed, pair.dim, TRAIN))
    seconds = process_time() - began
    work = {"updates": p["steps"], "work": p["steps"] * p["batch"] * p["K"]}
    return cbw2_uvp(plan, pair.plan, x, pair.variance), work, seconds, []


def timed_neural(pair: Pair, p: dict, seed: int, x: Tensor) -> tuple[float, dict, float, list[dict]]:
    """Its conditionals' moments come from draws; ``floor`` is the error of the true plan's own draws, for scale."""
    rng, spent, traces = stream(seed, pair.dim, TEST + 1), [0.0], []

    def error(draw: Callable[[Tensor], Tensor], x: Tensor) -> float:
        gap = bw2_squared(*moments_of_draws(draw, x, p["paths"]), *pair.plan.moments(x))
        return 200 / pair.variance * gap.mean().item()

    def by_paths(drift: Drift) -> Callable[[Tensor], Tensor]:
        return lambda x: simulate(drift, x.float(), pair.eps, p["steps_of_paths"], rng).double()

    def watch(outer: int, drift: Drift) -> None:
        at = process_time()
        traces.append({"outer": outer, "error": error(by_paths(drift), x[: p["watch_x"]])})
        spent[0] += process_time() - at  # looking on is no part of training

    began = process_time()
    drift = bridge_matching(pair, p, seed, stream(seed, pair.dim, TRAIN), watch)
    seconds = process_time() - began - spent[0]
    updates = 2 * p["outer"] * p["inner_steps"]
    work = {"updates": updates, "work": updates * p["batch"], "floor": error(lambda x: pair.plan.sample(x, rng), x)}
    return error(by_paths(drift), x), work, seconds, traces


TIMED = {"lightsb": timed_light, "neural": timed_neural}


def universal(p: dict, method: str, seeds: list[int], device: str) -> Results:
    """c3: conditional means against discrete Sinkhorn's at its own fresh x, for a pair outside the family."""
    pair, found = planar_pair(p["first"], p["second"], p["eps"], device), Results([])
    for seed in seeds:
        rng = stream(seed, 2, TEST)
        x, y = pair.sample0(p["points"], rng), pair.sample1(p["points"], rng)
        truth = EntropicMap(x, y, pair.eps, p["tol"], p["cap"])

        def rms(plan: Plan, x: Tensor = x, truth: EntropicMap = truth) -> float:
            return (plan.mean(x) - truth.mean(x)).square().sum(1).mean().sqrt().item()

        for floor in ("independent", "linear", "sinkhorn"):
            error = rms(SOLVERS[floor](pair, p, stream(seed, 2, TRAIN)))
            found.traces.append({"seed": seed, "floor": floor, "error": error, "gap": truth.marginal_error})
        for K in p["Ks"]:
            plan = fit(pair, {**p, "K": K}, stream(seed, 2, TRAIN))
            found.rows.append({"seed": seed, "K": K, "error": rms(plan)})
            if seed == seeds[0]:
                found.state[f"y-{K}"] = plan.sample(x[: p["drawn"]], rng).cpu().numpy()
        if seed == seeds[0]:
            few = paths(plan, x[: p["drawn_paths"]], 50, rng)
            found.state |= {"x": x[: p["drawn"]].cpu().numpy(), "y": y[: p["drawn"]].cpu().numpy()}
            found.state["paths"] = few.cpu().numpy()
    return found


def estimate(start: Potential, x: Tensor, y: Tensor) -> tuple[Potential, float]:
    """The minimum of L on given draws that is reached from ``start``, and the largest slope that is left there."""
    theta = [part.clone().requires_grad_() for part in (start.log_a, start.r, start.S.log_s)]
    v = Potential(theta[0], theta[1], Diagonal(theta[2]), start.eps)
    lbfgs = torch.optim.LBFGS(
        theta, max_iter=2000, tolerance_grad=1e-7, tolerance_change=0, history_size=30, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        lbfgs.zero_grad()
        loss = light(v, x, y)
        loss.backward()
        return loss

    lbfgs.step(closure)
    closure()
    slope = max(part.grad.abs().max().item() for part in theta)
    log_a, r, log_s = (part.detach() for part in theta)
    return Potential(log_a, r, Diagonal(log_s), start.eps), slope


def rate(p: dict, method: str, seeds: list[int], device: str) -> Results:
    """c4: KL(pi* || pi_theta) = L(theta) - L(theta*) of the minimum over N draws, on the same fresh draws."""
    found = Results([])
    for seed in seeds:
        pair = mixture_pair(p["dim"], p["eps"], seed, device=device)
        rng, fresh = stream(seed, p["dim"], TRAIN), stream(seed, p["dim"], TEST)
        X, Y = pair.sample0(p["fresh"], fresh), pair.sample1(p["fresh"], fresh)
        least = light(pair.plan, X, Y)
        for N in p["sizes"]:
            v, slope = estimate(pair.plan, pair.sample0(N, rng), pair.sample1(N, rng))
            excess = (light(v, X, Y) - least).item()
            found.rows.append({"seed": seed, "N": N, "excess": excess, "slope_left": slope})
    return found


MEASURES = {"accuracy": accuracy, "cost": cost, "universal": universal, "rate": rate}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One method on one problem; ``problem["measure"]`` says which of the claims' quantities is measured."""
    p = {**problem, **settings}
    if p["measure"] == "digits":
        return threes_to_eights(p, SOLVERS[method], seeds, inputs.datasets["digits"], device)
    return MEASURES[p["measure"]](p, method, seeds, device)
