"""A masked autoencoder: predict the tokens that are hidden from those that can be seen.

The encoder is a transformer over the visible tokens alone, so hiding tokens saves its time; a smaller decoder gets
its outputs beside one learned token for every hidden place. Positions are learned and added, so tokens may come in
any order. Pictures and latents differ in the tokens only.

Source: He et al. 2022 (arXiv 2111.06377), figure 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Size:
    """A transformer's: width, layers, heads, and hidden units of an MLP per unit of width."""

    dim: int
    layers: int
    heads: int
    mlp: int

    def macs(self, tokens: int) -> int:
        """Multiply-adds of one sequence: projections and MLP (4 + 2 mlp) dim^2 a token, attention 2 tokens dim."""
        return self.layers * tokens * ((4 + 2 * self.mlp) * self.dim**2 + 2 * tokens * self.dim)


class Layer(nn.Module):
    """Self-attention and an MLP, each behind a normalisation and around a residual; (n, tokens, dim) to the same."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm1, self.norm2 = nn.LayerNorm(size.dim), nn.LayerNorm(size.dim)
        self.qkv = nn.Linear(size.dim, 3 * size.dim)
        self.out = nn.Linear(size.dim, size.dim)
        self.mlp = nn.Sequential(
            nn.Linear(size.dim, size.mlp * size.dim), nn.GELU(), nn.Linear(size.mlp * size.dim, size.dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (n, heads, tokens, dim/heads) each
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, dim)
        x = x + self.out(h)
        return x + self.mlp(self.norm2(x))


def at(x: Tensor, index: Tensor) -> Tensor:
    """The tokens of every sequence at its own places: (n, T, p) and (n, m) to (n, m, p)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


class MaskedAutoencoder(nn.Module):
    """Predicts hidden tokens.

    Args:
        tokens, features: T tokens of p numbers each.
        encoder, decoder: settings of ``Size``.
    """

    def __init__(self, tokens: int, features: int, encoder: Mapping[str, int], decoder: Mapping[str, int]) -> None:
        super().__init__()
        self.features, self.sizes = features, (Size(**encoder), Size(**decoder))
        outer, inner = self.sizes
        self.embed = nn.Linear(features, outer.dim)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, outer.dim))
        self.encoder = nn.Sequential(*[Layer(outer) for _ in range(outer.layers)], nn.LayerNorm(outer.dim))
        self.narrow = nn.Linear(outer.dim, inner.dim)
        self.hidden = nn.Parameter(0.02 * torch.randn(inner.dim))
        self.position_out = nn.Parameter(0.02 * torch.randn(tokens, inner.dim))
        self.decoder = nn.Sequential(*[Layer(inner) for _ in range(inner.layers)], nn.LayerNorm(inner.dim))
        self.predict = nn.Linear(inner.dim, features)

    def encode(self, x: Tensor, visible: Tensor) -> Tensor:
        """(n, V, dim) of the visible tokens; x (n, T, p), visible (n, V) their places."""
        return self.encoder(self.embed(at(x, visible)) + self.position[visible])

    def forward(self, x: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """(n, M, p): what stands at the places ``masked`` (n, M)."""
        seen = self.narrow(self.encode(x, visible)) + self.position_out[visible]  # (n, V, inner)
        unseen = self.hidden + self.position_out[masked]  # (n, M, inner)
        h = self.decoder(torch.cat([seen, unseen], dim=1))  # (n, V + M, inner)
        return self.predict(h[:, visible.shape[1] :])

    def encoding_macs(self, visible: int) -> int:
        """Multiply-adds of ``encode`` for one sequence."""
        outer, _ = self.sizes
        return visible * self.features * outer.dim + outer.macs(visible)

    def macs(self, visible: int, masked: int) -> int:
        """Multiply-adds of one forward pass for one sequence; training costs three times as much."""
        outer, inner = self.sizes
        between = visible * outer.dim * inner.dim + masked * inner.dim * self.features
        return self.encoding_macs(visible) + between + inner.macs(visible + masked)
