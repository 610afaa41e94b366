"""lmd28: variational autoencoders of 32 x 32 pictures, for papers that in-paint in a latent space.

A part is a data set, ``fashion`` or ``mnist``: pictures in [0, 1] to 8 x 8 latents of 4 channels. The encoder's layers
overlap little, so that a latent sees 10 x 10 pixels, its own 4 x 4 and 3 on each side: what is hidden stays hidden.
``codec(state)`` encodes and decodes.

Source: Rombach et al. 2022 (arXiv 2112.10752) for latents with a slight Kullback-Leibler term.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papertrial.engine.results import Inputs, Results
from papertrial.models.arrays import Checkpoint, from_arrays, from_settings, seeded, to_arrays, to_settings
from papertrial.models.training import Training, fit
from papertrial.testbeds.fashion import pictures

SIDE, LATENTS, GRID = 32, 4, 8  # pixels a side, channels and places a side of the latents


class Sharpen(nn.Module):
    """A residual 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class VAE(nn.Module):
    """(n, 1, 32, 32) to mean and log variance (n, 4, 8, 8), and back.

    Args:
        encoder: channels at 16 x 16 and at 8 x 8.
        decoder: channels at 8 x 8, 16 x 16 and 32 x 32.
    """

    def __init__(self, encoder: tuple[int, int], decoder: tuple[int, int, int]) -> None:
        super().__init__()
        a, b = encoder
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, a, 4, stride=2, padding=1), nn.SiLU()),  # (n, a, 16, 16)
            *(nn.Conv2d(a, b, 4, stride=2, padding=1), nn.SiLU()),  # (n, b, 8, 8)
            *(nn.Conv2d(b, b, 1), nn.SiLU(), nn.Conv2d(b, 2 * LATENTS, 1)),
        )
        c, d, e = decoder
        self.decoder = nn.Sequential(
            *(nn.Conv2d(LATENTS, c, 3, padding=1), Sharpen(c), nn.SiLU()),
            *(nn.Conv2d(c, 4 * d, 1), nn.PixelShuffle(2)),  # (n, d, 16, 16)
            *(nn.Conv2d(d, d // 2, 3, padding=1), nn.SiLU()),
            *(nn.Conv2d(d // 2, 4 * e, 1), nn.PixelShuffle(2), nn.SiLU()),  # (n, e, 32, 32)
            nn.Conv2d(e, 1, 3, padding=1),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct from the posterior's mean."""
        return self.decoder(self.encode(x)[0])

    def macs(self) -> tuple[int, int]:
        """Multiply-adds of encoding and of decoding one picture."""
        return convolution_macs(self.encoder, SIDE), convolution_macs(self.decoder, GRID)


def convolution_macs(net: nn.Module, side: int) -> int:
    """Of all convolutions on one square picture: places out x channels out x weights of each."""
    total = 0
    for layer in net.modules():
        if isinstance(layer, nn.PixelShuffle):
            side *= layer.upscale_factor
        if isinstance(layer, nn.Conv2d):
            side //= layer.stride[0]
            total += side**2 * prod(layer.weight.shape)
    return total


def vae_loss(x: Tensor, batch: int, kl_weight: float) -> Callable[..., Tensor]:
    """Squared error of a picture plus ``kl_weight`` times KL(q(z|x) || N(0, 1)), both summed over a picture."""

    def loss(model: VAE, average: VAE, step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(x), (batch,), generator=generator)
        noise = torch.randn(batch, LATENTS, GRID, GRID, generator=generator).to(x.device)
        of = x[rows.to(x.device)]
        mean, log_variance = model.encode(of)
        error = (model.decoder(mean + noise * (log_variance / 2).exp()) - of).square().sum(dim=(1, 2, 3))
        kl = (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=(1, 2, 3)) / 2
        return (error + kl_weight * kl).mean()

    return loss


@dataclass(frozen=True)
class Codec:
    """Between pictures and what a model works on: functions of (n, ...) tensors and their multiply-adds a picture."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    encode_macs: int
    decode_macs: int
    pretraining_macs: float = 0.0


def build(settings: Mapping) -> VAE:
    return VAE(settings["encoder"], settings["decoder"])


def in_unit(x: np.ndarray) -> Tensor:
    """(n, 28, 28) uint8 to (n, 1, 32, 32) in [0, 1]."""
    return torch.from_numpy(pictures(x, SIDE) / 2 + np.float32(0.5))


def training_images(part: str, inputs: Inputs, images: int) -> tuple[np.ndarray, np.ndarray]:
    """The pictures that everything is trained on, and up to 1,000 others to validate with (not the test set's).

    MNIST comes digit by digit, so it is shuffled first, and a fifth is kept back.
    """
    if part == "mnist":
        x = inputs.datasets["mnist"]["x"]
        x = x[np.random.default_rng(0).permutation(len(x))]
        cut = min(images, len(x) * 4 // 5)
        return x[:cut], x[cut : cut + 1000]
    x = inputs.datasets["fashion_mnist"]["x_train"]
    return x[:images], x[images : images + 1000]


def codec(state: Mapping[str, np.ndarray], device: str = "cpu") -> Codec:
    """Pictures in [0, 1] to standardised posterior means (n, 4, 8, 8), and back."""
    model = build(to_settings(state["config"]))
    model.load_state_dict(from_arrays(state, "net/"))
    model = model.to(device, memory_format=torch.channels_last).eval()
    mean, sd = (torch.tensor(state[k]).to(device)[:, None, None] for k in ("mean", "sd"))

    @torch.no_grad()
    def encode(x: Tensor) -> Tensor:
        return torch.cat([(model.encode(part)[0] - mean) / sd for part in x.split(500)])

    @torch.no_grad()
    def decode(z: Tensor) -> Tensor:
        return torch.cat([model.decoder(part * sd + mean) for part in z.split(500)])

    return Codec(encode, decode, *model.macs(), state["pretraining_macs"].item())


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    """A minute or two, from seed 0: the papers' seeds vary what is built on top."""
    x, held_out = (in_unit(part_of).to(device) for part_of in training_images(part, inputs, settings["images"]))
    model = seeded(lambda: build(settings), 0).to(device, memory_format=torch.channels_last)
    loss = vae_loss(x, settings["batch"], settings["kl_weight"])
    model, losses = fit(model, loss, Training.of(settings), 0, checkpoint)
    with torch.no_grad():
        z = torch.cat([model.encode(p)[0] for p in x.split(500)])
        rms = (model(held_out) - held_out).square().mean().sqrt()
    into, back = model.macs()
    state = {"config": from_settings({k: settings[k] for k in ("encoder", "decoder")})}
    state |= to_arrays({"mean": z.mean(dim=(0, 2, 3)), "sd": z.std(dim=(0, 2, 3))})
    state |= {"pretraining_macs": np.array(3.0 * settings["steps"] * settings["batch"] * (into + back))}
    row = {"seed": 0, "rms": float(rms), "encode_macs": into, "decode_macs": back}
    return Results([row], traces=losses, state=state | to_arrays(model.state_dict(), "net/"))


def network(settings: dict) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The untrained network and an example's arguments, to count parameters and FLOPs."""
    return build(settings), (torch.empty(1, 1, SIDE, SIDE),)


def passes(settings: dict) -> float:
    """Forward-equivalents of an example: three a training example."""
    return 3.0 * settings["steps"] * settings["batch"]
