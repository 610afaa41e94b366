"""What fine-tuning needs of a kind of model: its start, real data, samples, log-densities and quality.

Three kinds with one interface: denoisers of pictures, denoisers in the plane, autoregressive models of pictures. A
diffusion model's log p(x) is replaced by one draw of its ELBO (up to a constant),

    -w(s) |D(x + s eps, s) - x|^2,  w = (s^2 + sd^2) / (s sd)^2,

with the same s and eps in both models of a difference.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from papertrial.engine.results import Inputs, Row
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import balanced_labels, heun, initial_noise, solve
from papertrial.models.classifiers import SampleJudge
from papertrial.models.ddo_start import load, quantised, shown
from papertrial.models.edm import EDM, batched
from papertrial.testbeds.fashion import pictures
from papertrial.testbeds.mixtures import density
from papertrial.testbeds.samplequality import FrechetDistance, mode_tv

BASE = "ddo-start"
SELECTION = 50_000  # added to a seed: the noise that checkpoints are compared on

Samples = tuple[Tensor, Tensor]  # x (n, ...), labels (n,)
Noise = tuple[Tensor, Tensor]  # levels s (n,), eps like x


def elbo(model: EDM, x: Tensor, label: Tensor, noise: Noise) -> Tensor:
    """(n,) -w(s) |D - x|^2, summed over coordinates."""
    s, eps = noise
    return -model.loss(x, s, eps, label) * x[0].numel()


def levels_and_noise(x: Tensor, p: Mapping[str, Any], generator: torch.Generator) -> Noise:
    """By the law that the model was trained with."""
    s = (p["log_mean"] + p["log_sd"] * torch.randn(len(x), generator=generator)).exp()
    return s.to(x.device), torch.randn(x.shape, generator=generator).to(x.device)


def diffuse(model: nn.Module, n: int, seed: int, shape: tuple, label: Tensor, steps: int, guidance: float) -> Tensor:
    """n samples by Heun steps on the karras grid, with D_c + w (D_c - D_null)."""
    denoise, levels = batched(model, 1000), grid("karras", steps)
    guided = denoise

    if guidance:
        guided = lambda x, s, y: torch.lerp(denoise(x, s, None), denoise(x, s, y), 1 + guidance)  # noqa: E731
    noise = initial_noise([seed], n, shape).to(label.device)
    return solve(guided, levels[0] * noise, levels, heun, label)


class Bench:
    """Args: p, the problem's settings; task, what the start's parts are called."""

    null: int | None = None

    def __init__(self, p: Mapping[str, Any], inputs: Inputs, device: str) -> None:
        self.p, self.device, self.starts = p, device, inputs.models[BASE]

    def start(self, seed: int) -> nn.Module:
        """The pre-trained model of a seed."""
        part = f"{self.p['task']}-{seed}"
        return load(part, self.starts[part], self.device)

    def hide(self, label: Tensor, generator: torch.Generator) -> Tensor:
        """The null label in the place of a share of the labels, as in pre-training."""
        if self.null is None:
            return label
        dropped = torch.rand(len(label), generator=generator) < self.p["drop_label"]
        return torch.where(dropped.to(label.device), self.null, label)

    def noise(self, x: Tensor, generator: torch.Generator) -> Noise | None:
        """What a log-density is computed with, once for both models."""
        return levels_and_noise(x, self.p, generator)

    def log_density(self, model: nn.Module, x: Tensor, label: Tensor, noise: Noise | None) -> Tensor:
        return elbo(model, x, label, noise)


class Pictures(Bench):
    """Class-conditional denoisers; FD to the second half of the test pictures, selection by the first."""

    null = 10

    def __init__(self, p: Mapping[str, Any], inputs: Inputs, device: str) -> None:
        super().__init__(p, inputs, device)
        data, n = inputs.datasets["fashion_mnist"], p["images"]
        self.judge = SampleJudge(inputs.models["clf8"]["0"], device)
        self.x = torch.from_numpy(pictures(data["x_train"][:n], p["size"])).to(device)
        self.y = torch.tensor(data["y_train"][:n]).to(device)
        self.compare_with(self.judge.test_features)

    def compare_with(self, test: np.ndarray) -> None:
        half = len(test) // 2
        self.fd_tuning, self.fd_reported = FrechetDistance(test[:half]), FrechetDistance(test[half:])
        self.test = test[half:][:1000]
        to_training = nearest(self.test, self.judge.train_features[: len(test) - half])
        self.near = float(np.median(to_training))

    def real(self, n: int, generator: torch.Generator) -> Samples:
        rows = torch.randint(len(self.x), (n,), generator=generator).to(self.device)
        return self.x[rows], self.y[rows]

    def sample(self, model: nn.Module, n: int, seed: int, guidance: float = 0.0) -> Samples:
        label = balanced_labels([seed], n).to(self.device)
        return diffuse(model, n, seed, self.x.shape[1:], label, self.p["steps"], guidance), label

    def features(self, x: Tensor) -> np.ndarray:
        return self.judge.classify(x)[0]

    def score(self, model: nn.Module, seed: int) -> float:
        """What checkpoints and settings are chosen by."""
        return self.fd_tuning(self.features(self.sample(model, self.p["n_select"], SELECTION + seed)[0]))

    def quality(self, model: nn.Module, seed: int, guidance: float = 0.0) -> Row:
        """What is reported: fd, and the share of test pictures near which a sample lies."""
        found = self.features(self.sample(model, self.p["n"], seed, guidance)[0])
        return {"fd": self.fd_reported(found), "coverage": float((nearest(self.test, found) <= self.near).mean())}

    def floor(self, seed: int) -> Row:
        """The same of real training pictures."""
        training = self.judge.train_features
        found = training[np.random.default_rng(seed).permutation(len(training))[: self.p["n"]]]
        return {"fd": self.fd_reported(found), "coverage": float((nearest(self.test, found) <= self.near).mean())}

    def shown(self, model: nn.Module, seed: int) -> np.ndarray:
        """A few samples for a figure."""
        return self.sample(model, 30, seed)[0][:, 0].cpu().numpy().astype(np.float16)


def nearest(x: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(n,) distances of features to the nearest of others."""
    return torch.cdist(torch.tensor(x), torch.tensor(among)).amin(1).numpy()


class Ring(Bench):
    """Denoisers of the ring of eight, where samples off the modes can be counted."""

    def __init__(self, p: Mapping[str, Any], inputs: Inputs, device: str) -> None:
        super().__init__(p, inputs, device)
        self.exact = density("ring8", torch.float32)
        self.modes, self.far = self.exact.means.numpy(), 4 * float(self.exact.spectrum[0]) ** 0.5

    def real(self, n: int, generator: torch.Generator) -> Samples:
        return self.exact.sample(n, generator).to(self.device), torch.zeros(n, dtype=torch.long, device=self.device)

    def sample(self, model: nn.Module, n: int, seed: int) -> Samples:
        label = torch.zeros(n, dtype=torch.long, device=self.device)
        return diffuse(model, n, seed, (2,), label, self.p["steps"], 0.0), label

    def score(self, model: nn.Module, seed: int) -> float:
        return self.quality(model, SELECTION + seed)["off"]

    def quality(self, model: nn.Module, seed: int) -> Row:
        """off: the share of samples more than 4 sd from every mode; and the total variation of the modes' shares."""
        x = self.sample(model, self.p["n"], seed)[0].cpu().numpy()
        off = (nearest(x, self.modes) > self.far).mean()
        return {"off": float(off), "mode_tv": mode_tv(x, self.modes)}

    def shown(self, model: nn.Module, seed: int) -> np.ndarray:
        return self.sample(model, 1500, seed)[0].cpu().numpy().astype(np.float16)


class Pixels(Pictures):
    """Autoregressive models of quantised pictures, with exact likelihoods; compared with quantised pictures, too."""

    def __init__(self, p: Mapping[str, Any], inputs: Inputs, device: str) -> None:
        super().__init__(p, inputs, device)
        values, size, data = p["values"], p["size"], inputs.datasets["fashion_mnist"]

        def seen(x: np.ndarray) -> Tensor:
            """Real pictures as the models see them."""
            x = torch.from_numpy(pictures(x, size)).to(device)
            return shown(quantised(x, values), values, size)

        test = data["x_test"][: len(self.judge.test_features)]
        self.judge.train_features = self.features(seen(data["x_train"][: len(self.judge.train_features)]))
        self.compare_with(self.features(seen(test)))
        self.x = quantised(self.x, values)

    def sample(self, model: nn.Module, n: int, seed: int, guidance: float = 0.0) -> Samples:
        label = balanced_labels([seed], n).to(self.device)
        u = torch.from_numpy(np.random.default_rng(seed).random((n, self.x.shape[1]), np.float32)).to(self.device)
        parts = zip(u.split(500), label.split(500), strict=True)
        return torch.cat([model.sample(v, y, guidance) for v, y in parts]), label

    def features(self, x: Tensor) -> np.ndarray:
        """Of pictures, or of their quantised pixels (n, pixels)."""
        return super().features(x if x.ndim == 4 else shown(x, self.p["values"], self.p["size"]))

    def noise(self, x: Tensor, generator: torch.Generator) -> None:
        return None

    def log_density(self, model: nn.Module, x: Tensor, label: Tensor, noise: None) -> Tensor:
        return model.log_likelihood(x, label)

    def best_guidance(self, model: nn.Module, seed: int) -> float:
        """The w with the smallest FD to the half of the test pictures that nothing is reported on."""
        fd = {
            w: self.fd_tuning(self.features(self.sample(model, self.p["n_guidance"], SELECTION + seed, w)[0]))
            for w in self.p["guidance"]
        }
        return min(fd, key=fd.get)

    def shown(self, model: nn.Module, seed: int) -> np.ndarray:
        x = shown(self.sample(model, 30, seed)[0], self.p["values"], self.p["size"])
        return x[:, 0].cpu().numpy().astype(np.float16)


BENCHES = {"pictures": Pictures, "ring8": Ring, "pixels": Pixels}
