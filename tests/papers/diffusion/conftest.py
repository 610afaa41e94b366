"""Miniatures of the chapter's base models, from made-up pictures, in a tenth of a second each."""

import numpy as np
import pytest

from papertrial.engine.results import Inputs

NETWORK = {"kind": "unet", "channels": [4, 4, 8], "blocks": 1, "middle": 1, "attention": [], "width": 8, "groups": 2}
TRAINING = {"images": 200, "sigma_data": 0.6, "drop_label": 0.1, "gate": {"n": 10, "steps": 1, "seed": 1000}}
TRAINING |= {"steps": 2, "batch": 8, "lr": 2e-3, "decay": 0.5, "ema": 0.9, "log_mean": -1.0, "log_sd": 1.3}
REFERENCE = {"n": 12, "steps": 4, "ode_n": 6, "ode_steps": 6}
NOISE_SEEDS = ("1000", "1001", "1002")


def miniature() -> dict:
    """Made-up pictures in the shape of Fashion-MNIST."""
    rng, data = np.random.default_rng(0), {}
    for part, n in (("train", 200), ("test", 100)):
        data[f"x_{part}"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        data[f"y_{part}"] = np.arange(n) % 10
    return data


def trained(recipe, parts, datasets, models, **settings):
    """{part: state} of a base model, as it would come from its file."""
    states = {p: recipe.train(p, settings, Inputs(datasets, models), "cpu", None).state for p in parts}
    return {part: {k: np.ascontiguousarray(v) for k, v in state.items()} for part, state in states.items()}


@pytest.fixture(scope="session")
def tiny_fm16() -> Inputs:
    """fm16, clf16 and fm16-reference (noise seeds 1000 to 1002), barely trained."""
    from papertrial.models import clf16, fm16, fm16_reference

    data = {"fashion_mnist": miniature()}
    models = {"clf16": trained(clf16, ["0"], data, {}, size=16, images=200, epochs=1, batch=50, lr=1e-3, floors=[50])}
    models["fm16"] = trained(fm16, ["0"], data, dict(models), size=16, networks={"main": NETWORK}, **TRAINING)
    models["fm16-reference"] = trained(fm16_reference, NOISE_SEEDS, data, models, **REFERENCE)
    return Inputs(data, models)


@pytest.fixture(scope="session")
def tiny_fm8() -> Inputs:
    """fm8 (three parts) and clf8, barely trained; with the made-up pictures."""
    from papertrial.models import clf8, fm8

    data = {"fashion_mnist": miniature()}
    models = {"clf8": trained(clf8, ["0"], data, {}, size=8, images=200, epochs=1, batch=50, lr=1e-3, floors=[50])}
    networks = {str(w): {"kind": "mlp", "dim": 64, "width": w // 8, "blocks": 3} for w in (256, 128)}
    parts = ("256-0", "128-0", "128-1")
    models["fm8"] = trained(fm8, parts, data, dict(models), size=8, networks=networks, **TRAINING)
    return Inputs(data, models)


@pytest.fixture(scope="session")
def tiny_plane() -> Inputs:
    """edm2d and ddpm2d of all densities, barely trained."""
    from papertrial.models import ddpm2d, edm2d

    settings = {"sigma_data": 1.5, "network": {"width": 16, "depth": 2, "features": 4}, "steps": 2, "batch": 16}
    settings |= {"lr": 1e-3, "decay": 1.0, "ema": 0.9, "s_max": 20.0, "s_min": 0.01}
    settings |= {"gate": {"n": 50, "steps": 1, "seed": 1000}}
    names = ("ring8", "grid25", "spiral", "checker")
    edm = trained(edm2d, names, {}, {}, kind="edm", log_mean=-1.2, log_sd=1.5, **settings)
    return Inputs({}, {"edm2d": edm, "ddpm2d": trained(ddpm2d, names, {}, {}, kind="ddpm", **settings)})
