"""Adaptive feature aggregation: several U-Nets of one layout run side by side and share every block's output.

After block j the experts' feature maps F_1, ..., F_n are replaced by sum_i A_i F_i. An aggregator finds the attention
A from the maps themselves, the noise level and the label, at every position anew; it is all that is trained.

Notation: N samples, n experts, C channels, H hidden channels.
Source: Wang et al. 2024 (arXiv 2405.17082), with the label in place of a text.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papertrial.models.edm import EDM
from papertrial.models.unet import UNet


def scaled(h: Tensor, scale_shift: Tensor) -> Tensor:
    """h (N, H, h, w), scaled and shifted by (N, 2 H)."""
    scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
    return torch.addcmul(shift, h, 1 + scale)


class Aggregator(nn.Module):
    """Feature maps of a block, n times (N, C, h, w) -> attention (N, n, h, w), which sums to 1 over the experts.

    Args:
        experts: n.
        channels: C.
        hidden: H.
        width: of the embeddings of noise level and label.
    """

    def __init__(self, experts: int, channels: int, hidden: int, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(experts, experts * channels, affine=False)  # each expert's maps by themselves
        self.enter = nn.Conv2d(experts * channels, hidden, 1)
        self.by_time = nn.Linear(width, 2 * hidden)
        self.residual = nn.Sequential(
            nn.GroupNorm(4, hidden),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GroupNorm(4, hidden),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
        )
        self.last_norm = nn.GroupNorm(4, hidden)
        self.by_label = nn.Linear(width, 2 * hidden)
        self.leave = nn.Conv2d(hidden, experts, 1)
        nn.init.zeros_(self.leave.weight)  # equal weights at the start
        nn.init.zeros_(self.leave.bias)

    def logits(self, features: Sequence[Tensor], time: Tensor, label: Tensor) -> Tensor:
        h = self.enter(self.norm(torch.cat(list(features), dim=1)))  # (N, H, h, w)
        h = scaled(h, self.by_time(time))
        h = h + self.residual(h)
        h = scaled(self.last_norm(h), self.by_label(label))
        return self.leave(F.silu(h))  # (N, n, h, w)

    def forward(self, features: Sequence[Tensor], time: Tensor, label: Tensor) -> Tensor:
        return self.logits(features, time, label).softmax(dim=1)


class Static(nn.Module):
    """Ablation: attention is a learnt constant of the block."""

    def __init__(self, experts: int, channels: int, hidden: int, width: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(experts))

    def forward(self, features: Sequence[Tensor], time: Tensor, label: Tensor) -> Tensor:
        N, _, height, width = features[0].shape
        return self.constant.softmax(0)[None, :, None, None].expand(N, -1, height, width)


class Timeless(Aggregator):
    """Ablation: the aggregator isn't told the noise level."""

    def logits(self, features: Sequence[Tensor], time: Tensor, label: Tensor) -> Tensor:
        return super().logits(features, torch.zeros_like(time), label)


class Flat(Aggregator):
    """Ablation: one attention for all positions."""

    def logits(self, features: Sequence[Tensor], time: Tensor, label: Tensor) -> Tensor:
        logits = super().logits(features, time, label)
        return logits.mean((2, 3), keepdim=True).expand_as(logits)


class Misled(Aggregator):
    """Control: the aggregator sees the features, noise level and label of another sample of the batch."""

    def logits(self, features: Sequence[Tensor], time: Tensor, label: Tensor) -> Tensor:
        return super().logits([f.roll(1, 0) for f in features], time.roll(1, 0), label.roll(1, 0))


KINDS = {"adaptive": Aggregator, "static": Static, "timeless": Timeless, "flat": Flat, "misled": Misled}


class FeatureEnsemble(nn.Module):
    """F(x, c_noise, label) of n frozen U-Nets with an aggregator after each block and after the output.

    Args:
        experts: of one layout.
        kind: of aggregator, one of ``KINDS``.
        hidden: channels of an aggregator.
        width: of its embeddings.
    """

    def __init__(self, experts: Sequence[UNet], kind: str = "adaptive", hidden: int = 16, width: int = 32) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts).requires_grad_(False)
        first, n = experts[0], len(experts)
        self.null = first.null
        self.names = [*first.blocks, "output"]
        channels = [level.block.conv2.out_channels for level in first.blocks.values()] + [first.out.out_channels]
        self.embed_time = nn.Sequential(nn.Linear(16, width), nn.SiLU())
        self.embed_label = nn.Embedding(first.null + 1, width)
        self.aggregators = nn.ModuleList(KINDS[kind](n, c, hidden, width) for c in channels)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        if label is None:
            label = torch.full(c_noise.shape, self.null, device=c_noise.device)
        angle = c_noise[:, None] * 2.0 ** torch.arange(8, device=c_noise.device)  # (N, 8)
        time = self.embed_time(torch.cat([angle.sin(), angle.cos()], dim=1))  # (N, width)
        what = self.embed_label(label)
        aggregators = iter(self.aggregators)

        def aggregate(features: Sequence[Tensor]) -> Tensor:
            A = next(aggregators)(features, time, what)  # (N, n, h, w)
            return sum(a * f for a, f in zip(A.split(1, dim=1), features, strict=True))

        nets, n = self.experts, len(self.experts)
        embedded = [net.embedding(c_noise, label) for net in nets]

        def through(blocks: Sequence[nn.Module], inputs: Sequence[Tensor]) -> Tensor:
            return aggregate([block(h, e) for block, h, e in zip(blocks, inputs, embedded, strict=True)])

        inputs, skips = [net.stem(x) for net in nets], []
        for i, rows in enumerate(side_by_side(net.down for net in nets)):
            for blocks in side_by_side(rows):
                h = through(blocks, inputs)
                skips.append(h)
                inputs = [h] * n
            inputs = [net.shrink[i](h) for net in nets]
        for blocks in side_by_side(net.middle for net in nets):
            h = through(blocks, inputs)
            inputs = [h] * n
        for rows in side_by_side(net.up for net in nets):
            h = F.interpolate(h, scale_factor=2, mode="nearest")
            for blocks in side_by_side(rows):
                h = through(blocks, [torch.cat([h, skips.pop()], dim=1)] * n)
        return aggregate([net.out(F.silu(net.norm(h))) for net in nets])


def side_by_side(lists: Iterable[Iterable[nn.Module]]) -> list[tuple]:
    """The first modules of all lists, the second ones, ..."""
    return list(zip(*lists, strict=True))


def ensemble(experts: Sequence[EDM], kind: str, hidden: int, width: int) -> EDM:
    """The experts' ensemble as a denoiser; its aggregators are what requires gradients."""
    net = FeatureEnsemble([expert.net for expert in experts], kind, hidden, width)
    return EDM(net, experts[0].sigma_data).to(memory_format=torch.channels_last)


def attention(model: EDM, x: Tensor, s: Tensor | float, label: Tensor) -> list[Tensor]:
    """A of every block, (N, n, h, w) each, in the order of ``model.net.names``."""
    seen: list[Tensor] = []
    hooks = [a.register_forward_hook(lambda _, __, A: seen.append(A)) for a in model.net.aggregators]
    with torch.inference_mode():
        model(x, s, label)
    for hook in hooks:
        hook.remove()
    return seen


def parameters_share(model: EDM) -> float:
    """Trainable parameters over those of all experts."""
    frozen = sum(p.numel() for p in model.net.experts.parameters())
    return sum(p.numel() for p in model.parameters() if p.requires_grad) / frozen
