"""Transformers over picture tokens, and the small heads that turn a token's hidden state into a prediction.

All models here share one backbone size. ``Parallel`` sees a whole noisy picture and its time; ``Causal`` sees a
sequence from left to right, with a cache for sampling. ``FlowHead`` generates: it's the velocity of a flow from noise
to a token's target, given the hidden state; ``LinearHead`` and ``PerceptronHead`` predict the target's mean.
"""

from collections import Counter
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Pre-normalised attention and perceptron, (n, L, dim) -> (n, L, dim)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.qkv, self.out = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm_2, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, h: Tensor, causal: bool = False, past: dict | None = None) -> Tensor:
        n, length, dim = h.shape
        q, k, v = self.qkv(self.norm_1(h)).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if past is not None:
            if past:
                k, v = torch.cat([past["k"], k], 2), torch.cat([past["v"], v], 2)
            past.update(k=k, v=v)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=causal and length > 1)  # (n, heads, L, dim/heads)
        h = h + self.out(seen.transpose(1, 2).reshape(n, length, dim))
        return h + self.down(F.silu(self.up(self.norm_2(h))))


class Backbone(nn.Module):
    """What both transformers have in common; ``calls`` counts evaluations.

    Args:
        length: tokens after the label's.
        patch: numbers in a token.
    """

    def __init__(self, length: int, patch: int, dim: int, layers: int, heads: int, classes: int = 10) -> None:
        super().__init__()
        self.length, self.dim, self.calls = length, dim, Counter()
        self.embed, self.label = nn.Linear(patch, dim), nn.Embedding(classes, dim)
        self.position = nn.Parameter(0.02 * torch.randn(length + 1, dim))  # the label's first
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(dim)

    def multiply_adds(self, length: int) -> int:
        """Of one pass over ``length`` tokens: 12 dim^2 a layer and token, and the attention's two products."""
        return len(self.blocks) * length * (12 * self.dim**2 + 2 * length * self.dim)


class Parallel(Backbone):
    """h = f(X_t, t, label)."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.time = nn.Linear(16, self.dim)

    def forward(self, x: Tensor, u: Tensor, label: Tensor) -> Tensor:
        """(n, L, dim) from tokens (n, L, patch), times u = t/T (n,) and labels (n,)."""
        self.calls["backbone"] += 1
        angle = u[:, None] * torch.pi * 2.0 ** torch.arange(-1, 7, device=u.device)  # (n, 8)
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        h = torch.cat([self.label(label)[:, None], self.embed(x) + time[:, None]], 1) + self.position
        for block in self.blocks:
            h = block(h)
        return self.norm(h)[:, 1:]


class Causal(Backbone):
    """h_i = f(label, x_0, ..., x_{i-1}): what the i-th token of a sequence is predicted from."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """(n, l + 1, dim) from the first l tokens (n, l, patch)."""
        self.calls["backbone"] += 1
        return self._run(self._begin(x, label), None)

    def start(self, x: Tensor, label: Tensor) -> tuple[Tensor, list[dict]]:
        """(n, dim) what the token after x is predicted from, and the cache."""
        self.calls["backbone"] += 1
        cache: list[dict] = [{} for _ in self.blocks]
        return self._run(self._begin(x, label), cache)[:, -1], cache

    def extend(self, token: Tensor, i: int, cache: list[dict]) -> Tensor:
        """(n, dim) what token i + 1 is predicted from, once token i (n, patch) is known."""
        self.calls["backbone"] += 1
        return self._run((self.embed(token) + self.position[i + 1])[:, None], cache)[:, 0]

    def _begin(self, x: Tensor, label: Tensor) -> Tensor:
        return torch.cat([self.label(label)[:, None], self.embed(x)], 1) + self.position[: x.shape[1] + 1]

    def _run(self, h: Tensor, cache: list[dict] | None) -> Tensor:
        for i, block in enumerate(self.blocks):
            h = block(h, True, None if cache is None else cache[i])
        return self.norm(h)


class FlowHead(nn.Module):
    """g(y_s, s, h): the velocity, at time s, of the flow that carries noise to p(Y | h), every token by itself."""

    def __init__(self, patch: int, dim: int, width: int) -> None:
        super().__init__()
        self.patch, self.calls = patch, Counter()
        sizes = [patch + 1 + dim, width, width, width]
        hidden = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
        self.net = nn.Sequential(*hidden, nn.Linear(width, patch))

    def forward(self, y: Tensor, s: Tensor, h: Tensor) -> Tensor:
        """Of y (..., patch), s (..., 1), h (..., dim)."""
        self.calls["head"] += 1
        return self.net(torch.cat([y, s, h], -1))

    def loss(self, Y: Tensor, h: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """E |g(y_s, s, h) - (Y - y_0)|^2 with ``draws`` pairs (s, y_0) a hidden state."""
        s = torch.rand((draws, *Y.shape[:-1], 1), generator=generator).to(Y.device)
        y_0 = torch.randn((draws, *Y.shape), generator=generator).to(Y.device)
        g = self((1 - s) * y_0 + s * Y, s, h.expand(draws, *h.shape))
        return (g - (Y - y_0)).square().mean()

    def generate(self, y: Tensor, h: Tensor, steps: int) -> Tensor:
        """Y ~ p(. | h) from noise y, by Euler's rule."""
        for k in range(steps):
            y = y + self(y, y.new_full((*y.shape[:-1], 1), k / steps), h) / steps
        return y

    def multiply_adds(self) -> int:
        """Of one token."""
        return sum(m.weight.numel() for m in self.net if isinstance(m, nn.Linear))


class PerceptronHead(FlowHead):
    """A mean from h with the parameters of ``FlowHead``: y and s are held at 0."""

    def mean(self, h: Tensor) -> Tensor:
        return self(h.new_zeros((*h.shape[:-1], self.patch)), h.new_zeros((*h.shape[:-1], 1)), h)


class LinearHead(nn.Linear):
    """A mean from h."""

    def __init__(self, patch: int, dim: int, width: int = 0) -> None:
        super().__init__(dim, patch)
        self.calls = Counter()

    def mean(self, h: Tensor) -> Tensor:
        self.calls["head"] += 1
        return self(h)

    def multiply_adds(self) -> int:
        return self.weight.numel()


class Model(nn.Module):
    """A backbone and a head."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    @property
    def calls(self) -> Counter:
        """Evaluations so far, of the backbone and of the head, each counted by itself."""
        return self.backbone.calls + self.head.calls


def to_tokens(x: Tensor, side: int) -> Tensor:
    """(n, 1, size, size) -> (n, L, side^2), patches in raster order."""
    n, _, size, _ = x.shape
    k = size // side
    return x.reshape(n, k, side, k, side).transpose(2, 3).reshape(n, k * k, side * side)


def to_pictures(tokens: Tensor, side: int) -> Tensor:
    """The inverse of ``to_tokens``."""
    n, length, _ = tokens.shape
    k = round(length**0.5)
    return tokens.reshape(n, k, k, side, side).transpose(2, 3).reshape(n, 1, k * side, k * side)
