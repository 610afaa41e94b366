"""c2: pictures of clothing from masked or pooled and noisy pixels, with the network fm16."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Inputs, Results
from papertrial.models import fm16
from papertrial.models.clf16 import SampleJudge
from papertrial.papers.diffusion.stsl_second_order_tweedie.guidance import Guidance
from papertrial.papers.diffusion.stsl_second_order_tweedie.inverse import TASKS, Inverse
from papertrial.papers.diffusion.stsl_second_order_tweedie.sampling import SAMPLERS, Stream, best
from papertrial.testbeds.fashion import pictures


def linear_mmse(inverse: Inverse, train: Tensor) -> Tensor:
    """Ridge regression: E[x0|y] if pictures were Gaussian, with the training pictures' mean and covariance."""
    x = train.flatten(1).double()
    A, mean, cov = inverse.A.double(), x.mean(0), torch.cov(x.T)
    gram = A @ cov @ A.T + inverse.sy**2 * torch.eye(len(A), dtype=A.dtype, device=A.device)
    gain = torch.linalg.solve(gram, A @ cov)  # (m, d)
    return (mean + (inverse.y - mean @ A.T) @ gain).to(train).reshape(-1, *train.shape[1:])


def nearest(inverse: Inverse, train: Tensor) -> Tensor:
    """The training picture whose measurement is nearest."""
    return train[torch.cdist(inverse.y, train.flatten(1) @ inverse.A.T).argmin(1)]


SIMPLE: dict[str, Callable[[Inverse, Tensor], Tensor]] = {"ridge": linear_mmse, "nearest": nearest}


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """(n,) in dB, of pictures in [-1, 1]."""
    return 10 * torch.log10(4 / (x - truth).square().flatten(1).mean(1))


def restoration(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """PSNR and distance in clf16's features to the truth, one row a picture.

    Judged seed s has the test pictures s n, ..., (s + 1) n - 1 of a fixed order; the setting is chosen on the last
    ``tuning_n`` of them.
    """
    state, data = inputs.models["fm16"]["0"], inputs.datasets["fashion_mnist"]
    network, shape = fm16.load(state, device).requires_grad_(False), fm16.shape(state)
    judge = SampleJudge(inputs.models["clf16"]["0"], device)
    order = np.random.default_rng(0).permutation(len(data["x_test"]))

    def some(rows: np.ndarray, seed: int) -> tuple[Tensor, Inverse]:
        rng = np.random.default_rng([seed, *p["task"].encode()])
        truth = torch.from_numpy(pictures(data["x_test"][rows], shape[1])).to(device)
        A = torch.from_numpy(TASKS[p["task"]](shape[1], rng)).float().to(device)
        noise = torch.from_numpy(rng.standard_normal((len(rows), len(A)))).float().to(device)
        return truth, Inverse(A, truth.flatten(1) @ A.T + p["sy"] * noise, p["sy"])

    def restored(inverse: Inverse, how: Guidance | None, seed: int) -> tuple[Tensor, int]:
        if method in SIMPLE:
            train = torch.from_numpy(pictures(data["x_train"][: p["train"]], shape[1])).to(device)
            return SIMPLE[method](inverse, train), 0
        budget = p["times"] * p["budget"]
        steps = (budget - 1) // how.cost if how else budget // 2 - 1
        stream = Stream([seed], len(inverse.y), shape, torch.float32, device)
        return SAMPLERS[method](network, inverse, how, steps, stream)

    def loss(how: Guidance) -> float:
        truth, inverse = some(order[-p["tuning_n"] :], p["tuning_seed"])
        return -psnr(restored(inverse, how, p["tuning_seed"])[0], truth).mean().item()

    how, tried = best(p, loss)
    found = Results([], traces=[{"seed": seed, **row} for seed in seeds[:1] for row in tried])
    for seed in seeds:
        rows = order[seed * p["n"] : (seed + 1) * p["n"]]
        truth, inverse = some(rows, seed)
        x, nfe = restored(inverse, how, seed)
        gap = judge.classify(x)[0] - judge.classify(truth)[0]
        feature, quality = np.linalg.norm(gap, axis=1), psnr(x, truth).tolist()
        for row, dB, distance in zip(rows.tolist(), quality, feature.tolist(), strict=True):
            found.rows.append({"seed": seed, "image": row, "psnr": dB, "feature": distance, "nfe": nfe})
        if seed == seeds[0]:
            k = p["shown"]
            seen = (inverse.y[:k] @ inverse.A / inverse.A.sum(0).clamp(min=1e-9)).reshape(-1, *shape)
            kept = {"restored": x[:k], "truth": truth[:k], "seen": seen.clamp(-1, 1)}
            found.state |= {name: z[:, 0].cpu().numpy() for name, z in kept.items()}
    return found
