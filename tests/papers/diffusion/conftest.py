"""A miniature of the base model fm16 and what hangs on it, from made-up pictures, in a tenth of a second."""

import numpy as np
import pytest

from papertrial.engine.results import Inputs

UNET = {"channels": [4, 4, 8], "blocks": 1, "middle": 1, "attention": [], "width": 8, "groups": 2}
TRAINING = {"steps": 2, "batch": 8, "lr": 2e-3, "decay": 0.5, "ema": 0.9, "log_mean": -1.0, "log_sd": 1.3}
REFERENCE = {"n": 12, "steps": 4, "ode_n": 6, "ode_steps": 6}
NOISE_SEEDS = ("1000", "1001", "1002")


class NoCheckpoint:
    def load(self):
        return None

    def save(self, state):
        pass


@pytest.fixture(scope="session")
def tiny_fm16() -> Inputs:
    """fm16, clf16 and fm16-reference (noise seeds 1000 to 1002), barely trained."""
    from papertrial.models import clf16, fm16, fm16_reference

    rng = np.random.default_rng(0)
    data = {}
    for part, n in (("train", 200), ("test", 100)):
        data[f"x_{part}"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        data[f"y_{part}"] = np.arange(n) % 10
    datasets, models = {"fashion_mnist": data}, {}

    def train(recipe, parts, **settings):
        inputs = Inputs(datasets, models)
        states = {part: recipe.train(part, settings, inputs, "cpu", NoCheckpoint()).state for part in parts}
        return {part: {k: np.ascontiguousarray(v) for k, v in state.items()} for part, state in states.items()}

    models["clf16"] = train(clf16, ["0"], size=16, images=200, epochs=1, batch=50, lr=1e-3, floors=[50])
    gate = {"n": 10, "steps": 1, "seed": 1000}
    models["fm16"] = train(fm16, ["0"], size=16, images=200, sigma_data=0.6, unet=UNET, gate=gate, **TRAINING)
    models["fm16-reference"] = train(fm16_reference, NOISE_SEEDS, **REFERENCE)
    return Inputs({}, models)
