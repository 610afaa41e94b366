"""prompt8: a diffusion model of captioned 8 x 8 pictures, built to be pruned, and the classifier that judges it.

The denoiser is a residual MLP that reads an encoded caption. Its hidden units come in groups, and groups and whole
blocks can be gated sample by sample, or taken out: a ``Mask`` says what is kept, ``pruned`` gives the smaller network.

The classifier knows ten items of clothing in all three styles. Both are one part, a seed.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papertrial.engine.results import Inputs, Results
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import heun, initial_noise, solve
from papertrial.models.arrays import Arrays, Checkpoint, from_arrays, from_settings, seeded, to_arrays, to_settings
from papertrial.models.classifiers import SampleJudge, build, classify
from papertrial.models.edm import EDM, batched
from papertrial.models.training import Training, fit
from papertrial.testbeds.fashion import pictures
from papertrial.testbeds.prompts import ITEMS, STYLES, WIDTH, Wardrobe, book

FREQUENCIES = 8  # of the noise level's embedding


class Mask(NamedTuple):
    """Gates in [0, 1], of one network or of every sample (leading dimension n).

    units: (..., blocks, groups); blocks: (..., blocks).
    """

    units: Tensor
    blocks: Tensor


class Prompt(NamedTuple):
    """What a gated network is conditioned on: encoded captions (n, 32) and a mask with leading dimension n."""

    caption: Tensor
    mask: Mask


class Block(nn.Module):
    """(n, width) -> (n, width): normalise, shift and scale by the embedding, two layers, add."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.scale_shift = nn.Linear(width, 2 * width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, h: Tensor, embedding: Tensor, units: Tensor | None = None, block: Tensor | None = None) -> Tensor:
        """units (n, groups) and block (n,) multiply hidden groups and the block's output."""
        scale, shift = self.scale_shift(embedding).chunk(2, dim=1)
        hidden = F.silu(self.up(torch.addcmul(shift, self.norm(h), 1 + scale)))
        if units is None:
            return h + self.down(hidden)
        hidden = (hidden.unflatten(1, (units.shape[1], -1)) * units[:, :, None]).flatten(1)
        return h + block[:, None] * self.down(hidden)


class GatedMLP(nn.Module):
    """F(x, c_noise, prompt) of flattened pictures; the prompt is a caption (n, 32), or a ``Prompt`` with gates.

    Args:
        dim: pixels of a picture.
        hidden: units of every block; a block with none is left out.
    """

    def __init__(self, dim: int, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.dim, self.width, self.hidden = dim, width, tuple(hidden)
        self.stem = nn.Linear(dim, width)
        self.embed = nn.Linear(2 * FREQUENCIES, width)
        self.embed_caption = nn.Linear(WIDTH, width)
        self.layers = nn.ModuleList([Block(width, units) for units in hidden if units])
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, c_noise: Tensor, prompt: Tensor | Prompt) -> Tensor:
        caption, mask = prompt if isinstance(prompt, Prompt) else (prompt, None)
        angle = c_noise[:, None] * 2.0 ** torch.arange(FREQUENCIES, device=x.device)  # (n, 8)
        e = F.silu(self.embed(torch.cat([angle.sin(), angle.cos()], dim=1)) + self.embed_caption(caption))
        h = self.stem(x.flatten(1))
        for i, block in enumerate(self.layers):
            h = block(h, e) if mask is None else block(h, e, mask.units[:, i], mask.blocks[:, i])
        return self.out(self.norm(h)).reshape(x.shape)

    def macs(self) -> int:
        """Multiply-adds of one sample."""
        return sum(layer.weight.numel() for layer in self.modules() if isinstance(layer, nn.Linear))


def costs(net: GatedMLP, groups: int) -> tuple[int, int, int]:
    """Multiply-adds: what can't be removed, of a block without hidden units, and of one group of hidden units."""
    first = net.layers[0]
    block, group = first.scale_shift.weight.numel(), 2 * first.up.weight.numel() // groups
    return net.macs() - len(net.layers) * (block + groups * group), block, group


def share(net: GatedMLP, mask: Mask) -> Tensor:
    """(...,) multiply-adds under a mask (gates may be probabilities) over those of the full network."""
    fixed, block, group = costs(net, mask.units.shape[-1])
    return (fixed + (mask.blocks * (block + group * mask.units.sum(-1))).sum(-1)) / net.macs()


def pruned(model: EDM, mask: Mask) -> EDM:
    """A smaller network that computes what the model does under a mask of zeros and ones (blocks, groups), (blocks,).

    A block is left out where its gate is 0, which a mask should say of a block that has no group left.
    """
    net, groups = model.net, mask.units.shape[-1]
    kept = [
        units.bool().repeat_interleave(block.up.out_features // groups) & bool(gate)
        for block, units, gate in zip(net.layers, mask.units, mask.blocks, strict=True)
    ]
    small = EDM(GatedMLP(net.dim, net.width, [int(k.sum()) for k in kept]), model.sigma_data)
    state, names = {}, iter(range(len(kept)))
    for name, value in net.state_dict().items():
        if not name.startswith("layers."):
            state[name] = value
    for i, k in enumerate(kept):
        if k.any():
            j = next(names)
            part = net.layers[i].state_dict()
            part |= {"up.weight": part["up.weight"][k], "up.bias": part["up.bias"][k]}
            part["down.weight"] = part["down.weight"][:, k]
            state |= {f"layers.{j}.{name}": value for name, value in part.items()}
    small.net.load_state_dict(state)
    return small.to(net.out.weight.device)


class Pictures:
    """Captioned pictures of a split, drawn at random.

    Args:
        data: Fashion-MNIST.
        split: train or test; images and captions are both split.
        images: of each split at most.
    """

    def __init__(self, data: Arrays, split: str, size: int, images: int, device: str = "cpu") -> None:
        x = torch.from_numpy(pictures(data[f"x_{split}"][:images], size)).to(device)
        self.wardrobe, of = Wardrobe(x, data[f"y_{split}"][:images]), book()
        self.style, self.item = torch.from_numpy(of.style), torch.from_numpy(of.item)
        self.encoded = torch.from_numpy(of.encoded).to(device)  # (240, 32)
        self.captions = torch.from_numpy(np.flatnonzero(of.held_out == (split == "test")))

    def show(self, caption: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A picture of every caption (n,), and the encoded captions (n, 32)."""
        x = self.wardrobe.draw(self.style[caption], self.item[caption], generator)
        return x, self.encoded[caption.to(x.device)]

    def draw(self, n: int, generator: torch.Generator, among: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Captions (n,) of the split, or among the given ones, all equally often; pictures; encoded captions."""
        among = self.captions if among is None else among
        caption = among[torch.randint(len(among), (n,), generator=generator)]
        return caption, *self.show(caption, generator)

    def balanced(self, n: int) -> Tensor:
        """Captions (n,) of the split that go through the cells, and through each cell's captions, in turn."""
        by_cell = self.captions.reshape(len(STYLES) * len(ITEMS), -1)
        i = torch.arange(n)
        return by_cell[i % len(by_cell), i // len(by_cell) % by_cell.shape[1]]


def levels_and_noise(x: Tensor, log_mean: float, log_sd: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """log s ~ N(log_mean, log_sd^2), (n,), and standard normal noise like x, drawn on the CPU."""
    s = (log_mean + log_sd * torch.randn(len(x), generator=generator)).exp()
    return s.to(x.device), torch.randn(x.shape, generator=generator).to(x.device)


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    """The classifier is trained first, in seconds and without checkpoints, then the denoiser."""
    seed, size, law = int(part), settings["size"], (settings["log_mean"], settings["log_sd"])
    data = inputs.datasets["fashion_mnist"]
    training, test = (Pictures(data, split, size, settings["images"], device) for split in ("train", "test"))
    judge = classifier(training, test, settings, seed, device)

    def loss(model: EDM, average: EDM, step: int, generator: torch.Generator) -> Tensor:
        _, x, encoded = training.draw(settings["batch"], generator)
        return model.loss(x, *levels_and_noise(x, *law, generator), encoded).mean()

    config = {"dim": size**2, **{k: settings[k] for k in ("width", "hidden")}}
    model = seeded(lambda: EDM(GatedMLP(**config), settings["sigma_data"]), seed).to(device)
    model, losses = fit(model, loss, Training.of(settings), seed, checkpoint)
    state = {"config": from_settings({"net": config, "sigma_data": settings["sigma_data"], "size": size})}
    state |= to_arrays(model.net.state_dict(), "net/") | {f"judge/{k}": v for k, v in judge.items()}

    gate, measure = settings["gate"], SampleJudge(judge, device)
    caption = test.balanced(gate["n"])
    levels = grid("karras", gate["steps"])
    noise = initial_noise([gate["seed"]], gate["n"], (1, size, size)).to(device)
    samples = solve(batched(model), levels[0] * noise, levels, heun, test.encoded[caption.to(device)])
    x, item = real(test, seed)
    row = {"seed": seed, "loss": float(np.mean([t["loss"] for t in losses[-4:]]))}
    row |= measure(samples, test.item[caption]) | {"floor": measure.floor(seed, gate["n"])}
    row |= {"classifier_accuracy": measure(x, item)["accuracy"]}
    return Results([row], traces=losses, state=state)


REAL = 9990  # pictures that samples are compared with: all cells equally often


def real(of: Pictures, seed: int) -> tuple[Tensor, np.ndarray]:
    """Pictures and their items, cell by cell in turn."""
    caption = of.balanced(REAL)
    return of.show(caption, torch.Generator().manual_seed(seed))[0], of.item[caption].numpy()


def classifier(training: Pictures, test: Pictures, settings: Mapping, seed: int, device: str) -> dict[str, np.ndarray]:
    """The state of a ``SampleJudge`` for all styles."""
    how = settings["classifier"]

    def loss(net: nn.Module, average: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        caption, x, _ = training.draw(how["batch"], generator)
        return F.cross_entropy(net.head(net.features(x)), training.item[caption].to(x.device))

    net = seeded(lambda: build(settings["size"]), seed).to(device)
    net, _ = fit(net, loss, Training.of(how), seed)
    features = {
        f"{name}_features": classify(net, real(of, seed)[0])[0] for name, of in (("test", test), ("train", training))
    }
    return {"size": np.array(settings["size"]), **features, **to_arrays(net.state_dict(), "net/")}


def load(state: Arrays, device: str = "cpu") -> EDM:
    """The trained denoiser, frozen."""
    config = to_settings(state["config"])
    model = EDM(GatedMLP(**config["net"]), config["sigma_data"])
    model.net.load_state_dict(from_arrays(state, "net/"))
    return model.to(device).eval().requires_grad_(False)


def load_judge(state: Arrays, device: str = "cpu") -> SampleJudge:
    return SampleJudge({k.removeprefix("judge/"): v for k, v in state.items() if k.startswith("judge/")}, device)


def size_of(state: Arrays) -> int:
    """Pixels a side."""
    return to_settings(state["config"])["size"]


def network(settings: dict) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The untrained denoiser and an example's arguments, to count parameters and FLOPs."""
    dim = settings["size"] ** 2
    model = EDM(GatedMLP(dim, settings["width"], settings["hidden"]), settings["sigma_data"])
    return model, (torch.empty(1, 1, settings["size"], settings["size"]), torch.ones(1), torch.zeros(1, WIDTH))


def passes(settings: dict) -> float:
    """Forward-equivalents of an example: three a training example, and the gate's sampling by Heun's rule."""
    gate = settings["gate"]
    return 3.0 * settings["steps"] * settings["batch"] + gate["n"] * (2 * gate["steps"] + 1)
