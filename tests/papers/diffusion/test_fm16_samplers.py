"""The shared table of samplers: every sampler runs, on the grid that tuning chose, and spends what it is given."""

import pytest

from papertrial.models import fm16_samplers
from papertrial.models.sampler_lab import SamplerLab

SETTINGS = {"nfe": [5], "n": 6, "seeds": [1000], "grids": ["log", "karras"], "tuning_seed": 1001, "tuning_n": 6}


@pytest.mark.parametrize("sampler", fm16_samplers.SAMPLERS)
def test_sampler_is_measured_on_its_best_grid(sampler, tiny_fm16):
    found = fm16_samplers.train(sampler, SETTINGS, tiny_fm16, "cpu", None)
    assert [(r["method"], r["seed"], r["nfe"]) for r in found.rows] == [(sampler, 1000, 5)]
    best = min(found.traces, key=lambda row: row["fd"])["grid"]
    alone = fm16_samplers.train(sampler, SETTINGS | {"grids": [best]}, tiny_fm16, "cpu", None)
    assert alone.rows == found.rows


@pytest.mark.parametrize("sampler", fm16_samplers.SAMPLERS)
@pytest.mark.parametrize("nfe", [5, 10])
def test_no_sampler_spends_more_than_it_is_given(sampler, nfe, tiny_fm16):
    lab = SamplerLab(tiny_fm16, "cpu")
    noise, label, _ = lab.start([1000], 2)
    _, spent = lab.sample(fm16_samplers.SAMPLERS[sampler](nfe, "log"), noise, label)
    assert spent == nfe or (sampler == "heun" and spent == nfe - (nfe - 1) % 2)
