"""Printed beside the claims: real data, threes turned into eights in 16 principal coordinates of 8 x 8 digits."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Results
from papertrial.testbeds.schrodinger import Pair, Plan


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| of draws (n, D) and (m, D); 0 for equal laws, up to their sampling."""

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return (2 * torch.cdist(a, b).mean() - within(a) - within(b)).item()


def threes_to_eights(
    p: dict, solve: Callable[[Pair, dict, np.random.Generator], Plan], seeds: list[int], data: Mapping, device: str
) -> Results:
    """Train on a share of both classes, map the held-out threes and compare them with the held-out eights.

    ``floor`` is the distance between the training eights and the held-out ones, ``moved`` the mean |y - x|^2 / 2.
    """
    pixels, found = data["x"].reshape(len(data["x"]), -1) / 16.0, Results([])
    both = pixels[np.isin(data["y"], (p["source"], p["target"]))]
    centre = both.mean(0)
    basis = np.linalg.svd(both - centre, full_matrices=False)[2][: p["dim"]].T  # (64, D)
    scale = ((both - centre) @ basis).std(0).mean()
    classes = [(pixels[data["y"] == digit] - centre) @ basis / scale for digit in (p["source"], p["target"])]
    for seed in seeds:
        rng = np.random.default_rng([seed, p["dim"], 1])
        shuffled = [torch.from_numpy(z[rng.permutation(len(z))]).to(device) for z in classes]
        kept = [round(p["train"] * len(z)) for z in shuffled]
        (x, y), (x_test, y_test) = zip(*[(z[:n], z[n:]) for z, n in zip(shuffled, kept, strict=True)], strict=True)

        def sampler(z: Tensor) -> Callable[[int, np.random.Generator], Tensor]:
            return lambda n, rng: z[torch.from_numpy(rng.integers(len(z), size=n)).to(z.device)]

        plan = solve(Pair(p["dim"], p["eps"], sampler(x), sampler(y)), p, rng)
        made = plan.sample(x_test, rng)
        row = {"energy": energy_distance(made, y_test), "moved": 0.5 * (made - x_test).square().sum(1).mean().item()}
        found.rows.append({"seed": seed, **row, "floor": energy_distance(y, y_test)})
        if seed == seeds[0]:
            few = x_test[: p["shown"]]
            made = torch.stack([few, *[plan.sample(few, rng) for _ in range(p["draws_shown"])]]).cpu().numpy()
            pictures = made * scale @ basis.T + centre  # (1 + draws, shown, 64)
            found.state["pictures"] = pictures.reshape(*made.shape[:2], 8, 8).astype(np.float32)
    return found
