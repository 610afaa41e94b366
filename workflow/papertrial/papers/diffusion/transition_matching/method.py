"""Transition matching: learn to sample the difference between data and noise, instead of its mean.

States X_t = (1 - t/T) X_0 + (t/T) X_T lie between noise X_0 and data X_T. Three models of one backbone size:

- flow matching: v = E[Y | X_t] with Y = X_T - X_0, integrated by Euler's or the midpoint rule;
- DTM: Y ~ p(Y | X_t), drawn by a small flow head on every token's hidden state; X_{t+1} = X_t + Y/T;
- FHTM: the states have independent noises, X_t = (1 - t/T) X_0^(t) + (t/T) X_T, and the sequence of all their tokens
  is generated from left to right by a causal transformer with the same head.

Source: Shaul et al. 2025 (arXiv 2506.23589).
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.samplers import balanced_labels
from papertrial.models.arrays import seeded
from papertrial.models.classifiers import SampleJudge
from papertrial.models.edm import Draw
from papertrial.models.picture_denoisers import training_pictures
from papertrial.models.training import Loss, Training, fit
from papertrial.papers.diffusion.transition_matching.kernels import exact_difference, flow, kept, transitions
from papertrial.papers.diffusion.transition_matching.networks import (
    Causal,
    FlowHead,
    LinearHead,
    Model,
    Parallel,
    PerceptronHead,
    to_pictures,
    to_tokens,
)
from papertrial.testbeds.mixtures import density

BEST = 0  # in the column ``evaluations``: at the count that was best on the tuning noise
Noise = Callable[[int], Tensor]  # how many draws a sample -> (n, draws, L, patch)
Sampler = Callable[[Model, Tensor, Noise, Tensor], Tensor]  # (model, X_0, noise, label) -> X_T, tokens


# Losses, for ``training.fit``.


def between(draw: Draw, p: dict, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X_t and Y as tokens (n, L, patch), u = t/T (n,) and labels, X_0 and t at random."""
    x, label = draw(p["batch"], generator)
    X_T = to_tokens(x, p["side"])
    X_0 = torch.randn(X_T.shape, generator=generator).to(x.device)
    u = torch.rand(len(x), generator=generator).to(x.device)
    return X_0 + u[:, None, None] * (X_T - X_0), X_T - X_0, u, label


def flow_matching_loss(draw: Draw, p: dict) -> Loss:
    def loss(model: Model, average: Model, step: int, generator: torch.Generator) -> Tensor:
        X_t, Y, u, label = between(draw, p, generator)
        return (model.head.mean(model.backbone(X_t, u, label)) - Y).square().mean()

    return loss


def dtm_loss(draw: Draw, p: dict) -> Loss:
    def loss(model: Model, average: Model, step: int, generator: torch.Generator) -> Tensor:
        X_t, Y, u, label = between(draw, p, generator)
        return model.head.loss(Y, model.backbone(X_t, u, label), p["draws"], generator)

    return loss


def fhtm_loss(draw: Draw, p: dict) -> Loss:
    """Teacher forcing over the tokens of X_1, ..., X_T, all in one pass."""
    T = p["transitions"]

    def loss(model: Model, average: Model, step: int, generator: torch.Generator) -> Tensor:
        x, label = draw(p["causal_batch"], generator)
        X_T = to_tokens(x, p["side"])[:, None]  # (n, 1, L, patch)
        n, _, L, patch = X_T.shape
        u = torch.arange(T + 1, device=x.device)[:, None, None] / T
        noise = torch.randn((n, T + 1, L, patch), generator=generator).to(x.device)
        states = ((1 - u) * noise + u * X_T).flatten(1, 2)  # (n, (T + 1) L, patch)
        h = model.backbone(states[:, :-1], label)  # (n, (T + 1) L, dim)
        return model.head.loss(states[:, L:], h[:, L:], p["draws"], generator)

    return loss


# Samplers.


def euler(steps: int) -> Sampler:
    def sample(model: Model, x: Tensor, noise: Noise, label: Tensor) -> Tensor:
        for t in range(steps):
            u = x.new_full((len(x),), t / steps)
            x = x + model.head.mean(model.backbone(x, u, label)) / steps
        return x

    return sample


def midpoint(steps: int) -> Sampler:
    def sample(model: Model, x: Tensor, noise: Noise, label: Tensor) -> Tensor:
        for t in range(steps):
            u = x.new_full((len(x),), t / steps)
            half = x + model.head.mean(model.backbone(x, u, label)) / (2 * steps)
            x = x + model.head.mean(model.backbone(half, u + 0.5 / steps, label)) / steps
        return x

    return sample


def difference_transitions(T: int, S: int, spread: float = 1.0) -> Sampler:
    """DTM with S steps of the head; ``spread`` 0 starts the head at y_0 = 0, which makes transitions deterministic."""

    def sample(model: Model, x: Tensor, noise: Noise, label: Tensor) -> Tensor:
        y_0 = spread * noise(T)
        for t in range(T):
            h = model.backbone(x, x.new_full((len(x),), t / T), label)
            x = x + model.head.generate(y_0[:, t], h, S) / T
        return x

    return sample


def full_history(T: int, S: int) -> Sampler:
    """FHTM, token by token, with a cache."""

    def sample(model: Model, x: Tensor, noise: Noise, label: Tensor) -> Tensor:
        L, y_0 = x.shape[1], noise(T).flatten(1, 2)  # (n, T L, patch)
        h, cache = model.backbone.start(x, label)
        tokens = []
        for i in range(T * L):
            tokens.append(model.head.generate(y_0[:, i], h, S))
            if i + 1 < T * L:
                h = model.backbone.extend(tokens[-1], L + i, cache)
        return torch.stack(tokens[-L:], 1)

    return sample


def pictures_of(sampler: Sampler, model: Model, p: dict, seed: int, n: int) -> tuple[Tensor, Tensor]:
    """n pictures and their labels from a noise seed's draws; X_0 is common to all models and samplers."""
    device, L = next(model.parameters()).device, (p["size"] // p["side"]) ** 2
    rng, label = np.random.default_rng(seed), balanced_labels([seed], n).to(device)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal((*shape, L, p["side"] ** 2), np.float32)).to(device)

    X_0, parts = normal(n), []
    with torch.inference_mode():
        for x, y in zip(X_0.split(p["split"]), label.split(p["split"]), strict=True):
            parts.append(to_pictures(sampler(model, x, partial(normal, len(x)), y), p["side"]))
    return torch.cat(parts), label


# Experiments with pictures.


def build(causal: bool, head: type, p: dict) -> Model:
    L, patch, network = (p["size"] // p["side"]) ** 2, p["side"] ** 2, p["network"]
    sizes = {"patch": patch, "dim": network["dim"], "layers": network["layers"], "heads": network["heads"]}
    backbone = Causal(length=(p["transitions"] + 1) * L - 1, **sizes) if causal else Parallel(length=L, **sizes)
    return Model(backbone, head(patch, network["dim"], network["width"]))


def train(causal: bool, head: type, loss: Callable, p: dict, seed: int, inputs: Inputs, device: str) -> Model:
    """Equal seeds give equal data, noise and times to models that draw the same numbers."""
    draw, _ = training_pictures(inputs.datasets["fashion_mnist"], p["size"], p["images"], device)
    model = seeded(lambda: build(causal, head, p), seed).to(device)
    return fit(model, loss(draw, p), Training.of(p), seed)[0]


def of_flow_matching(p: dict, seed: int, inputs: Inputs, device: str) -> dict[str, tuple[Model, Callable]]:
    """{variant: (model, evaluations -> sampler)}: two heads, two solvers."""
    heads = {"linear": LinearHead, "perceptron": PerceptronHead}
    models = {k: train(False, head, flow_matching_loss, p, seed, inputs, device) for k, head in heads.items()}
    solvers = {"euler": euler, "midpoint": lambda k: midpoint(k // 2)}
    return {f"{m}, {s}": (models[m], solvers[s]) for m, s in product(models, solvers)}


def of_dtm(spread: float, p: dict, seed: int, inputs: Inputs, device: str) -> dict[str, tuple[Model, Callable]]:
    model = train(False, FlowHead, dtm_loss, p, seed, inputs, device)
    return {f"S = {S}": (model, partial(difference_transitions, S=S, spread=spread)) for S in p["head_steps"]}


def of_fhtm(p: dict, seed: int, inputs: Inputs, device: str) -> dict[str, tuple[Model, Callable]]:
    model = train(True, FlowHead, fhtm_loss, p, seed, inputs, device)
    return {f"S = {S}": (model, lambda k, S=S: full_history(p["transitions"], S)) for S in p["head_steps"]}


VARIANTS = {
    "flow-matching": of_flow_matching,
    "dtm": partial(of_dtm, 1.0),
    "deterministic": partial(of_dtm, 0.0),
    "fhtm": of_fhtm,
}


def multiply_adds(model: Model, calls: Counter) -> float:
    """Of a sample, from counted evaluations: of L tokens at once, or of one token after another (with the cache)."""
    backbone, head, causal = model.backbone, model.head, isinstance(model.backbone, Causal)
    if causal:  # every token of the sequence passes once
        return backbone.multiply_adds(backbone.length + 1) + calls["head"] * head.multiply_adds()
    at_once = backbone.multiply_adds(backbone.length + 1)
    return calls["backbone"] * at_once + calls["head"] * backbone.length * head.multiply_adds()


def pictures(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c1, c2, c4: FD by backbone evaluations.

    At every count the variant (head and solver, or S) is the best on the tuning noise; so is the count in the rows
    BEST. These and ``shown`` have all noise seeds, the other counts the first one.
    """
    judge, found = SampleJudge(inputs.models["clf8"]["0"], device), Results([])
    counts = [BEST] if method == "fhtm" else p["evaluations"]
    for seed in seeds:
        variants = VARIANTS[method](p, seed, inputs, device)

        def measured(name: str, k: int, noise: int, n: int, variants: dict = variants) -> Row:
            model, sampler = variants[name]
            before = model.calls
            x, label = pictures_of(sampler(k), model, p, noise, n)
            parts = -(-n // p["split"])
            calls = Counter({c: v // parts for c, v in (model.calls - before).items()})
            return {**judge(x, label.cpu()), "multiply_adds": float(multiply_adds(model, calls))}

        tried = {(k, v): measured(v, k, p["tuning_noise"], p["tuning_n"])["fd"] for k, v in product(counts, variants)}
        found.traces += [{"seed": seed, "evaluations": k, "variant": v, "fd": fd} for (k, v), fd in tried.items()]
        variant = {k: min(variants, key=lambda v: tried[k, v]) for k in counts}
        best = min((k for k in counts if k == BEST or k >= p["fewest"]), key=lambda k: tried[k, variant[k]])
        rows = {}
        for k, noise in product([*counts, BEST], p["noise_seeds"]):
            at = best if k == BEST else k
            if (noise == p["noise_seeds"][0] or k in (BEST, p["shown"])) and (k, noise) not in rows:
                row = rows.get((at, noise)) or measured(variant[at], at, noise, p["n"])
                rows[k, noise] = {**row, "seed": seed, "noise": noise, "evaluations": k, "count": at}
        found.rows += rows.values()
        if seed == seeds[0]:
            model, sampler = variants[variant[best]]
            x, _ = pictures_of(sampler(best), model, p, p["noise_seeds"][0], 40)
            found.state["samples"] = x.cpu().numpy().astype(np.float16)
        found.traces.append({"seed": seed, "variant": "real pictures", "fd": judge.floor(seed, p["n"])})
    return found


# Exact kernels.

KERNELS = {"dtm": transitions, "kept-difference": kept}


def exact(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c3: how far X_T still varies given X_0, and how far its mean is from the flow's endpoint, by T."""
    data, starts, replicas = density(p["density"]), p["starts"], p["replicas"]
    difference, found = exact_difference(data), Results([])
    for seed in seeds:
        X_0 = torch.from_numpy(np.random.default_rng(seed).standard_normal((starts, 2)))
        end = flow(data, X_0, p["flow_steps"])
        for T in p["T"]:
            generator = torch.Generator().manual_seed(1000 * seed + T)
            X_T = KERNELS[method](difference, X_0.repeat(replicas, 1), T, generator)
            X_T = X_T.reshape(replicas, starts, 2)
            variance = X_T.var(0).sum(1).median()
            distance = (X_T.mean(0) - end).norm(dim=1).median()
            row = {"seed": seed, "noise": 0, "evaluations": T}
            found.rows.append({**row, "variance": float(variance), "distance": float(distance)})
    return found


MEASURES = {"pictures": pictures, "exact": exact}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    return MEASURES[problem["measure"]]({**problem, **settings}, method, seeds, inputs, device)
