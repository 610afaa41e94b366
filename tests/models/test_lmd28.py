"""The autoencoder that in-painting in latents starts from: shapes, costs, what a latent sees, the round trip."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from papertrial.engine.results import Inputs
from papertrial.models import lmd28
from papertrial.models.arrays import seeded

SETTINGS = {"images": 60, "encoder": [4, 8], "decoder": [8, 8, 4], "steps": 3, "batch": 8, "lr": 1e-3}
SETTINGS |= {"ema": 0.9, "kl_weight": 1e-4}


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    mnist = {"x": rng.integers(0, 256, (100, 28, 28), dtype=np.uint8), "y": np.arange(100) // 10}
    return Inputs({"fashion_mnist": {"x_train": mnist["x"][::-1]}, "mnist": mnist})


@pytest.mark.parametrize("part", ["fashion", "mnist"])
def test_latents_decoded_give_the_reported_round_trip(part, inputs):
    found = lmd28.train(part, SETTINGS, inputs, "cpu", None)
    codec = lmd28.codec(found.state)
    train, held_out = (lmd28.in_unit(x) for x in lmd28.training_images(part, inputs, 60))
    z = codec.encode(train)
    assert z.shape == (60, 4, 8, 8)
    assert torch.allclose(z.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4)  # standardised on the training pictures
    assert torch.allclose(z.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4)
    rms = (codec.decode(codec.encode(held_out)) - held_out).square().mean().sqrt().item()
    assert rms == pytest.approx(found.rows[0]["rms"], abs=1e-6)


def test_mnist_is_shuffled_and_what_is_kept_back_is_not_trained_on(inputs):
    train, held_out = lmd28.training_images("mnist", inputs, 1000)
    assert len(train) == 80 and len(held_out) == 20
    whole = {x.tobytes() for x in np.concatenate([train, held_out])}
    assert whole == {x.tobytes() for x in inputs.datasets["mnist"]["x"]} and len(whole) == 100


def test_multiply_adds_are_what_is_counted_and_within_the_budget():
    for encoder, decoder in (((16, 64), (64, 32, 8)), ((4, 8), (8, 8, 4))):
        model = lmd28.VAE(encoder, decoder)
        for part, x, macs in zip(
            (model.encoder, model.decoder),
            (torch.zeros(1, 1, 32, 32), torch.zeros(1, 4, 8, 8)),
            model.macs(),
            strict=True,
        ):
            with FlopCounterMode(display=False) as counter:
                part(x)
            assert counter.get_total_flops() == 2 * macs and macs <= 5e6


def test_a_latent_sees_three_pixels_around_its_own():
    model = seeded(lambda: lmd28.VAE((4, 8), (8, 8, 4)), 1000)
    x = torch.randn(1, 1, 32, 32, requires_grad=True)
    model.encode(x)[0][0, :, 3, 4].sum().backward()
    rows, columns = (x.grad[0, 0] != 0).nonzero().unbind(1)
    assert (rows.min(), rows.max()) == (12 - 3, 15 + 3) and (columns.min(), columns.max()) == (16 - 3, 19 + 3)


def test_loss_is_error_plus_divergence():
    """At a posterior N(m, 1) the divergence is |m|^2 / 2."""
    x = torch.rand(5, 1, 32, 32)

    class Flat(torch.nn.Module):
        def encode(self, x):
            return torch.full((len(x), 4, 8, 8), 0.5), torch.zeros(len(x), 4, 8, 8)

        def decoder(self, z):
            return torch.zeros(len(z), 1, 32, 32)

    of = torch.full_like(x, 0.25)
    loss = lmd28.vae_loss(of, 3, kl_weight=2.0)(Flat(), None, 0, torch.Generator())
    assert loss.item() == pytest.approx(1024 / 16 + 2.0 * 256 / 8)
