"""What the autoencoders are tried on: pictures as tokens of pixels or of latents, and their reconstruction."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Inputs
from papertrial.models import lmd28
from papertrial.models.lmd28 import Codec, in_unit, training_images
from papertrial.papers.diffusion.latent_masking_diffusion.autoencoder import MaskedAutoencoder
from papertrial.papers.diffusion.latent_masking_diffusion.masking import from_tokens, to_tokens

SHOWN = 6  # pictures kept for the figures


@dataclass(frozen=True)
class View:
    """Pictures as a model's tokens: a codec, and squares of ``side`` by ``side`` of what it gives."""

    codec: Codec
    side: int

    def tokens(self, pictures: Tensor) -> Tensor:
        return to_tokens(self.codec.encode(pictures), self.side)

    def pictures(self, tokens: Tensor) -> Tensor:
        return self.codec.decode(from_tokens(tokens, self.side))


def standardised(x: Tensor) -> Codec:
    """Pixels as they are, but for the mean and standard deviation of the training pictures."""
    mean, sd = x.mean(), x.std()
    return Codec(lambda x: (x - mean) / sd, lambda z: z * sd + mean, 0, 0)


@dataclass(frozen=True)
class Bench:
    """The pictures of a problem in [0, 1], (n, 1, 32, 32), and its frozen VAE."""

    train: Tensor
    held_out: Tensor
    test: Tensor
    vae: Codec

    @classmethod
    def of(cls, p: dict, inputs: Inputs, device: str) -> "Bench":
        train, held_out = training_images(p["part"], inputs, p["images"])
        test = inputs.datasets["fashion_mnist"]["x_test"][: p["inpaint"]]
        parts = [in_unit(x).to(device) for x in (train, held_out[: p["validation"]], test)]
        return cls(*parts, lmd28.codec(inputs.models["lmd28"][p["part"]], device))

    def view(self, space: str, side: int) -> View:
        return View({"latent": lambda: self.vae, "pixel": lambda: standardised(self.train)}[space](), side)


@torch.no_grad()
def reconstruct(
    model: MaskedAutoencoder, view: View, x: Tensor, visible: Tensor, hidden: Tensor, passes: int = 1
) -> Tensor:
    """The pictures with predicted tokens in the hidden places.

    In several passes a first part of the predicted tokens counts as visible in the next one (progressive unmasking).
    """
    z = view.tokens(x)
    for part in hidden.tensor_split(passes, dim=1):
        predicted = model(z, visible, hidden)
        z = z.scatter(1, hidden[..., None].expand_as(predicted), predicted)
        visible, hidden = torch.cat([visible, part], dim=1), hidden[:, part.shape[1] :]
    return view.pictures(z)


def rms(error: Tensor, where: Tensor) -> float:
    return float(error.masked_select(where).square().mean().sqrt())


def picture_bytes(x: Tensor) -> np.ndarray:
    return (255 * x[:SHOWN, 0].clamp(0, 1)).round().to(torch.uint8).cpu().numpy()
