"""clf16: a small classifier of 16 x 16 Fashion-MNIST, whose features measure samples.

FD is taken in the 64 features before the non-linearity. The state keeps the features of the test pictures, which
samples are compared with, and of as many training pictures, for the distance that real data have at the same n.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papertrial.engine.results import Inputs, Results
from papertrial.models.edm import Checkpoint, from_arrays, seeded, to_arrays
from papertrial.testbeds.fashion import pictures
from papertrial.testbeds.samplequality import FrechetDistance


class Classifier(nn.Module):
    """(n, 1, size, size) -> logits (n, 10)."""

    def __init__(self, size: int = 16, features: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * (size // 4) ** 2, features)
        self.out = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        """(n, 64) before the non-linearity."""
        h = F.relu(F.max_pool2d(self.conv1(x), 2))
        h = F.relu(F.max_pool2d(self.conv2(h), 2))
        return self.hidden(h.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.features(x)))

    def judge(self, x: Tensor, batch: int = 500) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, 64) and predicted labels (n,) of pictures."""
        with torch.inference_mode():
            h = torch.cat([self.features(part) for part in x.split(batch)])
            return h.cpu().numpy(), self.out(F.relu(h)).argmax(1).cpu().numpy()


class SampleJudge:
    """FD against the test pictures and label accuracy of samples, from what ``train`` kept.

    Args:
        state: of a part of the base model.
        device: where the samples are.
    """

    def __init__(self, state: Mapping[str, np.ndarray], device: str = "cpu") -> None:
        self.net = Classifier(state["size"].item()).to(device).eval()
        self.net.load_state_dict(from_arrays(state, "net/"))
        self.frechet = FrechetDistance(state["test_features"])
        self.train_features = state["train_features"]

    def __call__(self, x: Tensor, label: np.ndarray | Tensor) -> dict[str, float]:
        """{"fd", "accuracy"} of pictures (n, 1, size, size) and the labels they were asked for."""
        features, predicted = self.net.judge(x)
        return {"fd": self.frechet(features), "accuracy": float((predicted == np.asarray(label)).mean())}


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    """A part is a seed; minutes at most, so nothing is checkpointed."""
    seed, data, images = int(part), inputs.datasets["fashion_mnist"], settings["images"]
    x, test = (pictures(data[name][:images], settings["size"]) for name in ("x_train", "x_test"))
    x, y = torch.from_numpy(x), torch.tensor(data["y_train"][:images])
    net = seeded(lambda: Classifier(settings["size"]), seed).to(device)
    optimizer = torch.optim.Adam(net.parameters(), settings["lr"])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings["epochs"]):
        for rows in torch.randperm(len(x), generator=generator).split(settings["batch"]):
            loss = F.cross_entropy(net(x[rows].to(device)), y[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    real, predicted = net.judge(torch.from_numpy(test).to(device))
    accuracy = float((predicted == data["y_test"][:images]).mean())
    training = net.judge(x[: len(test)].to(device))[0]
    state = {"size": np.array(settings["size"]), "test_features": real, "train_features": training}
    frechet = FrechetDistance(real)
    floors = {f"floor_{n}": frechet(training[:n]) for n in settings["floors"]}
    return Results([{"seed": seed, "accuracy": accuracy, **floors}], state=state | to_arrays(net.state_dict(), "net/"))
