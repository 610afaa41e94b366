"""Preference games that depend on a prompt, and a small network as the policy.

A prompt x is a vector, and so is each of its R responses y. Smooth random functions of [x, y] give a response
its reward and its positions in the planes of the cyclic part (see ``prefgame.blade_logits``). The policy is a
perceptron on [x, y] with an exact softmax over a prompt's R responses: weights are shared, so that an update for
one prompt moves the others, and every likelihood and win rate is exact.

Games are numpy; policies are dicts of torch tensors whose first axis is the seed, so seeds train side by side.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from papertrial.testbeds.prefgame import PLANES, blade_logits, sigmoid

if TYPE_CHECKING:
    import torch

Policy = dict[str, "torch.Tensor"]

PROMPT, RESPONSE = 8, 8  # features of a prompt, of a response
FEATURES = PROMPT + RESPONSE
# Within a prompt about a tenth of all triples of responses are then cyclic (a quarter would be pure chance) and
# one prompt in twenty has a response that beats all others, while 200 prompts still say something about new ones.
LENGTH_SCALE = 3.0
COEFFICIENTS = {"blade": (0.3, 1.5), "bt": (1.0, 0.0)}  # of the reward and of the cyclic part


@dataclass(frozen=True)
class Prompts:
    """n prompts with their responses and preferences.

    features  (n, R, 16): [x, y].
    logits    (n, R, R): log-odds that response i is preferred to j.
    """

    features: np.ndarray
    logits: np.ndarray

    @property
    def P(self) -> np.ndarray:
        """(n, R, R): the probability that response i is preferred to j."""
        return sigmoid(self.logits)

    def __getitem__(self, part: slice) -> "Prompts":
        return Prompts(self.features[part], self.logits[part])


def contextual(kind: str, sizes: Mapping[str, int], seed: int, responses: int = 64) -> dict[str, Prompts]:
    """Independent sets of prompts under one preference; the seed fixes the preference.

    Args:
        kind: blade (a weak reward, a strong cyclic part) or bt (rewards only).
        sizes: name of a set -> number of prompts, as {"train": 600, "val": 50, "test": 200}. A set's prompts
            depend on its place in this mapping, not on the other sets' sizes.
    """
    scores = smooth_function(np.random.default_rng([seed, 0]), FEATURES, 1 + 2 * PLANES)
    sets = {}
    for place, (name, n) in enumerate(sizes.items(), start=1):
        rng = np.random.default_rng([seed, place])
        x = np.broadcast_to(rng.standard_normal((n, 1, PROMPT)), (n, responses, PROMPT))
        features = np.concatenate([x, rng.standard_normal((n, responses, RESPONSE))], axis=-1)
        s = np.stack([scores(z) for z in features])  # (n, R, 7), a prompt at a time to stay small
        r, c = s[..., 0], s[..., 1:].reshape(n, responses, PLANES, 2)
        sets[name] = Prompts(features, blade_logits(r, c, *COEFFICIENTS[kind]))
    return sets


def smooth_function(
    rng: np.random.Generator, d: int, outputs: int, waves: int = 128
) -> Callable[[np.ndarray], np.ndarray]:
    """A draw of a Gaussian process on R^d of variance 1 with a Gaussian kernel, by random Fourier features."""
    w = rng.standard_normal((d, waves)) / LENGTH_SCALE
    phase = rng.uniform(0, 2 * np.pi, waves)
    a = rng.standard_normal((waves, outputs)) * np.sqrt(2 / waves)
    return lambda z: np.cos(z @ w + phase) @ a


def sample(pi: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """k responses a prompt, drawn from pi (n, R) with replacement: (n, k).

    One uniform number a draw, so policies that share a generator's seed share their luck.
    """
    below = pi.cumsum(-1)[:, None, :-1] < rng.random((len(pi), k, 1))  # (n, k, R-1)
    return below.sum(-1)


def sampled_win_rates(P: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean preference of each of the k sampled responses y (n, k) over all k, itself included as 1/2: (n, k)."""
    n = np.arange(len(P))[:, None, None]
    return P[n, y[:, :, None], y[:, None, :]].mean(-1)


def to_tensor(array: np.ndarray, device: str) -> "torch.Tensor":
    """On the device, in the precision of the array, but never double on MPS, which has no doubles."""
    import torch

    narrow = device == "mps" and array.dtype == np.float64
    return torch.as_tensor(array.astype(np.float32) if narrow else array, device=device)


def stack(prompts: Sequence[Prompts], device: str = "cpu") -> "torch.Tensor":
    """The features of every seed's prompts as one tensor (S, n, R, 16)."""
    return to_tensor(np.stack([own.features for own in prompts]), device)


def init_policy(seeds: list[int], hidden: int, device: str = "cpu") -> Policy:
    """A random perceptron 16-hidden-1 for every seed, weights normal with variance 1/inputs."""
    rngs = [np.random.default_rng([seed, 1000]) for seed in seeds]
    w1 = np.stack([rng.standard_normal((FEATURES, hidden)) for rng in rngs]) / np.sqrt(FEATURES)
    w2 = np.stack([rng.standard_normal((hidden, 1)) for rng in rngs]) / np.sqrt(hidden)
    weights = {"w1": w1, "b1": np.zeros((len(seeds), 1, hidden)), "w2": w2}  # a last bias would cancel in the softmax
    return {name: to_tensor(w, device) for name, w in weights.items()}


def log_policy(policy: Policy, features: "torch.Tensor") -> "torch.Tensor":
    """log pi(y | x) for features (S, n, R, 16): (S, n, R)."""
    hidden = (features.flatten(1, 2) @ policy["w1"] + policy["b1"]).relu()  # (S, n*R, hidden)
    return (hidden @ policy["w2"]).reshape(features.shape[:-1]).log_softmax(-1)


def probabilities(policy: Policy, features: "torch.Tensor") -> np.ndarray:
    """pi(y | x) as an array (S, n, R)."""
    return log_policy(policy, features).detach().exp().cpu().numpy()


def train_round(
    policy: Policy,
    loss: Callable[["torch.Tensor", slice], "torch.Tensor"],
    features: "torch.Tensor",
    *,
    steps: int,
    lr: float,
    batch: int,
    watch: Callable[[int, Policy], None] = lambda step, policy: None,
) -> Policy:
    """Adam from ``policy`` on the mean loss of ``batch`` prompts a step; the seeds don't touch each other.

    Args:
        loss: (log pi of the batch (S, batch, R), which prompts these are) -> losses (S, batch).
        features: (S, n, R, 16); the steps pass over the n prompts, which stand in random order, again and again.
        watch: called with the policy before every step and after the last.
    """
    import torch

    policy = {name: w.clone().requires_grad_() for name, w in policy.items()}
    optimizer = torch.optim.Adam(policy.values(), lr=lr)
    starts = range(0, features.shape[1], batch)
    for step in range(steps):
        watch(step, policy)
        start = starts[step % len(starts)]
        rows = slice(start, start + batch)
        optimizer.zero_grad()
        loss(log_policy(policy, features[:, rows]), rows).mean(1).sum().backward()
        optimizer.step()
    watch(steps, policy)
    return {name: w.detach() for name, w in policy.items()}
