"""Rounds of self-play: fakes of the present model, a few updates against them, the best checkpoint is the next one.

Continued likelihood training and the control go through the same rounds with another loss, so all see the same real
samples, averages and choice of checkpoints.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from papertrial.models.training import Training, fit
from papertrial.papers.diffusion.direct_discriminative_optimization.benches import Bench, Samples
from papertrial.papers.diffusion.direct_discriminative_optimization.loss import Objective


@dataclass(frozen=True)
class Rounds:
    """How much of everything.

    rounds, updates: of a run, of a round.
    batch: real samples an update, and as many fakes.
    fakes: samples of p_ref that a round draws from.
    every: updates between the checkpoints that a round chooses from; 0 keeps the last one.
    """

    rounds: int
    updates: int
    batch: int
    fakes: int
    every: int
    ema: float = 0.99


@dataclass(frozen=True)
class Setting:
    """Rate, temperature of the discriminator, weight of the fakes."""

    lr: float
    beta: float = 1.0
    alpha: float = 1.0


@dataclass(frozen=True)
class Stage:
    """The model at the end of a round, the update that it is from, and its score where there was a choice."""

    round: int
    model: nn.Module
    kept: int
    score: float | None


def opening(bench: Bench, seed: int) -> Stage:
    """The pre-trained model of a seed."""
    return Stage(0, bench.start(seed), 0, None)


def draw_fakes(bench: Bench, model: nn.Module, how: Rounds, seed: int, r: int) -> Samples:
    """Samples of p_ref for round r."""
    return bench.sample(model, how.fakes, 1_000_000 + 100 * seed + r)


def self_play(
    bench: Bench,
    stage: Stage,
    objective: Objective,
    setting: Setting,
    how: Rounds,
    seed: int,
    fakes: Samples | None = None,
) -> Iterator[Stage]:
    """The stage after every round.

    Args:
        stage: where it begins.
        fakes: the first round's, if there are some already.
    """
    for r in range(stage.round + 1, stage.round + how.rounds + 1):
        if objective.plays and (fakes is None or r > 1):
            fakes = draw_fakes(bench, stage.model, how, seed, r)
        stage = one_round(bench, stage, objective, setting, how, seed, fakes)
        yield stage


def one_round(
    bench: Bench,
    start: Stage,
    objective: Objective,
    setting: Setting,
    how: Rounds,
    seed: int,
    fakes: Samples | None,
) -> Stage:
    reference, r, n = start.model, start.round + 1, how.batch
    real = bench.real(how.updates * n, torch.Generator().manual_seed(1000 * seed + r))
    loss = difference_loss(bench, reference, objective, setting, real, fakes, n)
    best: Stage | None = None

    def watch(done: int, average: nn.Module) -> None:
        nonlocal best
        if how.every and done % how.every == 0:
            score = bench.score(average, seed)
            if best is None or score < best.score:
                best = Stage(r, deepcopy(average), done, score)

    training = Training(how.updates, setting.lr, decay=0.0, ema=how.ema)
    model = deepcopy(reference).requires_grad_(True)
    average, _ = fit(model, loss, training, 1000 * seed + r, watch=watch)
    return best or Stage(r, average, how.updates, None)


def difference_loss(
    bench: Bench,
    reference: nn.Module,
    objective: Objective,
    setting: Setting,
    real: Samples,
    fakes: Samples | None,
    n: int,
) -> Any:
    """The objective of n real samples and n fakes, for ``training.fit``; update k takes the k-th n real samples."""

    def loss(model: nn.Module, average: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        x, label = (v[step * n : (step + 1) * n] for v in real)
        if objective.plays:
            rows = torch.randint(len(fakes[0]), (n,), generator=generator).to(x.device)
            x, label = (torch.cat([a, b[rows]]) for a, b in zip((x, label), fakes, strict=True))  # (2n, ...)
        label, noise = bench.hide(label, generator), bench.noise(x, generator)
        delta = bench.log_density(model, x, label, noise)
        if objective.plays:
            with torch.no_grad():
                frozen = bench.log_density(reference, x, label, noise)
            delta = delta - frozen
        return objective.loss(delta[:n], delta[n:], setting.alpha, setting.beta, generator)

    return loss


def tuned(
    bench: Bench, objective: Objective, grids: Mapping[str, list[float]], search: str, how: Rounds, seed: int
) -> tuple[Setting, list[dict]]:
    """The setting with the smallest score on a tuning seed, and all that were tried.

    Args:
        grids: values of lr, beta and alpha; the objective says which of them it has.
        search: ``all`` combinations, or one setting after the ``other`` from the middle of the grids.
    """
    start = opening(bench, seed)
    fakes = draw_fakes(bench, start.model, how, seed, 1) if objective.plays else None
    names, scores = objective.tuned, {}

    def score(setting: Setting) -> float:
        if setting not in scores:
            for stage in self_play(bench, start, objective, setting, how, seed, fakes):
                last = stage
            scores[setting] = bench.score(last.model, seed) if last.score is None else last.score
        return scores[setting]

    if search == "all":
        best = min((Setting(**dict(zip(names, v, strict=True))) for v in product(*map(grids.get, names))), key=score)
    else:
        best = Setting(**{k: grids[k][len(grids[k]) // 2] for k in names})
        for k in names:
            best = min((replace(best, **{k: v}) for v in grids[k]), key=score)
    return best, [{"seed": seed, **{k: getattr(s, k) for k in names}, "score": v} for s, v in scores.items()]
