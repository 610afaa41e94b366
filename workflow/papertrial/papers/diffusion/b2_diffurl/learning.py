"""Policy gradients for a diffusion sampler: DDPO, and what B2-DiffuRL changes about it.

A round samples, scores and updates. DDPO trains on all steps of independent samples. B2-DiffuRL trains on the last tau
steps only, tau growing with the rounds (BPT), and draws samples in branches: b continuations of one shared prefix, of
which the best and the worst are kept (BS), so that the reward's contrast comes from the steps that are trained.

Loss: -E min(rho A, clip(rho, 1 - eps, 1 + eps) A), rho the ratio of the new and old density of a step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from papertrial.papers.diffusion.b2_diffurl.policy import Task, law, log_density, roll

WINDOW = 8  # rounds over which rewards are standardised
LIMIT = 5.0  # of advantages


@dataclass(frozen=True)
class Recipe:
    """How a round differs from DDPO's.

    progressive: train on the last tau = shortest + floor((T - shortest + 1) i / R) steps in round i, else on all.
    branches: b continuations of every prefix; 1 for independent samples.
    select: keep only the best and the worst of every branch group, where its scores differ.
    epochs: how often samples are used, as long as that takes no more image-steps than DDPO does.
    permute: the control: rewards are shuffled within their group.
    kl: weight of the divergence from the pre-trained policy.
    raw: advantages are the rewards themselves.
    """

    progressive: bool = False
    branches: int = 1
    select: bool = False
    epochs: int = 1
    permute: bool = False
    kl: float = 0.0
    raw: bool = False

    def interval(self, i: int, R: int, T: int, shortest: int) -> int:
        """tau in round i of R."""
        return shortest + (T - shortest + 1) * i // R if self.progressive else T


@dataclass(frozen=True)
class Settings:
    """lr and clip of the updates; reward queries a round; minibatches that DDPO's round has; the shortest interval."""

    lr: float
    clip: float
    queries: int
    minibatches: int
    shortest: int


@dataclass
class Scores:
    """Rewards, standardised within their label over the last rounds."""

    classes: int
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, reward: Tensor, label: Tensor) -> Tensor:
        self.seen = [*self.seen, (reward, label)][-WINDOW:]
        rewards, labels = (torch.cat(part) for part in zip(*self.seen, strict=True))
        score = torch.zeros_like(reward)
        for k in range(self.classes):
            of_label, here = rewards[labels == k], label == k
            if len(of_label):
                score[here] = (reward[here] - of_label.mean()) / (of_label.std(unbiased=False) + 1e-4)
        return score.clamp(-LIMIT, LIMIT)


@dataclass
class Counts:
    """What a run has used: rewards asked for, image-steps trained on, image-steps sampled."""

    queries: int = 0
    trained: int = 0
    sampled: int = 0


def branch(
    model: nn.Module, task: Task, n: int, b: int, tau: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """n // b prefixes down to the last tau steps, then b continuations of each.

    Returns:
        states (tau + 1, groups * b, ...), a group's members side by side; log densities (tau, groups * b); labels.
    """
    groups = n // b
    label = task.labels(groups)
    prefix, _ = roll(model, task, task.noise(groups, generator), label, 0, task.T - tau, generator)
    x, label = prefix[-1].repeat_interleave(b, 0), label.repeat_interleave(b)
    return *roll(model, task, x, label, task.T - tau, task.T, generator), label


def extremes(score: Tensor, b: int, generator: torch.Generator) -> Tensor:
    """Indices of every group's best member with a score above 0 and worst below 0; none of a group without spread."""
    tie = 1e-6 * torch.rand(score.shape, generator=generator).to(score.device)
    grouped, broken = score.reshape(-1, b), (score + tie).reshape(-1, b)
    first = torch.arange(0, len(score), b, device=score.device)
    spread = grouped.amax(1) - grouped.amin(1) > 1e-5
    best, worst = broken.argmax(1), broken.argmin(1)
    keep_best = spread & (grouped.gather(1, best[:, None])[:, 0] > 0)
    keep_worst = spread & (grouped.gather(1, worst[:, None])[:, 0] < 0)
    return torch.cat([(first + best)[keep_best], (first + worst)[keep_worst]])


def permuted(reward: Tensor, b: int, generator: torch.Generator) -> Tensor:
    """Rewards shuffled within every group of b."""
    order = torch.rand((len(reward) // b, b), generator=generator).argsort(1).to(reward.device)
    return reward.reshape(-1, b).gather(1, order).flatten()


def clipped_loss(log_new: Tensor, log_old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """(n,) the pessimistic one of the importance-weighted and the clipped objective, negated."""
    rho = (log_new - log_old).exp()
    return -torch.minimum(rho * advantage, rho.clamp(1 - clip, 1 + clip) * advantage)


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    states: Tensor,
    log_old: Tensor,
    label: Tensor,
    advantage: Tensor,
    recipe: Recipe,
    how: Settings,
    pretrained: nn.Module | None,
    generator: torch.Generator,
) -> int:
    """Minibatch steps on all transitions of states (tau + 1, m, ...), in random order; the image-steps they took."""
    tau, m = log_old.shape
    budget, used = how.queries * task.T, 0
    size = budget // how.minibatches
    for _ in range(recipe.epochs):
        order = torch.randperm(tau * m, generator=generator).to(states.device)
        for rows in order.split(size):
            rows = rows[: budget - used]
            if not len(rows):
                return used
            k, i = rows // m, rows % m
            at = k + task.T - tau
            s, s_next = task.levels[at], task.levels[at + 1]
            x, x_next = states[k, i], states[k + 1, i]
            mean, sd = law(model, x, s, s_next, label[i])
            loss = clipped_loss(log_density(x_next, mean, sd), log_old[k, i], advantage[i], how.clip).mean()
            if pretrained is not None:
                with torch.no_grad():
                    anchor, _ = law(pretrained, x, s, s_next, label[i])
                loss = loss + recipe.kl * ((mean - anchor) / sd).square().flatten(1).sum(1).mean() / 2
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            used += len(rows)
    return used


def learn(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    how: Settings,
    R: int,
    seed: int,
    pretrained: nn.Module | None = None,
    watch: Callable[[int, float, Counts], bool] | None = None,
) -> Counts:
    """Fine-tune ``model`` in place for R rounds.

    Args:
        pretrained: the policy that a recipe with ``kl`` stays close to.
        watch: called after every round with (rounds done, the round's mean reward before its update, counts); if it
            returns True, learning ends.
    """
    generator, counts = torch.Generator().manual_seed(seed), Counts()
    optimizer = torch.optim.Adam(model.parameters(), how.lr)
    scores, b = Scores(task.classes), recipe.branches
    for i in range(R):
        tau = recipe.interval(i, R, task.T, how.shortest)
        states, log_old, label = branch(model, task, how.queries, b, tau, generator)
        reward = task.reward(states[-1], label)
        mean = float(reward.mean())
        if recipe.permute:
            reward = permuted(reward, b, generator)
        advantage = reward if recipe.raw else scores(reward, label)
        if recipe.select:
            kept = extremes(advantage, b, generator)
            states, log_old, label, advantage = states[:, kept], log_old[:, kept], label[kept], advantage[kept]
        counts.queries += len(reward)
        counts.sampled += len(reward) // b * (task.T - tau) + len(reward) * tau
        anchor = pretrained if recipe.kl else None
        counts.trained += update(
            model, optimizer, task, states, log_old, label, advantage, recipe, how, anchor, generator
        )
        if watch and watch(i + 1, mean, counts):
            break
    return counts
