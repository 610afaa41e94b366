"""Every network of every scale can be built: on the meta device, where nothing is allocated, and counted there."""

from importlib.util import find_spec

import pytest

from papertrial.engine import networks, paths
from papertrial.engine.cards import SCALES
from papertrial.engine.project import Project

torch = pytest.importorskip("torch")
PROJECT = Project()


def offered() -> list[tuple[str, str, dict]]:
    """(recipe, scale and network, settings) of everything whose settings name networks."""
    found = []
    for file in sorted(paths.MODELS.glob("*.yaml")):
        card = PROJECT.model(file.stem)
        for scale in SCALES:
            settings = {**card.settings, **card.scales[scale].settings}
            several = settings.get("networks", {})
            for name, one in several.items():
                found.append((card.module, f"{scale}, {name}", {**settings, "networks": {name: one}}))
            if not several and networks.offers(card.module):
                found.append((card.module, scale, settings))
    return found


OFFERED = offered()


@pytest.mark.parametrize(("recipe", "which", "settings"), OFFERED, ids=[f"{m}, {w}" for m, w, _ in OFFERED])
def test_it_can_be_built_and_counted(recipe, which, settings):
    found = networks.count(recipe, settings)
    assert found is not None, f"{recipe} names networks in its settings, but offers no network(settings)"
    assert found.parameters > 0 and found.flops > 0
    assert found.job_flops >= found.flops


def test_what_trains_a_network_with_torch_on_a_gpu_offers_it():
    """A recipe with a GPU of its own at paper scale: it trains (then it can be counted), or it only samples."""
    asking = [c for c in map(PROJECT.model, (f.stem for f in paths.MODELS.glob("*.yaml"))) if c.scales["paper"].gpu]
    assert asking
    for card in asking:
        assert networks.offers(card.module) or card.needs.models, f"{card.module} offers no network(settings)"


RECIPE = """
import torch
from torch import nn

def network(settings):
    net = nn.Sequential(nn.Linear(3, settings["width"]), nn.ReLU(), nn.Linear(settings["width"], 2))
    return net, (torch.empty(1, 3),)

def passes(settings):
    return 3.0 * settings["steps"] * settings["batch"]
"""


def test_the_count_is_that_of_the_matrices(tmp_path, monkeypatch):
    (tmp_path / "toy_recipe.py").write_text(RECIPE)
    (tmp_path / "toy_sampler.py").write_text("def train(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_spec("toy_recipe")
    found = networks.count("toy_recipe", {"width": 50_000_000, "steps": 10, "batch": 4})  # a gigabyte, were it real
    width = 50_000_000
    assert found.parameters == 3 * width + width + 2 * width + 2
    assert found.flops == 2 * 3 * width + 2 * width * 2
    assert found.job_flops == found.flops * 3 * 10 * 4
    assert networks.count("toy_sampler", {}) is None
