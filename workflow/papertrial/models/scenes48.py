"""scenes48: scenes to detect things in, and a small frozen backbone, for heads that are compared on equal features.

The backbone, a strided convolution net, is trained with a dense detector on scenes of its own. What is kept: its
weights, and the scenes for heads to be trained, validated and tested on, from disjoint pools of things. Features are
cheap, so they are computed when asked for: ``load(state)``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from papertrial.engine.results import Inputs, Results
from papertrial.models.arrays import Checkpoint, from_arrays, from_settings, seeded, to_arrays, to_settings
from papertrial.models.fcos import DenseHead, dense_detections, dense_loss
from papertrial.models.training import Training, fit
from papertrial.testbeds.detection import average_precision, suppressed
from papertrial.testbeds.scenes import SIDE, Scenes, scenes

# What the things of a split are cut from: part of Fashion-MNIST, first and last picture.
POOLS = {
    "backbone": ("train", 0, 10000),
    "train": ("train", 10000, 45000),
    "validation": ("train", 45000, 60000),
    "test": ("test", 0, 10000),
}


class Backbone(nn.Module):
    """(n, 1, 48, 48) in [0, 1] to (n, channels, 12, 12)."""

    def __init__(self, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        a, b, c, d = channels
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, a, 3, stride=2, padding=1), nn.GroupNorm(4, a), nn.SiLU()),  # (n, a, 24, 24)
            *(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(4, b), nn.SiLU()),  # (n, b, 12, 12)
            *(nn.Conv2d(b, c, 3, padding=1), nn.GroupNorm(4, c), nn.SiLU()),
            *(nn.Conv2d(c, d, 3, padding=1), nn.GroupNorm(4, d), nn.SiLU()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x - 0.2) / 0.25)


class Detector(nn.Module):
    """The backbone and the dense head that it's trained with."""

    def __init__(self, channels: tuple[int, int, int, int], width: int) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(channels), DenseHead(channels[-1], width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.head(self.backbone(x))


@dataclass(frozen=True)
class Split:
    """Scenes to detect things in.

    pictures, features: (n, 1, 48, 48) in [0, 1], (n, c, 12, 12) frozen.
    boxes, labels: (n, 5, 4) in shares of the side, (n, 5); label -1 where there is nothing.
    """

    pictures: Tensor
    features: Tensor
    boxes: Tensor
    labels: Tensor

    def first(self, n: int) -> "Split":
        return Split(self.pictures[:n], self.features[:n], self.boxes[:n], self.labels[:n])


def build(settings: Mapping) -> Detector:
    return Detector(settings["channels"], settings["width"])


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    """A part is a seed, of the weights; the scenes are the same for all."""
    seed, data = int(part), inputs.datasets["fashion_mnist"]
    made = {
        name: scenes(data[f"x_{of}"][first:last], data[f"y_{of}"][first:last], settings["scenes"][name], seed=i)
        for i, (name, (of, first, last)) in enumerate(POOLS.items())
    }
    own = tensors(made.pop("backbone"), device)

    def loss(model: Detector, average: Detector, step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(own[0]), (settings["batch"],), generator=generator).to(device)
        x, boxes, labels = (part[rows] for part in own)
        return dense_loss(model.head, model.backbone(x), boxes, labels)

    model = seeded(lambda: build(settings), seed).to(device, memory_format=torch.channels_last)
    model, losses = fit(model, loss, Training.of(settings), seed, checkpoint)
    state = {"config": from_settings({k: settings[k] for k in ("channels", "width")})}
    state |= to_arrays(model.state_dict(), "net/")
    for name, of in made.items():
        state |= {f"{name}/x": of.x, f"{name}/boxes": of.boxes, f"{name}/labels": of.labels.astype(np.int8)}
    validation = load(state, "validation", device)
    with torch.no_grad():
        found = dense_detections(model.head, validation.features)
    return Results([{"seed": seed, **precision(*found, validation)}], traces=losses, state=state)


def tensors(of: Scenes, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (n, 1, 48, 48) in [0, 1], boxes and labels."""
    x = torch.from_numpy(of.x[:, None].astype(np.float32) / 255)
    return x.to(device), torch.tensor(of.boxes).to(device), torch.tensor(of.labels).long().to(device)


@torch.no_grad()
def load(state: Mapping[str, np.ndarray], split: str, device: str = "cpu") -> Split:
    """A split: train, validation or test."""
    model = build(to_settings(state["config"]))
    model.load_state_dict(from_arrays(state, "net/"))
    backbone = model.backbone.to(device, memory_format=torch.channels_last).eval()
    of = Scenes(*(np.asarray(state[f"{split}/{k}"]) for k in ("x", "boxes", "labels")))
    x, boxes, labels = tensors(of, device)
    features = torch.cat([backbone(part).contiguous() for part in x.split(250)])
    return Split(x, features, boxes, labels)


def precision(boxes: Tensor, scores: Tensor, labels: Tensor, split: Split) -> dict[str, float]:
    """AP of detections (n, m, 4), (n, m), (n, m) after non-maximum suppression, 100 a picture."""
    found = *suppressed(boxes, scores, labels), split.boxes, split.labels
    return average_precision(*[part.detach().cpu().numpy() for part in found])


def network(settings: dict) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The untrained detector and an example's arguments, to count parameters and FLOPs."""
    return build(settings), (torch.empty(1, 1, SIDE, SIDE),)


def passes(settings: dict) -> float:
    """Forward-equivalents of an example: three a training example."""
    return 3.0 * settings["steps"] * settings["batch"]
