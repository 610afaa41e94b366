"""Small fully connected networks F(x, c_noise, label): for 8 x 8 pictures and for points in the plane."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """(n, width) -> (n, width): normalise, shift and scale by the embedding, two layers, add."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.scale_shift = nn.Linear(width, 2 * width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.scale_shift(embedding).chunk(2, dim=1)
        return h + self.down(F.silu(self.up(torch.addcmul(shift, self.norm(h), 1 + scale))))


class ResidualMLP(nn.Module):
    """F(x, c_noise, label) of flattened data.

    Args:
        dim: numbers of one sample, whatever their shape: 64 for (1, 8, 8).
        width: 256 gives 1,225,792 parameters, 128 gives 318,016.
        classes: labels are 0..classes - 1; ``classes`` itself is the null label, for unconditional use.
    """

    def __init__(self, dim: int = 64, width: int = 256, blocks: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.null = classes
        self.stem = nn.Linear(dim, width)
        self.embed = nn.Linear(16, width)
        self.embed_label = nn.Embedding(classes + 1, width)
        self.layers = nn.ModuleList([ResidualBlock(width) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def embedding(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        """(n, width) from log-levels (n,) and labels (n,)."""
        if label is None:
            label = torch.full(c_noise.shape, self.null, device=c_noise.device)
        angle = c_noise[:, None] * 2.0 ** torch.arange(8, device=c_noise.device)  # (n, 8)
        return F.silu(self.embed(torch.cat([angle.sin(), angle.cos()], dim=1)) + self.embed_label(label))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        e, h = self.embedding(c_noise, label), self.stem(x.flatten(1))
        for block in self.layers:
            h = block(h, e)
        return self.out(self.norm(h)).reshape(x.shape)


class PlaneMLP(nn.Module):
    """F(x, c_noise, label) of points: a plain MLP of x, random Fourier features of c_noise and, if any, the label.

    Args:
        dim: coordinates of a point.
        features: frequencies, of each a cosine and a sine.
        classes: 0 for a density without labels.
    """

    def __init__(self, dim: int = 2, width: int = 128, depth: int = 3, features: int = 16, classes: int = 0) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * torch.pi * torch.randn(features))
        self.embed_label = nn.Embedding(classes, width) if classes else None
        sizes = [dim + 2 * features] + [width] * depth
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(sizes)])
        self.out = nn.Linear(width, dim)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        angle = c_noise[:, None] * self.frequencies  # (n, features)
        h = torch.cat([x, angle.cos(), angle.sin()], dim=1)
        for i, layer in enumerate(self.layers):
            h = layer(h)
            if i == 0 and self.embed_label is not None:
                h = h + self.embed_label(label)
            h = F.silu(h)
        return self.out(h)
