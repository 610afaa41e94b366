"""The prompt router: which of K architecture codes a caption gets, and which gates a code opens.

    z = router(e), unit vector         e the encoded caption, nothing else
    sim_k = <z, a_k / |a_k|>           a_k the codes
    gates ~ Bernoulli(sigmoid(predictor(a_k)))

In training a batch is spread over the codes by entropic optimal transport, Q = argmax <Q, sim> + eps H(Q) with rows
1/B and columns 1/K; at test time a caption takes the most similar code.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papertrial.methods.sinkhorn import log_sweep, plan
from papertrial.models.prompt8 import Mask
from papertrial.testbeds.prompts import WIDTH

EPS, SWEEPS = 0.05, 5  # of the transport
TAU = 0.1  # of the contrastive loss
GUMBEL = 0.5  # temperature of the relaxed gates
OPEN = 2.0  # logit that gates start from: nine of ten are open

Assign = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # similarities (n, K) and captions (n,)


class Router(nn.Module):
    """Captions to codes to gates.

    Args:
        codes: K.
        blocks, groups: what is gated: each block, and each group of each block's hidden units.
    """

    def __init__(self, codes: int, blocks: int, groups: int, hidden: int = 64) -> None:
        super().__init__()
        self.router = nn.Sequential(nn.Linear(WIDTH, hidden), nn.SiLU(), nn.Linear(hidden, WIDTH))
        self.predictor = nn.Sequential(nn.Linear(WIDTH, hidden), nn.SiLU(), nn.Linear(hidden, blocks * (groups + 1)))
        self.codes = nn.Parameter(F.normalize(torch.randn(codes, WIDTH), dim=1))
        self.blocks = blocks
        nn.init.constant_(self.predictor[2].bias, OPEN)

    def embed(self, encoded: Tensor) -> Tensor:
        """z, (n, 32)."""
        return F.normalize(self.router(encoded), dim=1)

    def similarity(self, z: Tensor) -> Tensor:
        """(n, K)."""
        return z @ F.normalize(self.codes, dim=1).T

    def logits(self, code: Tensor) -> Mask:
        """Of the gates, for codes (m, 32)."""
        out = self.predictor(WIDTH**0.5 * F.normalize(code, dim=1)).unflatten(
            1, (self.blocks, -1)
        )  # (m, blocks, groups + 1)
        return Mask(out[..., :-1], out[..., -1])

    @torch.no_grad()
    def choose(self, encoded: Tensor) -> Tensor:
        """(n,) the code that each caption takes at test time."""
        return self.similarity(self.embed(encoded)).argmax(1)


def transport(sim: np.ndarray, eps: float = EPS, sweeps: int = SWEEPS) -> tuple[np.ndarray, np.ndarray]:
    """Q (B, K) with rows 1/B and columns 1/K, and the columns' potential (K,), by Sinkhorn's algorithm."""
    B, K = sim.shape
    C, rows, columns, y = -sim.astype(np.float64), np.full(B, 1 / B), np.full(K, 1 / K), np.zeros(K)
    for _ in range(sweeps):
        x, y = log_sweep(C, rows, columns, 1 / eps, y)
    return plan(C, x, y, 1 / eps), y


def by_transport(sim: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
    """Each caption's largest code (n,), and the rows of Q scaled to one (n, K), with gradient."""
    Q, y = transport(sim.detach().cpu().numpy())
    potential = torch.tensor(y - y.mean(), dtype=sim.dtype).to(sim.device)
    return torch.from_numpy(Q.argmax(1)).to(sim.device), ((sim + potential) / EPS).softmax(1)


def by_similarity(sim: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
    """The same without the columns' constraint: the most similar code, and what Q is then."""
    return sim.argmax(1), (sim / EPS).softmax(1)


def divergence(plan_rows: Tensor, sim: Tensor) -> Tensor:
    """KL, averaged over captions, from the plan's rows (n, K), held fixed, to what similarity alone would give.

    It makes the most similar code at test time the one that transport gives in training; 0 where there's no transport.
    """
    wanted, alone = plan_rows.detach(), (sim / EPS).log_softmax(1)
    return (torch.special.xlogy(wanted, wanted) - wanted * alone).sum(1).mean()


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of hard with the gradient of soft."""
    return hard + (soft - soft.detach())


def open_gates(logits: Mask, generator: torch.Generator) -> Mask:
    """Zeros and ones by a Gumbel-sigmoid draw for every gate, straight through."""

    def draw(of: Tensor) -> Tensor:
        u = torch.rand(of.shape, generator=generator).to(of.device).clamp(1e-6, 1 - 1e-6)
        soft = ((of + u.logit()) / GUMBEL).sigmoid()
        return straight_through((soft > 0.5).to(soft.dtype), soft)

    return Mask(draw(logits.units), draw(logits.blocks))


def contrastive(z: Tensor, encoded: Tensor) -> Tensor:
    """Cross-entropy, averaged over captions, of whom z resembles in the batch against whom the caption resembles."""
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    e = F.normalize(encoded, dim=1)
    wanted = (e @ e.T / TAU).masked_fill(itself, -torch.inf).softmax(1)
    found = (z @ z.T / TAU).masked_fill(itself, -1e9).log_softmax(1)
    return -(wanted * found).sum(1).mean()


def perplexity(code: np.ndarray, K: int) -> float:
    """exp of the entropy of how often each code is taken."""
    share = np.bincount(code, minlength=K) / len(code)
    return float(np.exp(-(share * np.log(share, where=share > 0, out=np.zeros(K))).sum()))


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Between two labellings, over the mean of their entropies; 0 where both are constant."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))

    def entropy(p: np.ndarray) -> float:
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    of_a, of_b = entropy(joint.sum(1)), entropy(joint.sum(0))
    return 2 * (of_a + of_b - entropy(joint)) / (of_a + of_b) if of_a + of_b > 0 else 0.0
