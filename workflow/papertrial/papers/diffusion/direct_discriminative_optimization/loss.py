"""The discriminator hidden in a likelihood model, and the losses that train the model through it.

A model p_theta that starts at a frozen copy p_ref of itself is the discriminator d(x) = sigmoid(beta Delta(x)) with
Delta = log p_theta - log p_ref; told to tell real x from samples of p_ref, it has no generator to be played against.

Every loss takes Delta of the real samples and of the fakes, (n,) each.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus


def ddo(real: Tensor, fake: Tensor, alpha: float, beta: float, generator: torch.Generator | None = None) -> Tensor:
    """-E_data log sigmoid(beta Delta) - alpha E_ref log(1 - sigmoid(beta Delta))."""
    return softplus(-beta * real).mean() + alpha * softplus(beta * fake).mean()


def pooled(real: Tensor, fake: Tensor, alpha: float, beta: float, generator: torch.Generator) -> Tensor:
    """The control: the same after real and fake were pooled and split again at random."""
    both = torch.cat([real, fake])
    both = both[torch.randperm(len(both), generator=generator).to(both.device)]
    return ddo(both[: len(real)], both[len(real) :], alpha, beta)


def unbounded(real: Tensor, fake: Tensor, alpha: float, beta: float, generator: torch.Generator) -> Tensor:
    """Fakes as negatives without the sigmoid: likelihood up on data, down on fakes, however far it went."""
    return alpha * fake.mean() - real.mean()


def likelihood(real: Tensor, fake: Tensor, alpha: float, beta: float, generator: torch.Generator) -> Tensor:
    """Continued likelihood training: p_ref is a constant in it, and fakes play no part."""
    return -real.mean()


@dataclass(frozen=True)
class Objective:
    """A loss, whether fakes enter it, and which of its settings there are to tune."""

    loss: Callable[..., Tensor]
    plays: bool
    tuned: tuple[str, ...]


OBJECTIVES = {
    "ddo": Objective(ddo, True, ("lr", "beta", "alpha")),
    "pooled": Objective(pooled, True, ("lr", "beta", "alpha")),
    "unbounded": Objective(unbounded, True, ("lr", "alpha")),
    "continued": Objective(likelihood, False, ("lr",)),
}
