"""A U-Net that predicts from a noisy picture, its noise level and its label.

Residual blocks with group normalisation, SiLU and scale-shift by an embedding of level and label; stride-2
convolutions down, nearest neighbours up, skips concatenated. The same class is the 280,545-parameter network that
trains in minutes (``UNet()``) and the 50-million-parameter one of full-size experiments (``UNet(channels=(256, 256,
256), blocks=4, ...)``).

After Ho et al. 2020 (arXiv 2006.11239) and Karras et al. 2022 (arXiv 2206.00364).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _zero(layer: nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


class ResidualBlock(nn.Module):
    """(n, inner, h, w) -> (n, outer, h, w)."""

    def __init__(self, inner: int, outer: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.scale_shift = nn.Linear(width, 2 * outer)
        self.norm2 = nn.GroupNorm(groups, outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.scale_shift(embedding)[:, :, None, None].chunk(2, dim=1)  # (n, outer, 1, 1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.skip(x) + self.conv2(F.silu(h))


class SelfAttention(nn.Module):
    """Every pixel attends to every other; starts as the identity."""

    def __init__(self, channels: int, groups: int, head: int = 64) -> None:
        super().__init__()
        self.heads = max(1, channels // head)
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        _zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, self.heads, c // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # (n, heads, pixels, c/heads)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(-1, -2).reshape(n, c, height, width))


class Level(nn.Module):
    """A residual block, with self-attention behind it where asked for."""

    def __init__(self, inner: int, outer: int, width: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.block = ResidualBlock(inner, outer, width, groups)
        self.attention = SelfAttention(outer, groups) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


class UNet(nn.Module):
    """F(x, c_noise, label).

    Args:
        channels: of each resolution, finest first; the last one is the middle.
        blocks: on the way down at each resolution but the last, and as many on the way up.
        middle: at the last resolution.
        attention: the resolutions (0 is the finest) with self-attention.
        width: of the embedding of level and label.
        groups: of every normalisation.
        classes: labels are 0..classes - 1; ``classes`` itself is the null label, for unconditional use.
        colours: channels of a picture.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
        middle: int = 2,
        attention: Sequence[int] = (),
        width: int = 64,
        groups: int = 4,
        classes: int = 10,
        colours: int = 1,
    ) -> None:
        super().__init__()
        self.null, fine, last = classes, len(channels) - 1, channels[-1]
        self.embed = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_label = nn.Embedding(classes + 1, width)
        self.stem = nn.Conv2d(colours, channels[0], 3, padding=1)

        def level(inner: int, resolution: int) -> Level:
            return Level(inner, channels[resolution], width, groups, resolution in attention)

        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for i, (finer, coarser) in enumerate(pairwise(channels)):
            self.down.append(nn.ModuleList([level(finer, i) for _ in range(blocks)]))
            self.shrink.append(nn.Conv2d(finer, coarser, 3, stride=2, padding=1))
        self.middle = nn.ModuleList([level(last, fine) for _ in range(middle)])
        self.up = nn.ModuleList()
        for i in reversed(range(fine)):
            inner = [channels[i + 1]] + [channels[i]] * (blocks - 1)
            self.up.append(nn.ModuleList([level(c + channels[i], i) for c in inner]))
        self.norm = nn.GroupNorm(groups, channels[0])
        self.out = nn.Conv2d(channels[0], colours, 3, padding=1)
        _zero(self.out)

    @property
    def blocks(self) -> dict[str, Level]:
        """The blocks by name, in the order they run: down0.0, ..., middle.0, ..., up0.0."""
        named = {f"down{i}.{j}": b for i, row in enumerate(self.down) for j, b in enumerate(row)}
        named |= {f"middle.{j}": b for j, b in enumerate(self.middle)}
        count = len(self.up)
        return named | {f"up{count - 1 - i}.{j}": b for i, row in enumerate(self.up) for j, b in enumerate(row)}

    def embedding(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        """(n, width) from log-levels (n,) and labels (n,)."""
        if label is None:
            label = torch.full(c_noise.shape, self.null, device=c_noise.device)
        angle = c_noise[:, None] * 2.0 ** torch.arange(8, device=c_noise.device)  # (n, 8)
        return F.silu(self.embed(torch.cat([angle.sin(), angle.cos()], dim=1)) + self.embed_label(label))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        e = self.embedding(c_noise, label)
        h, skips = self.stem(x), []
        for row, shrink in zip(self.down, self.shrink, strict=True):
            for block in row:
                h = block(h, e)
                skips.append(h)
            h = shrink(h)
        for block in self.middle:
            h = block(h, e)
        for row in self.up:
            h = F.interpolate(h, scale_factor=2, mode="nearest")
            for block in row:
                h = block(torch.cat([h, skips.pop()], dim=1), e)
        return self.out(F.silu(self.norm(h)))
