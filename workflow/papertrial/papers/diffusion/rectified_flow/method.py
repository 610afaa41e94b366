"""Rectified flow: turn any pairing of two samples into a deterministic map that costs no more and runs nearly straight.

With X_t = t X1 + (1 - t) X0 for pairs (X0, X1) of a coupling, the flow dZ = v(Z, t) dt of
    v = argmin int E|(X1 - X0) - v(X_t, t)|^2 dt
carries X0's law to X1's, and its pairs (Z0, Z1) have no larger E c(Z1 - Z0) than the coupling for any convex c.
Learning the next flow from these pairs straightens the paths (reflow), until one Euler step does; a regression of Z1 on
Z0 + v(Z0, 0) finishes that (distillation). Noise or the first law is at t = 0.

Source: Liu et al. 2022 (arXiv 2209.03003).
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.rectified_flow import integrate, residual, straightness, without_gradients
from papertrial.methods.samplers import balanced_labels, ddim, initial_noise
from papertrial.models import fm8_flow
from papertrial.models.arrays import seeded
from papertrial.models.classifiers import SampleJudge
from papertrial.models.perceptrons import PlaneMLP
from papertrial.models.sampler_lab import SamplerLab, on_grid
from papertrial.models.training import Loss, Training, fit
from papertrial.testbeds.mixtures import Mixture, density
from papertrial.testbeds.samplequality import SlicedW2

# Convex costs c(u) of displacements u (n, d): (n,).
COSTS: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda u: u.abs().sum(1),
    "l2": lambda u: u.norm(dim=1),
    "l2_2": lambda u: u.square().sum(1),
    "l2_4": lambda u: u.square().sum(1).square(),
}
FIRST = "1-rf"

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor, Tensor | None]]  # starts, ends, labels


class PlaneFlow(nn.Module):
    """v(x, t) of points: an MLP of x and Fourier features of t."""

    def __init__(self) -> None:
        super().__init__()
        self.net = PlaneMLP()

    def forward(self, x: Tensor, t: Any, label: Tensor | None = None) -> Tensor:
        return self.net(x, torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x)))


def law(name: str) -> Mixture:
    return Mixture([[0.0, 0.0]], 1.0, dtype=torch.float32) if name == "normal" else density(name, torch.float32)


def independent(start: Mixture, end: Mixture, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return start.sample(n, generator), end.sample(n, generator)


def sorted_along(start: Mixture, end: Mixture, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Both samples ranked along two fixed random directions, equal ranks paired."""
    x0, x1 = independent(start, end, n, generator)
    directions = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    x0, x1 = x0[(x0 @ directions[0]).argsort()], x1[(x1 @ directions[1]).argsort()]
    rows = torch.randperm(n, generator=generator)  # so that the first pairs are as good as any
    return x0[rows], x1[rows]


def of_pairs(*pairs: Tensor | None) -> Draw:
    """Random rows of a finite coupling."""

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor | None, ...]:
        rows = torch.randint(len(pairs[0]), (n,), generator=generator).to(pairs[0].device)
        return tuple(None if part is None else part[rows] for part in pairs)

    return draw


def flow_loss(draw: Draw, batch: int, regression: bool = False) -> Loss:
    """E|(X1 - X0) - v(X_t, t)|^2, t ~ U[0, 1]; with t = 0 it regresses X1 on X0 + v(X0, 0)."""

    def loss(flow: nn.Module, average: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        x0, x1, label = draw(batch, generator)
        t = torch.rand(batch, generator=generator) * (not regression)
        return residual(flow, x0, x1, t.to(x0.device), label).square().mean()

    return loss


class Plane:
    """Two laws in the plane, a seed's coupling of n starts with n ends, and what is measured of a new one."""

    def __init__(self, p: dict, seed: int, device: str) -> None:
        self.p, self.seed, self.device = p, seed, device
        laws, generator = (law(p["start"]), law(p["end"])), torch.Generator().manual_seed(10_000 + seed)
        self.sorted = p["coupling"] == "sorted"
        pair = sorted_along if self.sorted else independent
        self.x0, self.x1 = (x.to(device) for x in pair(*laws, p["n"], generator))
        self.fresh: Draw = lambda n, g: (*(x.to(device) for x in independent(*laws, n, g)), None)
        self.sw2 = SlicedW2(laws[1].sample(p["sw2_n"], torch.Generator().manual_seed(0)).numpy())

    def coupling(self) -> Draw:
        """What the first round learns from: fresh draws, or the pairs themselves where they are sorted."""
        return of_pairs(self.x0, self.x1, None) if self.sorted else self.fresh

    def train(self, flow: nn.Module, draw: Draw, regression: bool = False) -> nn.Module:
        how = Training.of({**self.p, "decay": 1.0})
        return fit(flow.requires_grad_(True), flow_loss(draw, self.p["batch"], regression), how, self.seed)[0]

    def start(self) -> nn.Module:
        return seeded(PlaneFlow, self.seed).to(self.device)

    def row(self, stage: str, nfe: int, z1: Tensor, **columns: float) -> Row:
        """Costs of a coupling (x0, z1), those of the first one beside them, and the distance of z1 to its law."""
        z0, x1 = self.x0[: len(z1)], self.x1[: len(z1)]
        costs = {name: c(z1 - z0).mean().item() for name, c in COSTS.items()}
        first = {f"{name}_0": c(x1 - z0).mean().item() for name, c in COSTS.items()}
        return {"seed": self.seed, "stage": stage, "nfe": nfe, **costs, **first, **self.distance(z1), **columns}

    def distance(self, z1: Tensor) -> Row:
        return {"sw2": self.sw2(z1[: self.p["sw2_n"]].cpu().numpy())}


def rounds(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """Rectify again and again; the control pairs a flow's ends with its starts at random before it goes on."""
    found, times = Results([]), np.linspace(0, 1, p["steps_measured"] + 1)
    for seed in seeds:
        plane = Plane(p, seed, device)
        flow, draw = plane.start(), plane.coupling()
        for k in range(1, p["rounds"] + 1):
            flow = plane.train(flow, draw)
            velocity, stage = without_gradients(flow.eval(), 1000), f"{k}-rf"
            starts = plane.x0 if k < 3 else plane.x0[: p["n_third"]]  # of the third round only S is judged
            s, z1 = straightness(velocity, starts, times)
            found.state[f"paths_{k}_{seed}"] = paths(velocity, starts[:40], times)
            if p["shuffle"]:
                z1 = z1[torch.randperm(len(z1), generator=torch.Generator().manual_seed(seed)).to(device)]
            found.rows.append(plane.row(stage, p["steps_measured"], z1, straightness=s))
            draw = of_pairs(starts, z1, None)
    return found


def paths(velocity: Callable, x: Tensor, times: np.ndarray, points: int = 20) -> np.ndarray:
    """(n, points + 1, 2) places along the way, for a figure."""
    along, every = [x], (len(times) - 1) // points or 1
    for i in range(0, len(times) - 1, every):
        along.append(integrate(velocity, along[-1], times[i : i + every + 1]))
    return torch.stack(along, 1).cpu().numpy()


def regression(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """The control Z1 = E[X1 | X0]: it costs less, but its ends don't have X1's law."""
    found = Results([])
    for seed in seeds:
        plane = Plane(p, seed, device)
        flow = plane.train(plane.start(), plane.coupling(), regression=True)
        z1 = integrate(without_gradients(flow.eval(), 1000), plane.x0, (0.0, 1.0))
        found.rows.append(plane.row(FIRST, 1, z1))
    return found


def still(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """The control Z1 = Z0."""
    planes = (Plane(p, seed, device) for seed in seeds)
    return Results([{"seed": q.seed, "stage": FIRST, "nfe": 0, **q.distance(q.x0)} for q in planes])


def exact(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """The floor of SW2: other draws of the end's law."""
    end, found = law(p["end"]), Results([])
    for seed in seeds:
        plane, generator = Plane(p, seed, device), torch.Generator().manual_seed(20_000 + seed)
        sw2 = np.mean([plane.distance(end.sample(p["sw2_n"], generator))["sw2"] for _ in range(2)])
        found.rows.append({"seed": seed, "stage": "exact", "nfe": 0, "sw2": float(sw2)})
    return found


def optimal(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """The least cost that any coupling of the two samples has, one assignment a cost.

    For few points it lies a little above that of the laws, below which no coupling can be.
    """
    metrics = {"l1": "cityblock", "l2": "euclidean", "l2_2": "sqeuclidean"}
    found = Results([])
    for seed in seeds:
        plane, row = Plane({**p, "n": p["n_optimal"]}, seed, device), {"seed": seed, "stage": "optimal", "nfe": 0}
        x0, x1 = plane.x0.cpu().numpy(), plane.x1.cpu().numpy()
        for name, cost in COSTS.items():
            c = cdist(x0, x1, metrics.get(name, "sqeuclidean"))
            c = c**2 if name == "l2_4" else c
            row[name], row[f"{name}_0"] = c[linear_sum_assignment(c)].mean(), cost(plane.x1 - plane.x0).mean().item()
        found.rows.append(row)
    return found


class Pictures:
    """FD of samples from a seed's noise."""

    def __init__(self, p: dict, inputs: Inputs, seed: int, device: str) -> None:
        self.seed, self.judge = seed, SampleJudge(inputs.models["clf8"]["0"], device)
        kept = inputs.models["fm8-flow"][str(seed)]
        self.noise = initial_noise([seed], p["n"], kept["x"].shape[1:]).to(device)
        self.label = balanced_labels([seed], p["n"]).to(device)

    def row(self, stage: str, flow: nn.Module, nfe: int) -> tuple[Row, np.ndarray]:
        """Quality after nfe Euler steps, and the first samples, for a figure."""
        x = integrate(without_gradients(flow), self.noise, np.linspace(0, 1, nfe + 1), self.label)
        quality = self.judge(x, self.label.cpu())
        return {"seed": self.seed, "stage": stage, "nfe": nfe, **quality}, x[:20, 0].cpu().numpy().copy()


def within_labels(label: Tensor, seed: int) -> np.ndarray:
    """A permutation that keeps every label where it is."""
    label, rng = label.cpu().numpy(), np.random.default_rng(seed)
    rows = np.arange(len(label))
    for k in np.unique(label):
        rows[label == k] = rng.permutation(rows[label == k])
    return rows


def pictures(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c3: one Euler step of 1-RF, of 2-RF, of both distilled; and 100 steps of 1-RF. The control permutes the pairs."""
    found = Results([])
    for seed in seeds:
        kept, gallery = inputs.models["fm8-flow"][str(seed)], Pictures(p, inputs, seed, device)
        z0, z1, label = fm8_flow.load_pairs(kept, device)
        if p["shuffle"]:
            z1 = z1[within_labels(label, seed)]
        draw = of_pairs(z0, z1, label)

        def learn(flow: nn.Module, steps: int, distil: bool, draw: Draw = draw, seed: int = seed) -> nn.Module:
            how = Training(steps, p["lr"], decay=0.5, ema=p["ema"])
            return fit(deepcopy(flow).requires_grad_(True), flow_loss(draw, p["batch"], distil), how, seed)[0].eval()

        one = fm8_flow.load(kept, device)
        two = learn(one, p["steps"], False)
        stages = [(FIRST, one, 1), ("2-rf", two, 1)]
        if not p["shuffle"]:
            stages += [(FIRST, one, p["steps_many"]), ("2-rf", two, p["steps_many"])]
            stages += [(f"{k}-distilled", learn(f, p["steps_distil"], True), 1) for k, f, _ in stages[:2]]
        for stage, flow, nfe in stages:
            row, x = gallery.row(stage, flow, nfe)
            found.rows.append(row)
            found.state[f"samples_{stage}_{nfe}_{seed}"] = x
    return found


def probability_flow(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """The VP probability-flow ODE of the diffusion model fm8 (DDIM, uniform in VP time) at as many evaluations."""
    lab, found = SamplerLab(inputs, device, "fm8", "256-0"), Results([])
    for seed in seeds:
        noise, label, _ = lab.start([seed], p["n"])
        for asked in (1, p["steps_many"]):
            x0, nfe = lab.sample(on_grid(ddim, "time", asked), noise, label)
            found.rows.append({"seed": seed, "stage": "vp-ode", "nfe": nfe, **lab.judge(x0, label.cpu())})
    return found


def real(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """As many real training pictures."""
    judge = SampleJudge(inputs.models["clf8"]["0"], device)
    return Results([{"seed": s, "stage": "real", "nfe": 0, "fd": judge.floor(s, p["n"])} for s in seeds])


PLANE = {"rectified": rounds, "permuted": rounds, "regression": regression, "still": still, "exact": exact}
MEASURES = {
    "plane": {**PLANE, "optimal": optimal},
    "pictures": {"rectified": pictures, "permuted": pictures, "vp-ode": probability_flow, "real": real},
}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One method on one pair of laws."""
    return MEASURES[problem["measure"]][method]({**problem, **settings}, method, seeds, inputs, device)
