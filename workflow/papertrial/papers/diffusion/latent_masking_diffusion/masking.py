"""What is hidden from a masked autoencoder, and how much of it over the course of its training.

A picture has 4 x 4 blocks of 8 x 8 pixels: the unit that is hidden, whatever the tokens. A block is one token, or
several that come one after the other, so pixels and latents, large tokens and small ones, hide the same places.
"""

from collections.abc import Callable
from math import cos, floor, pi

import torch
from torch import Tensor

SIDE = 4  # blocks a side
BLOCKS = SIDE**2
FIRST, LAST = 0.15, 0.75  # m(t), the share that is hidden, at the first and at the last update


def _grow(u: float) -> float:
    return FIRST + (LAST - FIRST) * u


# m at u = t/(updates - 1) in [0, 1]; ``random`` gets a uniform draw, the others ignore it.
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "linear": lambda u, draw: _grow(u),
    "cosine": lambda u, draw: _grow((1 - cos(pi * u)) / 2),  # slow at both ends
    "piecewise": lambda u, draw: _grow(min(floor(5 * u), 4) / 4),  # five stages
    "fixed": lambda u, draw: LAST,
    "random": lambda u, draw: FIRST + (0.9 - FIRST) * draw,
    "reversed": lambda u, draw: _grow(1 - u),
}


def whole_blocks(share: float) -> int:
    """The nearest number of blocks."""
    return floor(BLOCKS * share + 0.5)


def split(n: int, hidden: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random choice of blocks for each of n pictures: the visible (n, 16 - hidden), the hidden ones (n, hidden)."""
    order = torch.rand(n, BLOCKS, generator=generator).argsort(dim=1)
    return order[:, hidden:], order[:, :hidden]


def places(blocks: Tensor, per: int) -> Tensor:
    """(n, b) blocks to the places (n, b per) of their tokens, ``per`` in each block."""
    return (per * blocks[..., None] + torch.arange(per, device=blocks.device)).flatten(1)


def to_tokens(x: Tensor, side: int) -> Tensor:
    """(n, c, h, h) to (n, T, c side^2): squares of ``side`` by ``side``, block by block."""
    n, c, height, _ = x.shape
    inner = height // SIDE // side  # tokens a side in a block
    x = x.view(n, c, SIDE, inner, side, SIDE, inner, side)
    return x.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(n, BLOCKS * inner**2, c * side**2)


def from_tokens(tokens: Tensor, side: int) -> Tensor:
    """The inverse of ``to_tokens``."""
    n, count, features = tokens.shape
    inner, c = int((count // BLOCKS) ** 0.5), features // side**2
    x = tokens.view(n, SIDE, SIDE, inner, inner, c, side, side).permute(0, 5, 1, 3, 6, 2, 4, 7)
    return x.reshape(n, c, SIDE * inner * side, SIDE * inner * side)


def pixels_of(blocks: Tensor, size: int) -> Tensor:
    """(n, 1, size, size) bool: the pixels of each picture's blocks (n, b)."""
    chosen = torch.zeros(len(blocks), BLOCKS, dtype=torch.bool, device=blocks.device).scatter(1, blocks, True)
    return chosen.view(-1, 1, SIDE, SIDE).repeat_interleave(size // SIDE, 2).repeat_interleave(size // SIDE, 3)
