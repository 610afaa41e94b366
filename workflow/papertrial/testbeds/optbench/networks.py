"""The networks of the workloads."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp() -> nn.Module:
    """784-128-64-10 with ReLU, PyTorch's default initialisation: 109,386 parameters."""
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def batch_norm_relu(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


def cnn(norm_activation: Callable[[int], nn.Module] = batch_norm_relu) -> nn.Module:
    """Three 3x3 convolutions, each followed by a norm-activation layer, mean pool, linear: 14,538 parameters."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        norm_activation(16),  # (B, 16, 14, 14)
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        norm_activation(32),  # (B, 32, 7, 7)
        nn.Conv2d(32, 32, 3, padding=1),
        norm_activation(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


class Block(nn.Module):
    """Pre-LN transformer block: x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.up = nn.Linear(d, 4 * d, bias=False)
        self.down = nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, h, T, d/h)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(B, T, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class CharLM(nn.Module):
    """Decoder-only transformer over characters: learned positions, untied head, no biases, N(0, 0.02) everywhere."""

    def __init__(self, vocabulary: int, layers: int, d: int = 64, heads: int = 4, context: int = 64) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, d)
        self.positions = nn.Embedding(context, d)
        self.blocks = nn.Sequential(*(Block(d, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocabulary, bias=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) codes -> (B, T, vocabulary) logits of the next character."""
        x = self.characters(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def initialised(build: Callable[[], nn.Module], seed: int, device: str) -> nn.Module:
    """The network with the seed's weights, which are drawn on the CPU, so that they're the same on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().to(device)
