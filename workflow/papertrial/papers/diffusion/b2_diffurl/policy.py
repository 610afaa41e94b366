"""A diffusion sampler as a policy: T Gaussian steps from noise to a sample, and a reward at the end alone.

The state is x_k at level s_k (k = 0 at the most noise, T at the sample), x = x0 + s eps; the action is x_{k+1}, drawn
by the ancestral sampler (eta = 1) from a normal law whose mean is the network's and whose variance is fixed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log, pi
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from papertrial.methods.noise_levels import grid
from papertrial.models.classifiers import SampleJudge
from papertrial.models.plane_denoisers import DDPM_LEVELS
from papertrial.testbeds.mixtures import density


@dataclass(frozen=True)
class Task:
    """What is to be aligned.

    levels: (T + 1,) falling.
    shape: of a sample.
    reward: (samples, labels) -> (n,) of 0 and 1.
    diversity: (samples, labels, rewards) -> the spread of what was rewarded, relative to the data's.
    """

    levels: Tensor
    shape: tuple[int, ...]
    classes: int
    reward: Callable[[Tensor, Tensor], Tensor]
    diversity: Callable[[Tensor, Tensor, Tensor], float]

    @property
    def T(self) -> int:
        return len(self.levels) - 1

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """x_0, on the device of the levels."""
        return self.levels[0] * normal((n, *self.shape), generator, self.levels.device)

    def labels(self, n: int) -> Tensor:
        """0, 1, ..., again and again."""
        return torch.arange(n, device=self.levels.device) % self.classes


def normal(shape: tuple[int, ...], generator: torch.Generator, device: Any) -> Tensor:
    return torch.randn(shape, generator=generator).to(device)


def law(model: nn.Module, x: Tensor, s: Tensor, s_next: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (n, ...) and standard deviation (n, 1, ...) of x_{k+1} given x_k; levels (n,)."""
    ratio = (s_next / s).square().reshape(-1, *[1] * (x.ndim - 1))
    D = model(x, s, label)
    return D + ratio * (x - D), s_next.reshape(ratio.shape) * (1 - ratio).sqrt()


def log_density(x: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """(n,) of the normal law, summed over coordinates."""
    return (-0.5 * ((x - mean) / sd).square() - sd.log() - 0.5 * log(2 * pi)).flatten(1).sum(1)


@torch.no_grad()
def roll(
    model: nn.Module, task: Task, x: Tensor, label: Tensor, first: int, last: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Steps first .. last - 1 from x: the states (last - first + 1, n, ...) and log densities (last - first, n)."""
    states, logs = [x], []
    for k in range(first, last):
        s, s_next = task.levels[k].expand(len(x)), task.levels[k + 1].expand(len(x))
        mean, sd = law(model, x, s, s_next, label)
        x = mean + sd * normal(x.shape, generator, x.device)
        states.append(x)
        logs.append(log_density(x, mean, sd))
    return torch.stack(states), torch.stack(logs) if logs else x.new_zeros(0, len(x))


def ring8(p: dict, clf8: dict, real: dict, device: str) -> Task:
    """Reward 1 if the nearest mode is the label's; spread of the rewarded around their mode, over 2 (.15)^2."""
    exact = density("ring8", torch.float32, device)
    variance = float(exact.cov[0, 0])
    levels = DDPM_LEVELS[np.linspace(len(DDPM_LEVELS) - 1, 0, p["T"] + 1).round().astype(int)]

    def reward(x: Tensor, label: Tensor) -> Tensor:
        return (torch.cdist(x, exact.means).argmin(1) == label).float()

    def diversity(x: Tensor, label: Tensor, r: Tensor) -> float:
        around = (x - exact.means[label]).square().sum(1) / (2 * variance)
        spreads = [around[(label == k) & (r == 1)] for k in range(8)]
        return float(np.mean([min(1.0, e.mean().item()) if len(e) else 0.0 for e in spreads]))

    return Task(torch.tensor(levels, dtype=torch.float32, device=device), (2,), 8, reward, diversity)


def pairwise_distance(features: np.ndarray) -> float:
    """Mean distance of different rows; 0 where there are not two."""
    return float(torch.pdist(torch.from_numpy(features)).mean()) if len(features) > 1 else 0.0


def fm8(p: dict, clf8: dict, real: dict, device: str) -> Task:
    """Reward 1 if clf8 gives the label more than 1/2; feature distances of the rewarded, over those of real images."""
    judge = SampleJudge(clf8, device)
    y, features = real["y_test"], judge.test_features
    spread = [pairwise_distance(features[y[: len(features)] == k][: p["per_label"]]) for k in range(10)]

    def reward(x: Tensor, label: Tensor) -> Tensor:
        probability = torch.from_numpy(judge.classify(x)[1]).to(label.device)
        return (probability.gather(1, label[:, None])[:, 0] > 0.5).float()

    def diversity(x: Tensor, label: Tensor, r: Tensor) -> float:
        found = judge.classify(x)[0]
        of_label = [found[((label == k) & (r == 1)).cpu().numpy()][: p["per_label"]] for k in range(10)]
        return float(np.mean([pairwise_distance(f) / d for f, d in zip(of_label, spread, strict=True)]))

    levels = torch.tensor(grid("karras", p["T"]), dtype=torch.float32, device=device)
    return Task(levels, (1, p["size"], p["size"]), 10, reward, diversity)


TASKS = {"ring8": ring8, "fm8": fm8}
