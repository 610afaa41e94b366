"""ddo-start: likelihood-trained generative models too small for their data, for fine-tuning to improve.

A part is <task>-<training seed>. Tasks: ``pictures``, denoisers of 8 x 8 Fashion-MNIST (fm8's residual MLP, narrower);
``ring8``, denoisers of the ring of eight with a tiny MLP; ``pixels``, autoregressive models of the pictures with
pixels of few grey values. ``load(part, state)`` gives the network with averaged weights.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papertrial.engine.checkpoints import Checkpoint
from papertrial.engine.results import Inputs, Results
from papertrial.models import picture_denoisers, plane_denoisers
from papertrial.models.arrays import from_arrays, from_settings, seeded, to_arrays, to_settings
from papertrial.models.edm import denoising
from papertrial.models.training import Loss, Training, fit
from papertrial.testbeds.fashion import pictures
from papertrial.testbeds.mixtures import density

Cache = list[tuple[Tensor, Tensor]]  # of every block, the keys and values (n, heads, length, dim / heads) so far


class CausalBlock(nn.Module):
    """(n, length, dim) -> (n, length, dim): attention to what came before, then a two-layer MLP, each added."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(2)])
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, h: Tensor, past: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """And the keys and values, its own appended; with a past, h is what comes next, one token."""
        n, length, dim = h.shape
        split = self.qkv(self.norms[0](h)).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = split.unbind(0)  # (n, heads, length, dim / heads) each
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        h = h + self.out(seen.transpose(1, 2).reshape(n, length, dim))
        return h + self.mlp(self.norms[1](h)), (k, v)


class PixelTransformer(nn.Module):
    """p(x | label) = prod_i p(x_i | x_1 .. x_{i-1}, label) of pictures whose pixels take ``values`` values.

    Args:
        pixels: of one picture, row by row.
        classes: labels are 0..classes - 1; ``classes`` itself is the null label, for guidance.
    """

    def __init__(
        self, pixels: int = 64, values: int = 8, dim: int = 64, layers: int = 2, heads: int = 4, classes: int = 10
    ) -> None:
        super().__init__()
        self.pixels, self.values, self.null = pixels, values, classes
        self.embed = nn.Embedding(values + 1, dim)  # the last one stands before the first pixel
        self.embed_label = nn.Embedding(classes + 1, dim)
        self.position = nn.Parameter(0.02 * torch.randn(pixels, dim))
        self.blocks = nn.ModuleList([CausalBlock(dim, heads) for _ in range(layers)])
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, values)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Logits (n, pixels, values) of every pixel, from the pixels before it; x (n, pixels) integers."""
        before = F.pad(x[:, :-1], (1, 0), value=self.values)
        h = self.embed(before) + self.position + self.embed_label(label)[:, None]
        for block in self.blocks:
            h, _ = block(h)
        return self.out(self.norm(h))

    def log_likelihood(self, x: Tensor, label: Tensor) -> Tensor:
        """(n,) log p(x | label), exact."""
        nats = F.cross_entropy(self(x, label).flatten(0, 1), x.flatten(), reduction="none")
        return -nats.reshape(x.shape).sum(1)

    def following(self, last: Tensor, i: int, label: Tensor, cache: Cache) -> Tensor:
        """Logits (n, values) of pixel i from pixel i - 1 and the cache, which grows by it."""
        h = (self.embed(last) + self.position[i] + self.embed_label(label))[:, None]
        for j, block in enumerate(self.blocks):
            h, kept = block(h, cache[j] if i else None)
            cache[j : j + 1] = [kept]
        return self.out(self.norm(h[:, 0]))

    @torch.inference_mode()
    def sample(self, u: Tensor, label: Tensor, guidance: float = 0.0) -> Tensor:
        """(n, pixels) drawn with logits_c + w (logits_c - logits_null).

        Args:
            u: (n, pixels) uniform numbers, which pixel i is drawn with.
            guidance: w.
        """
        n, cache = len(u), []
        labels = label if guidance == 0 else torch.cat([label, torch.full_like(label, self.null)])
        x = torch.full((n, self.pixels + 1), self.values, device=u.device)
        for i in range(self.pixels):
            last = x[:, i] if guidance == 0 else x[:, i].repeat(2)
            logits = self.following(last, i, labels, cache)
            if guidance:
                logits = (1 + guidance) * logits[:n] - guidance * logits[n:]
            below = logits.softmax(1).cumsum(1)[:, :-1]  # the distribution function at all values but the last
            x[:, i + 1] = (below <= u[:, i : i + 1]).sum(1)
        return x[:, 1:]


def quantised(x: Tensor, values: int) -> Tensor:
    """(n, pixels) integers 0..values - 1 from pictures (n, 1, size, size) in [-1, 1]."""
    return ((x.flatten(1) + 1) / 2 * (values - 1)).round().long()


def shown(x: Tensor, values: int, size: int) -> Tensor:
    """The pictures (n, 1, size, size) in [-1, 1] of quantised ones."""
    return (2 * x / (values - 1) - 1).reshape(-1, 1, size, size)


def pixels_loss(x: Tensor, y: Tensor, batch: int, drop_label: float) -> Loss:
    """Nats a pixel of random pictures (N, pixels); a share of them without their label."""

    def loss(model: PixelTransformer, average: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(x), (batch,), generator=generator).to(x.device)
        dropped = (torch.rand(batch, generator=generator) < drop_label).to(x.device)
        return -model.log_likelihood(x[rows], torch.where(dropped, model.null, y[rows])).mean() / x.shape[1]

    return loss


Prepared = tuple[nn.Module, Loss, dict]  # the untrained network, its loss, and what ``load`` needs to know


def of_pictures(p: Mapping[str, Any], seed: int, inputs: Inputs, device: str) -> Prepared:
    config = {k: p[k] for k in ("network", "sigma_data", "size")}
    draw, _ = picture_denoisers.training_pictures(inputs.datasets["fashion_mnist"], p["size"], p["images"], device)
    model = seeded(lambda: picture_denoisers.build(p["network"], p["sigma_data"]), seed).to(device)
    return model, denoising(draw, p["batch"], p["log_mean"], p["log_sd"], p["drop_label"], model.net.null), config


def of_ring(p: Mapping[str, Any], seed: int, inputs: Inputs, device: str) -> Prepared:
    config = {"kind": "edm", "sigma_data": p["sigma_data"], "network": p["network"]}
    exact = density("ring8", torch.float32)
    model = seeded(lambda: plane_denoisers.build(config), seed).to(device)
    draw = lambda n, generator: (exact.sample(n, generator).to(device), None)  # noqa: E731
    return model, denoising(draw, p["batch"], p["log_mean"], p["log_sd"]), config


def of_pixels(p: Mapping[str, Any], seed: int, inputs: Inputs, device: str) -> Prepared:
    config, data = {k: p[k] for k in ("network", "size")}, inputs.datasets["fashion_mnist"]
    model = seeded(lambda: PixelTransformer(**p["network"]), seed).to(device)
    x = torch.from_numpy(pictures(data["x_train"][: p["images"]], p["size"])).to(device)
    y = torch.tensor(data["y_train"][: p["images"]]).to(device)
    return model, pixels_loss(quantised(x, model.values), y, p["batch"], p["drop_label"]), config


TASKS = {"pictures": of_pictures, "ring8": of_ring, "pixels": of_pixels}


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    task, _, seed = part.rpartition("-")
    p = settings | settings["tasks"][task]
    model, loss, config = TASKS[task](p, int(seed), inputs, device)
    model, losses = fit(model, loss, Training.of(p), int(seed), checkpoint)
    state = {"config": from_settings(config)} | to_arrays(model.state_dict(), "net/")
    row = {"seed": int(seed), "task": task, "loss": losses[-1]["loss"], "change": change(losses)}
    return Results([row], traces=[{**r, "task": task} for r in losses], state=state)


def change(losses: list[dict]) -> float:
    """How much the loss still moves in the last fifth of the training: its second half against its first."""
    last = np.array([row["loss"] for row in losses])[-max(2, len(losses) // 5) :]
    half = max(1, len(last) // 2)
    return float(abs(last[-half:].mean() / last[:half].mean() - 1))


def load_pixels(state: Mapping[str, np.ndarray], device: str = "cpu") -> PixelTransformer:
    model = PixelTransformer(**to_settings(state["config"])["network"])
    model.load_state_dict(from_arrays(state, "net/"))
    return model.to(device).eval()


LOADERS = {"pictures": picture_denoisers.load, "ring8": plane_denoisers.load, "pixels": load_pixels}


def load(part: str, state: Mapping[str, np.ndarray], device: str = "cpu") -> nn.Module:
    """The trained network, with gradients."""
    return LOADERS[part.rpartition("-")[0]](state, device)


def network(settings: dict) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The largest untrained network and an example's arguments, to count parameters and FLOPs."""
    own = settings | settings["tasks"]["pictures"]
    return picture_denoisers.network({**own, "networks": {"main": own["network"]}})


def passes(settings: dict) -> float:
    """Forward-equivalents of an example: three a training example."""
    own = settings | settings["tasks"]["pictures"]
    return 3.0 * own["steps"] * own["batch"]
