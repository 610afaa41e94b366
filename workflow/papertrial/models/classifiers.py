"""Small classifiers of Fashion-MNIST whose features measure samples (clf8 at 8 x 8, clf16 at 16 x 16 and above).

FD is taken in the features before the last non-linearity. The state keeps the features of the test pictures, which
samples are compared with, and of as many training pictures, for the distance that real data have at the same n.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papertrial.engine.results import Inputs, Results
from papertrial.models.arrays import Checkpoint, from_arrays, seeded, to_arrays
from papertrial.testbeds.fashion import pictures
from papertrial.testbeds.samplequality import FrechetDistance


class Convolutional(nn.Module):
    """(n, 1, size, size) -> features (n, 64), logits (n, 10)."""

    def __init__(self, size: int, features: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * (size // 4) ** 2, features)
        self.out = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        h = F.relu(F.max_pool2d(self.conv1(x), 2))
        h = F.relu(F.max_pool2d(self.conv2(h), 2))
        return self.hidden(h.flatten(1))

    def head(self, features: Tensor) -> Tensor:
        return self.out(F.relu(features))


class Perceptron(nn.Module):
    """(n, 1, size, size) -> features (n, 32), logits (n, 10)."""

    def __init__(self, size: int, features: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.hidden = nn.Linear(size**2, 128)
        self.second = nn.Linear(128, features)
        self.out = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.second(F.silu(self.hidden(x.flatten(1))))

    def head(self, features: Tensor) -> Tensor:
        return self.out(F.silu(features))


def build(size: int) -> Convolutional | Perceptron:
    """What is large enough for pictures of this size."""
    return Perceptron(size) if size <= 8 else Convolutional(size)


def classify(net: nn.Module, x: Tensor, batch: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, f) and class probabilities (n, 10) of pictures."""
    with torch.inference_mode():
        h = torch.cat([net.features(part) for part in x.split(batch)])
        return h.cpu().numpy(), net.head(h).softmax(1).cpu().numpy()


class SampleJudge:
    """FD against the test pictures and label accuracy of samples, from what ``train`` kept.

    Args:
        state: of a part of the base model.
        device: where the samples are.

    Attributes:
        test_features, train_features: (10000, f) of real pictures.
        frechet: features (n, f) -> distance to all test pictures.
    """

    def __init__(self, state: Mapping[str, np.ndarray], device: str = "cpu") -> None:
        self.net = build(state["size"].item()).to(device).eval()
        self.net.load_state_dict(from_arrays(state, "net/"))
        self.test_features, self.train_features = state["test_features"], state["train_features"]
        self.frechet = FrechetDistance(self.test_features)

    def classify(self, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, f) and class probabilities (n, 10) of pictures."""
        return classify(self.net, x)

    def __call__(self, x: Tensor, label: np.ndarray | Tensor) -> dict[str, float]:
        """{"fd", "accuracy"} of pictures (n, 1, size, size) and the labels they were asked for."""
        features, probability = self.classify(x)
        agreed = probability.argmax(1) == np.asarray(label)
        return {"fd": self.frechet(features), "accuracy": float(agreed.mean())}

    def floor(self, seed: int, n: int) -> float:
        """The FD of n real training pictures."""
        rows = np.random.default_rng(seed).permutation(len(self.train_features))[:n]
        return self.frechet(self.train_features[rows])


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    """A part is a seed; minutes at most, so nothing is checkpointed."""
    seed, data, images = int(part), inputs.datasets["fashion_mnist"], settings["images"]
    x, test = (pictures(data[name][:images], settings["size"]) for name in ("x_train", "x_test"))
    x, y = torch.from_numpy(x), torch.tensor(data["y_train"][:images])
    net = seeded(lambda: build(settings["size"]), seed).to(device)
    optimizer = torch.optim.Adam(net.parameters(), settings["lr"])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings["epochs"]):
        for rows in torch.randperm(len(x), generator=generator).split(settings["batch"]):
            loss = F.cross_entropy(net.head(net.features(x[rows].to(device))), y[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    real, probability = classify(net, torch.from_numpy(test).to(device))
    accuracy = float((probability.argmax(1) == data["y_test"][:images]).mean())
    training = classify(net, x[: len(test)].to(device))[0]
    state = {"size": np.array(settings["size"]), "test_features": real, "train_features": training}
    frechet = FrechetDistance(real)
    floors = {f"floor_{n}": frechet(training[:n]) for n in settings["floors"]}
    return Results([{"seed": seed, "accuracy": accuracy, **floors}], state=state | to_arrays(net.state_dict(), "net/"))


def network(settings: dict) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The untrained network and an example's arguments, to count parameters and FLOPs."""
    net = build(settings["size"])
    net.forward = lambda x: net.head(net.features(x))
    return net, (torch.empty(1, 1, settings["size"], settings["size"]),)


def passes(settings: dict) -> float:
    """Forward-equivalents of an example: three a training example."""
    return 3.0 * settings["images"] * settings["epochs"]
