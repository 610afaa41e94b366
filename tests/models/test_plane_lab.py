"""Sampler comparisons in the plane, and the choice among samplers on tuning noise."""

import pytest
import torch

from papertrial.methods.samplers import ddim, dpmpp2m
from papertrial.models.plan_tuning import best_plan
from papertrial.models.plane_lab import PlaneLab
from papertrial.models.sampler_lab import on_grid
from papertrial.testbeds.mixtures import density


@pytest.fixture(scope="module")
def lab() -> PlaneLab:
    return PlaneLab(density("ring8", torch.float32), "ring8", 400, truth_steps=60, truth_n=40)


def test_measures_are_zero_where_they_should_be(lab):
    noise, label, _ = lab.start([1000], 50)
    truth, nfe = lab.sample(lab.truth, noise, label)
    found = lab.measure(truth, label, 1000)
    assert nfe == 61 and found["ode_rms"] < 1e-6
    assert lab.judge(density("ring8").sample(400, torch.Generator().manual_seed(0)))["sw2"] < 1e-6


def test_errors_fall_with_steps(lab):
    noise, label, _ = lab.start([1000], 400)
    errors = [lab.measure(lab.sample(on_grid(ddim, "karras", n), noise, label)[0], label, 1000) for n in (5, 40)]
    assert errors[0]["ode_median"] > 3 * errors[1]["ode_median"] and errors[0]["sw2"] > errors[1]["sw2"]


def test_the_best_plan_has_the_smallest_metric_over_all_tuning_seeds(lab):
    plans = {(nfe, rule.__name__): on_grid(rule, "karras", nfe) for nfe in (3, 12) for rule in (ddim, dpmpp2m)}
    key, tried = best_plan(lab, plans, [1000, 1001], 100, "sw2")
    value = {row["tried"]: row["sw2"] for row in tried}
    assert str(key) == min(value, key=value.get) and set(value) == {str(k) for k in plans}
    assert [row["nfe"] for row in tried] == [3, 3, 12, 12]
    noise, label, _ = lab.start([1000, 1001], 50)
    assert lab.judge(lab.sample(plans[key], noise, label)[0])["sw2"] == value[str(key)]
