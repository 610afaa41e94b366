"""Gates on the hidden channels of a network's residual blocks: learnt as random masks, then removed for good.

A mask has one number in [0, 1] per gate: of every block its hidden channels, and with a U-Net its whole residual branch
too. A closed gate leaves no trace, so that what it gates can be cut out of the weights without changing the output.
"""

from collections.abc import Callable
from copy import deepcopy
from math import log

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papertrial.models import perceptrons, unet

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3  # of the hard concrete law

Closed = np.ndarray  # (gates,) bool


def hard_concrete(log_alpha: Tensor, u: Tensor) -> Tensor:
    """Masks (n, gates) with exact zeros and ones, from u (n, gates) uniform on (0, 1); Louizos et al. 2018, eq. 10."""
    s = torch.sigmoid((u.logit() + log_alpha) / TEMPERATURE)
    return (LOW + (HIGH - LOW) * s).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(mask > 0) of every gate, whose sum is the expected L0 norm."""
    return torch.sigmoid(log_alpha - TEMPERATURE * log(-LOW / HIGH))


class WeightedGroupNorm(nn.Module):
    """Group normalisation with mean and variance m-weighted over a group's channels; the usual one for m = 1.

    Args:
        norm: what it takes the place of.
        kept: (c,) which channels are left; groups may become unequal.
    """

    def __init__(self, norm: nn.GroupNorm, kept: np.ndarray) -> None:
        super().__init__()
        group = torch.arange(norm.num_groups).repeat_interleave(norm.num_channels // norm.num_groups)[kept]
        self.register_buffer("same", (group[:, None] == group).to(norm.weight.dtype))  # (c, c)
        self.weight, self.bias = (nn.Parameter(v.detach()[kept].clone()) for v in (norm.weight, norm.bias))
        self.eps = norm.eps

    def affine(self, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """What it does to h (n, c, ., .), as a scale and a shift (n, c); both are 0 in a wholly closed group.

        Args:
            m: (n, c), or (1, c) for all samples.
        """
        total = m @ self.same
        alive = total > 0
        total = torch.where(alive, total, 1)
        mean, square = (((m * v.mean((2, 3))) @ self.same) / total for v in (h, h.square()))  # (n, c)
        scale = alive * self.weight * ((square - mean.square()).clamp_min(0) + self.eps).rsqrt()
        return scale, alive * self.bias - mean * scale

    def forward(self, h: Tensor) -> Tensor:
        scale, shift = self.affine(h, h.new_ones(1, len(self.weight)))
        return torch.addcmul(shift[:, :, None, None], h, scale[:, :, None, None])


class Shortcut(nn.Module):
    """What is left of a block without hidden channels: its skip connection, and the bias of its last convolution."""

    def __init__(self, skip: nn.Module, bias: Tensor | None) -> None:
        super().__init__()
        self.skip, self.bias = skip, None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.skip(x)
        return h if self.bias is None else h + self.bias[:, None, None]


def narrowed(layer: nn.Module, rows: np.ndarray | slice = slice(None), columns: np.ndarray | slice = slice(None)):  # noqa: ANN201
    """A convolution or linear layer with some of its outputs (rows) and inputs (columns)."""
    layer = deepcopy(layer)
    layer.weight = nn.Parameter(layer.weight.detach()[rows][:, columns].clone())
    layer.bias = nn.Parameter(layer.bias.detach()[rows].clone())
    kind = "channels" if isinstance(layer, nn.Conv2d) else "features"
    for name, size in zip((f"out_{kind}", f"in_{kind}"), layer.weight.shape, strict=False):
        setattr(layer, name, size)
    return layer


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def norms(rows: list[Tensor], columns: list[Tensor]) -> np.ndarray:
    """(c,) L2 norm of the weights of every hidden channel, in the layers that make it and in those that read it."""
    square = sum(w.flatten(1).square().sum(1) for w in rows)
    square = square + sum(w.transpose(0, 1).flatten(1).square().sum(1) for w in columns)
    return square.sqrt().detach().cpu().numpy()


class GatedConvolutions(nn.Module):
    """A U-Net's residual block: a gate for each output channel of its first convolution, and one for the branch."""

    branch = True

    def __init__(self, block: unet.ResidualBlock) -> None:
        super().__init__()
        self.block, self.channels, self.mask = block, block.conv1.out_channels, None
        inner, outer = block.conv1.weight[0].numel() + 1, block.conv2.weight[:, 0].numel()
        self.each = inner + outer + 2 * (block.scale_shift.in_features + 1) + 2
        self.whole = size(block) - size(block.skip)
        self.costs = np.array([self.each] * self.channels + [self.whole])
        self.norm = WeightedGroupNorm(block.norm2, np.ones(self.channels, bool))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        block, m = self.block, self.mask[:, :-1]
        h = block.conv1(F.silu(block.norm1(x)))
        scale, shift = block.scale_shift(embedding).chunk(2, dim=1)  # (n, c)
        a, b = self.norm.affine(h, m)
        a, b = a * (1 + scale), torch.addcmul(shift, b, 1 + scale)
        h = F.silu(torch.addcmul(b[:, :, None, None], h, a[:, :, None, None])) * m[:, :, None, None]
        return torch.addcmul(block.skip(x), block.conv2(h), self.mask[:, -1:, None, None])

    def removed(self, closed: Closed) -> int:
        """Parameters that are gone."""
        if closed[-1]:
            return self.whole
        gone = int(closed[:-1].sum())
        return self.each * gone if gone < self.channels else self.whole - len(self.block.conv2.bias)

    def without(self, closed: Closed) -> nn.Module:
        """The block with only its open channels."""
        block, kept = deepcopy(self.block), ~closed[:-1]
        if closed[-1] or not kept.any():
            return Shortcut(block.skip, None if closed[-1] else block.conv2.bias)
        block.conv1, block.conv2 = narrowed(block.conv1, rows=kept), narrowed(block.conv2, columns=kept)
        block.scale_shift = narrowed(block.scale_shift, rows=np.concatenate([kept, kept]))
        block.norm2 = WeightedGroupNorm(block.norm2, kept)
        return block

    def magnitudes(self) -> np.ndarray:
        first, second = self.block.conv1.weight, self.block.conv2.weight
        of_channels = norms([first], [second])
        return np.append(of_channels, np.sqrt(np.square(of_channels).sum()))


class GatedUnits(nn.Module):
    """A residual block of two linear layers: a gate for each hidden unit between them."""

    branch = False

    def __init__(self, block: perceptrons.ResidualBlock) -> None:
        super().__init__()
        self.block, self.channels, self.mask = block, block.up.out_features, None
        self.each = block.up.in_features + 1 + block.down.out_features
        self.costs = np.full(self.channels, self.each)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        block = self.block
        scale, shift = block.scale_shift(embedding).chunk(2, dim=1)
        return h + block.down(F.silu(block.up(torch.addcmul(shift, block.norm(h), 1 + scale))) * self.mask)

    def removed(self, closed: Closed) -> int:
        return self.each * int(closed.sum())

    def without(self, closed: Closed) -> nn.Module:
        block, kept = deepcopy(self.block), ~closed
        block.up, block.down = narrowed(block.up, rows=kept), narrowed(block.down, columns=kept)
        return block

    def magnitudes(self) -> np.ndarray:
        return norms([self.block.up.weight], [self.block.down.weight])


GATED = {unet.ResidualBlock: GatedConvolutions, perceptrons.ResidualBlock: GatedUnits}


def exchange(model: nn.Module, kinds: tuple[type, ...], new: Callable[[nn.Module], nn.Module]) -> list[nn.Module]:
    """Put new(block) in the place of every block of these kinds, in the order of the model; the new ones."""
    found = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in parent.named_children()
        if isinstance(child, kinds)
    ]
    made = [(parent, name, new(child)) for parent, name, child in found]
    for parent, name, block in made:
        setattr(parent, name, block)
    return [block for _, _, block in made]


class Gated:
    """A model with gates in its residual blocks; its weights stay as they are.

    Args:
        model: a denoiser, or a student of one.

    Attributes:
        blocks: its gated blocks; their gates stand one after the other in a mask.
        costs: (gates,) parameters that each gate removes by itself.
        layers: (gates,) what a gate's importance may be compared with: channels of one block, or all branches.
        total: parameters of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.total = size(model)
        self.model = deepcopy(model).eval()
        self.blocks = exchange(self.model, tuple(GATED), lambda block: GATED[type(block)](block))
        self.model.requires_grad_(False)
        self.sizes = [len(block.costs) for block in self.blocks]
        self.costs = np.concatenate([block.costs for block in self.blocks])
        layers = [[i] * block.channels + [len(self.blocks)] * block.branch for i, block in enumerate(self.blocks)]
        self.layers = np.concatenate(layers)

    def under(self, mask: Tensor | None) -> nn.Module:
        """The model with a mask (n or 1, gates): one for each sample of the batch, or one for all."""
        parts = [None] * len(self.blocks) if mask is None else mask.split(self.sizes, dim=1)
        for block, part in zip(self.blocks, parts, strict=True):
            block.mask = part
        return self.model

    def __call__(self, mask: Tensor, *inputs: object) -> Tensor:
        return self.under(mask)(*inputs)

    def split(self, closed: Closed) -> list[Closed]:
        return np.split(closed, np.cumsum(self.sizes)[:-1])

    def removed(self, closed: Closed) -> int:
        """Parameters that closed gates take away; a closed branch takes its channels along."""
        return sum(block.removed(part) for block, part in zip(self.blocks, self.split(closed), strict=True))

    def pruned(self, closed: Closed) -> nn.Module:
        """The model without what is closed: an ordinary network, of fewer parameters."""
        model, parts = deepcopy(self.under(None)), iter(self.split(closed))
        exchange(model, tuple(GATED.values()), lambda block: block.without(next(parts)))
        return model.to(memory_format=torch.channels_last)


def weakest(score: np.ndarray, gated: Gated, share: float, slack: float = 0.005) -> Closed:
    """Close gates from the lowest score up, until a share of all parameters is gone.

    Args:
        score: (gates,) importance.
        slack: a gate that would overshoot by more than this share is passed over.
    """
    closed, target = np.zeros(len(score), bool), share * gated.total
    for gate in np.argsort(score, kind="stable"):
        if gated.removed(closed) >= target:
            break
        closed[gate] = True
        if gated.removed(closed) > target + slack * gated.total:
            closed[gate] = False
    return closed
