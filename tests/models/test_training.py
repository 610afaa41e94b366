"""The training loop: resumption bit by bit, the last checkpoint of a job that is told to end, rates, averages."""

import numpy as np
import pytest
import torch
from torch import nn

from papertrial.models.arrays import from_settings, seeded, to_arrays, to_settings
from papertrial.models.edm import EDM, denoising
from papertrial.models.training import Training, fit
from papertrial.models.unet import UNet
from papertrial.testbeds.mixtures import Mixture

HOW = Training(steps=6, lr=1e-2, decay=0.5, ema=0.9, save_every=2)
TINY = {"channels": (4, 4, 8), "middle": 1, "width": 8, "groups": 2}


class Stop(Exception):
    pass


class Kept:
    """A checkpoint in memory; as the job's own it doesn't return from ``save`` once asked to end."""

    def __init__(self, dies_at=None):
        self.state, self.saves, self.dies_at, self.asked = None, 0, dies_at, False

    def load(self):
        return self.state

    def save(self, state):
        self.state = {k: np.ascontiguousarray(v) for k, v in state.items()}  # as a file would keep it
        self.saves += 1
        if self.saves == self.dies_at or self.asked:
            raise Stop


def fitted(checkpoint, watch=None):
    data, labels = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(5)), torch.arange(40) % 10

    def draw(n, generator):
        rows = torch.randint(40, (n,), generator=generator)
        return data[rows], labels[rows]

    model = seeded(lambda: EDM(UNet(**TINY), 1.0), 3).to(memory_format=torch.channels_last)
    return fit(model, denoising(draw, 16, -1, 1.3, 0.5, null=10), HOW, 7, checkpoint, watch)


def same(one, two):
    arrays = to_arrays(two.state_dict())
    return all(np.array_equal(array, arrays[name]) for name, array in to_arrays(one.state_dict()).items())


def test_resumed_run_ends_in_the_same_bits():
    undisturbed, losses = fitted(Kept())
    checkpoint = Kept(dies_at=2)
    with pytest.raises(Stop):
        fitted(checkpoint)
    checkpoint.dies_at = None
    assert checkpoint.state["step"].item() == 4
    resumed, losses_too = fitted(checkpoint)
    assert same(undisturbed, resumed) and losses == losses_too


def test_a_job_told_to_end_saves_after_the_update_it_is_in():
    undisturbed, _ = fitted(Kept())
    checkpoint = Kept()

    def told(done, average):
        checkpoint.asked = done == 3  # between two regular checkpoints

    with pytest.raises(Stop):
        fitted(checkpoint, told)
    assert checkpoint.state["step"].item() == 3
    checkpoint.asked = False
    assert same(undisturbed, fitted(checkpoint)[0])


def test_checkpoints_are_copies_of_the_moment():
    checkpoint = Kept()
    states = []
    checkpoint.save = lambda state: states.append((state, {k: v.copy() for k, v in state.items()}))
    fitted(checkpoint)
    assert len(states) == 2
    assert all(np.array_equal(state[k], copy[k]) for state, copy in states for k in copy)


def test_loss_falls_on_a_learnable_density():
    target = Mixture([[1.0, 1.0], [-1.0, -1.0]], 0.01, dtype=torch.float32)

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

        def forward(self, x, c_noise, label):
            return self.layers(torch.cat([x, c_noise[:, None]], 1))

    loss = denoising(lambda n, g: (target.sample(n, g), None), 128, -1, 1)
    untrained = seeded(lambda: EDM(MLP(), 1.0), 0)
    how = Training(steps=150, lr=1e-2, lr_end=1e-4, ema=0.95)
    model, losses = fit(seeded(lambda: EDM(MLP(), 1.0), 0), loss, how, 0)
    assert [row["step"] for row in losses] == [50, 100, 150] and losses[-1]["loss"] < losses[0]["loss"]
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    x = target.sample(500, torch.Generator().manual_seed(1)) + torch.randn(500, 2) * 0.5
    errors = [(m(x, 0.5) - target(x, 0.5)).square().mean().item() for m in (untrained, model)]
    assert errors[1] < errors[0] / 4


def test_rate_warms_up_is_constant_then_linear():
    how = Training(steps=300, lr=2.0, decay=1 / 3, warmup=50)
    assert how.rate(0) == pytest.approx(2 / 50) and how.rate(24) == pytest.approx(1.0)
    assert how.rate(49) == how.rate(200) == 2.0
    assert how.rate(250) == pytest.approx(1.0) and how.rate(300) == pytest.approx(0.0)
    all_the_way = Training(steps=100, lr=2e-3, lr_end=1e-5)
    assert all_the_way.rate(0) == 2e-3 and all_the_way.rate(100) == pytest.approx(1e-5)
    assert Training(steps=100, lr=1.0, decay=0).rate(99) == 1.0
    assert Training.of({"steps": 1, "lr": 1, "size": 8}) == Training(steps=1, lr=1)


def test_average_follows_the_weights_with_the_stated_decay():
    """A loss w alone makes Adam step by -lr: w_k = -k lr, and the mean m_k = a m_(k-1) + (1 - a) w_k, a by the ramp."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average, _ = fit(model, lambda m, mean, step, g: m.weight.sum(), Training(steps=5, lr=0.1, decay=0, ema=0.3), 0)
    mean = 0.0
    for k in range(5):
        a = min(0.3, (1 + k) / (10 + k))
        mean = a * mean - (1 - a) * 0.1 * (k + 1)
    assert average.weight.item() == pytest.approx(mean, rel=1e-4)


def test_frozen_weights_stay():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    average, _ = fit(model, lambda m, mean, step, g: m(torch.ones(1, 2)).sum(), Training(steps=3, lr=0.1), 0)
    assert torch.equal(average[0].weight, before) and not torch.equal(average[1].weight, model[1].weight)


def test_seeded_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, again = (seeded(lambda: nn.Linear(3, 3), 1) for _ in range(2))
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_settings_survive_as_an_array():
    settings = {"kind": "mlp", "channels": [16, 32], "sigma": 0.6, "none": None}
    array = from_settings(settings)
    assert array.dtype == np.uint8 and to_settings(array) == settings
