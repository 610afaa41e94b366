"""EDM's preconditioning by its defining properties, and the U-Net's shape."""

import numpy as np
import pytest
import torch
from torch import nn

from papertrial.models.arrays import seeded
from papertrial.models.edm import EDM, batched
from papertrial.models.unet import UNet
from papertrial.testbeds.mixtures import Mixture

TINY = {"channels": (4, 4, 8), "middle": 1, "width": 8, "groups": 2}


class Fixed(nn.Module):
    """A network that returns what it is told to, and keeps what it was shown."""

    def __init__(self, value):
        super().__init__()
        self.value, self.shown = value, None

    def forward(self, x, c_noise, label):
        self.shown = x, c_noise
        return self.value * torch.ones_like(x)


def test_network_sees_unit_variance_and_must_predict_unit_variance():
    sd, n = 0.6, 200_000
    generator = torch.Generator().manual_seed(1000)
    x0, eps = (torch.randn(n, 1, generator=generator) for _ in range(2))
    for s in (0.05, 0.6, 5.0):
        model = EDM(Fixed(0.0), sd)
        x = sd * x0 + s * eps
        skipped = model(x, s)  # F = 0 leaves c_skip x
        c_out = EDM(Fixed(1.0), sd)(x, s) - skipped
        assert model.net.shown[0].var().item() == pytest.approx(1, rel=0.02)
        assert ((sd * x0 - skipped) / c_out).var().item() == pytest.approx(1, rel=0.02)
        assert model.net.shown[1][0].item() == pytest.approx(np.log(s) / 4)


def test_without_a_network_it_is_the_best_linear_denoiser():
    x, sd = torch.randn(5, 2, dtype=torch.float64), 0.6
    exact = Mixture([[0.0, 0.0]], sd**2)
    for s in (0.02, 1.0, 20.0):
        assert torch.allclose(EDM(Fixed(0.0), sd)(x, s), exact(x, s))


def test_loss_weighs_levels_by_the_inverse_square_of_c_out():
    """So that the loss is the plain squared error of F."""
    sd, s = 0.6, torch.tensor([0.02, 0.5, 20.0], dtype=torch.float64)
    x0, eps = torch.randn(2, 3, 4, dtype=torch.float64)
    x = x0 + s[:, None] * eps
    total = s[:, None] ** 2 + sd**2
    target = (x0 - sd**2 / total * x) / (s[:, None] * sd / total.sqrt())
    expected = (0.3 - target).square().mean(1)
    assert torch.allclose(EDM(Fixed(0.3), sd).loss(x0, s, eps), expected)


def test_one_level_for_all_or_one_for_each():
    model, x = seeded(lambda: EDM(UNet(**TINY), 0.6), 0).eval(), torch.randn(3, 1, 8, 8)
    nn.init.normal_(model.net.out.weight)
    label = torch.tensor([0, 1, 2])
    assert torch.allclose(model(x, 0.7, label), model(x, torch.full((3,), 0.7), label))


def test_batched_changes_nothing():
    model = seeded(lambda: EDM(UNet(**TINY), 0.6), 0).eval().double()  # single precision rounds to 1e-6 with some draws
    nn.init.normal_(model.net.out.weight)
    x, label = torch.randn(7, 1, 8, 8, dtype=torch.float64), torch.arange(7)
    with torch.no_grad():
        whole, free = model(x, 0.5, label), model(x, 0.5)
    assert torch.allclose(batched(model, 3)(x, 0.5, label), whole, atol=1e-6)
    assert torch.allclose(batched(model, 3)(x, 0.5), free, atol=1e-6)


def test_unet_of_fm16():
    net = UNet()
    assert sum(p.numel() for p in net.parameters()) == 280_545
    assert list(net.blocks) == ["down0.0", "down1.0", "middle.0", "middle.1", "up1.0", "up0.0"]
    x = torch.randn(2, 1, 16, 16)
    assert net(x, torch.zeros(2), torch.tensor([0, 9])).shape == x.shape
    assert torch.equal(net(x, torch.zeros(2)), torch.zeros_like(x))  # starts as nothing, labelled or not


def test_unet_listens_to_level_and_label():
    net = UNet(**TINY)
    nn.init.normal_(net.out.weight)
    x = torch.randn(1, 1, 8, 8)
    out = [net(x, torch.tensor([c]), torch.tensor([y])) for c, y in ((0.0, 1), (0.5, 1), (0.0, 2))]
    null = net(x, torch.tensor([0.0]))
    assert torch.equal(null, net(x, torch.tensor([0.0]), torch.tensor([10])))
    assert not any(torch.allclose(a, out[0]) for a in (out[1], out[2], null))


def test_full_size_unet_can_be_built():
    with torch.device("meta"):
        net = UNet(channels=(256, 256, 256), blocks=4, middle=11, attention=(1,), width=512, groups=32)
        out = net(torch.empty(2, 1, 32, 32), torch.empty(2), torch.empty(2, dtype=torch.long))
    assert out.shape == (2, 1, 32, 32)
    assert 40e6 < sum(p.numel() for p in net.parameters()) < 80e6


def test_blocks_are_where_features_pass():
    net, seen = UNet(**TINY), []
    for name, block in net.blocks.items():
        block.register_forward_hook(lambda module, inputs, output, name=name: seen.append((name, output.shape[1:])))
    net(torch.randn(1, 1, 8, 8), torch.zeros(1))
    assert [name for name, _ in seen] == list(net.blocks)
    assert dict(seen)["middle.0"] == (8, 2, 2)
