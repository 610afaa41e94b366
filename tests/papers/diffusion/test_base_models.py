"""The chapter's small networks: sizes, labels, DDPM's levels, exact limits, and recipes on a miniature."""

import numpy as np
import pytest
import torch
from torch import nn

from papertrial.engine.results import Inputs
from papertrial.models import ddpm2d, edm2d, fm8
from papertrial.models.arrays import seeded
from papertrial.models.classifiers import Convolutional, Perceptron, build
from papertrial.models.perceptrons import PlaneMLP, ResidualMLP
from papertrial.models.plane_denoisers import DDPM_LEVELS, EpsNet, ddpm_loss
from papertrial.testbeds.mixtures import density

PLANE = {"sigma_data": 1.5, "network": {"width": 16, "depth": 2, "features": 4}, "steps": 3, "batch": 16, "lr": 1e-3}
PLANE |= {"decay": 1.0, "ema": 0.9, "s_max": 20.0, "s_min": 0.01, "gate": {"n": 50, "steps": 3, "seed": 1000}}


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_residual_mlp_of_fm8():
    assert count(ResidualMLP()) == 1_225_792 and count(ResidualMLP(width=128)) == 318_016
    net, x = ResidualMLP(width=16), torch.randn(3, 1, 8, 8)
    assert torch.equal(net(x, torch.zeros(3)), torch.zeros_like(x))  # starts as nothing
    nn.init.normal_(net.out.weight)
    null = net(x, torch.zeros(3))
    assert null.shape == x.shape
    assert torch.equal(null, net(x, torch.zeros(3), torch.full((3,), 10)))
    assert not torch.allclose(null, net(x, torch.zeros(3), torch.full((3,), 2)))
    assert not torch.allclose(null, net(x, torch.ones(3)))


def test_plane_mlp_with_and_without_labels():
    net, x = PlaneMLP(width=16, classes=8), torch.randn(3, 2)
    labelled = [net(x, torch.zeros(3), torch.full((3,), y)) for y in (0, 1)]
    assert labelled[0].shape == x.shape and not torch.allclose(*labelled)
    assert PlaneMLP(width=16).embed_label is None


def test_ddpm_levels():
    assert len(DDPM_LEVELS) == 1000 and (np.diff(DDPM_LEVELS) > 0).all()
    assert DDPM_LEVELS[0] == pytest.approx(0.01, rel=1e-3) and DDPM_LEVELS[-1] == pytest.approx(157.4, rel=1e-3)


def test_a_perfect_noise_predictor_is_the_exact_denoiser():
    exact = density("ring8")

    class Exact(nn.Module):
        def forward(self, x, c_noise, label):
            s = (4 * c_noise).exp()
            return exact.eps(x, (1 + s.square()).rsqrt(), s * (1 + s.square()).rsqrt())

    x = 2 * torch.randn(20, 2, dtype=torch.float64)
    for s in (0.05, 1.0, 20.0):
        assert torch.allclose(EpsNet(Exact())(x, s), exact(x, s), atol=1e-8)


def test_ddpm_loss_of_the_zero_predictor_is_one():
    class Zero(nn.Module):
        def forward(self, x, c_noise, label):
            return torch.zeros_like(x)

    loss = ddpm_loss(lambda n, g: (torch.zeros(n, 2), None), 20_000)
    value = loss(EpsNet(Zero()), None, 0, torch.Generator().manual_seed(1000))
    assert value.item() == pytest.approx(1.0, abs=0.03)


def test_classifiers_by_size():
    assert isinstance(build(8), Perceptron) and isinstance(build(16), Convolutional)
    assert build(8).features(torch.zeros(2, 1, 8, 8)).shape == (2, 32)
    assert build(16).features(torch.zeros(2, 1, 16, 16)).shape == (2, 64)


@pytest.mark.parametrize(
    ("recipe", "more"), [(edm2d, {"kind": "edm", "log_mean": -1.2, "log_sd": 1.5}), (ddpm2d, {"kind": "ddpm"})]
)
def test_plane_recipes_come_back_from_their_state(recipe, more):
    found = recipe.train("ring8", PLANE | more, Inputs({}, {}), "cpu", None)
    assert {"seed", "density", "sw2"} == set(found.rows[0])
    x = torch.randn(5, 2)
    assert torch.equal(recipe.load(found.state)(x, 0.5), recipe.denoiser(found.state)(x, 0.5))
    again = recipe.train("ring8", PLANE | more, Inputs({}, {}), "cpu", None)
    assert all(np.array_equal(v, again.state[k]) for k, v in found.state.items())


def test_fm8_parts_name_network_and_seed(tiny_fm8):
    wide, narrow = (fm8.load(tiny_fm8.models["fm8"][part]) for part in ("256-0", "128-0"))
    assert count(wide) > count(narrow)
    assert fm8.shape(tiny_fm8.models["fm8"]["256-0"]) == (1, 8, 8)
    other = fm8.load(tiny_fm8.models["fm8"]["128-1"])
    assert not torch.equal(narrow.net.stem.weight, other.net.stem.weight)


def test_same_seed_same_network():
    assert torch.equal(*(seeded(lambda: ResidualMLP(width=16), 1).stem.weight for _ in range(2)))
