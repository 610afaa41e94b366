"""The training workloads: a network, its data on the device, and the standard budget."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from papertrial.testbeds.optbench import splits
from papertrial.testbeds.optbench.networks import CharLM, cnn, mlp

Datasets = Mapping[str, Mapping[str, np.ndarray]]
Batch = tuple[Tensor, Tensor]  # inputs, targets


class Images:
    """Labelled images; an epoch is a permutation."""

    def __init__(self, arrays: tuple[np.ndarray, np.ndarray], device: str) -> None:
        self.x, self.y = (torch.from_numpy(a).to(device) for a in arrays)

    def __getitem__(self, index: Tensor) -> Batch:
        return self.x[index], self.y[index]

    def order(self, rng: np.random.Generator, steps: int, batch: int) -> np.ndarray:
        """(steps, batch) indices: shuffled epochs, one after the other."""
        epochs = -(-steps * batch // len(self.x))
        shuffled = np.concatenate([rng.permutation(len(self.x)) for _ in range(epochs)])
        return shuffled[: steps * batch].reshape(steps, batch)

    def fixed(self) -> Batch:
        return self.x, self.y


class Text:
    """A stream of characters; an example is the window that begins at an index, and the next characters."""

    def __init__(self, codes: np.ndarray, context: int, device: str) -> None:
        self.codes = torch.from_numpy(codes.astype(np.int64)).to(device)
        self.window = torch.arange(context + 1, device=device)

    def __getitem__(self, index: Tensor) -> Batch:
        window = self.codes[index[:, None] + self.window]  # (B, context + 1)
        return window[:, :-1], window[:, 1:]

    def order(self, rng: np.random.Generator, steps: int, batch: int) -> np.ndarray:
        """(steps, batch) starts of windows, uniform with replacement."""
        return rng.integers(len(self.codes) - len(self.window) + 1, size=(steps, batch))

    def fixed(self, windows: int = 128) -> Batch:
        starts = self.order(np.random.default_rng(0), 1, windows)[0]
        return self[torch.from_numpy(starts).to(self.codes.device)]


@dataclass(frozen=True)
class Workload:
    name: str
    build: Callable[[], nn.Module]
    train: Images | Text
    validation: Batch  # fixed
    test: Batch
    batch: int
    steps: int  # the standard budget
    clip: float | None  # gradient norm
    chunk: int  # examples at a time in evaluation, so that they stay in cache
    device: str


def fashion(name: str, build: Callable[[], nn.Module], steps: int, chunk: int, data: Datasets, device: str) -> Workload:
    parts = {k: Images(arrays, device) for k, arrays in splits.fashion(data["fashion_mnist"]).items()}
    held_out = parts["validation"].fixed(), parts["test"].fixed()
    return Workload(name, build, parts["train"], *held_out, 128, steps, None, chunk, device)


def characters(name: str, layers: int, steps: int, data: Datasets, device: str) -> Workload:
    parts = {k: Text(codes, 64, device) for k, codes in splits.austen(data["austen"]).items()}
    held_out = parts["validation"].fixed(), parts["test"].fixed()
    build = partial(CharLM, len(splits.ALPHABET), layers)
    return Workload(name, build, parts["train"], *held_out, 16, steps, 1.0, 16, device)


WORKLOADS: dict[str, Callable[[Datasets, str], Workload]] = {
    "fmnist-mlp": partial(fashion, "fmnist-mlp", mlp, 844, 500),
    "fmnist-cnn": partial(fashion, "fmnist-cnn", cnn, 400, 500),
    "char-lm": partial(characters, "char-lm", 2, 600),
    "char-lm-4L": partial(characters, "char-lm-4L", 4, 800),
}


def workload(name: str, datasets: Datasets, device: str = "cpu") -> Workload:
    """One of WORKLOADS; the data sets it needs are fashion_mnist or austen."""
    return WORKLOADS[name](datasets, device)
