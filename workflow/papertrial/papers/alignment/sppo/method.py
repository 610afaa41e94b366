"""Self-Play Preference Optimization: find a policy that no response beats, where preferences may go round in circles.

A policy that multiplies each response's probability by exp(eta * its win rate against the policy itself) plays
multiplicative weights against itself; the average of its iterates then tends to a Nash policy. On matrix games
the update is exact; with a network, a round regresses the log-ratio to the last round's policy on sampled win rates.

Source: Wu, Sun, Yuan, Ji, Yang, Gu (2024), Self-Play Preference Optimization for Language Model Alignment,
arXiv:2405.00675.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods import preference_losses
from papertrial.testbeds import prefgame
from papertrial.testbeds import prefgame_contextual as testbed

if TYPE_CHECKING:
    from torch import Tensor


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """Play one kind of game; a method is what its settings change of the problem's."""
    return {"exact": exact, "contextual": contextual}[problem["mode"]]({**problem, **settings}, seeds, device)


# Matrix games, exact updates


def multiplicative_update(log_pi: np.ndarray, P: np.ndarray, eta: float) -> np.ndarray:
    """pi_{t+1}(y) proportional to pi_t(y) exp(eta P(y > pi_t)), as logits (..., K) for games P (..., K, K)."""
    return log_pi + eta * prefgame.against(P, prefgame.softmax(log_pi))


def self_play(P: np.ndarray, log_pi: np.ndarray, eta: float, T: int) -> dict[str, np.ndarray]:
    """The average of the T policies played, and the one after the last update, (..., K) both.

    Args:
        P: games (..., K, K).
        log_pi: (..., K) logits of the first policy.
    """
    total = np.zeros_like(log_pi)
    for _ in range(T):
        total += prefgame.softmax(log_pi)
        log_pi = multiplicative_update(log_pi, P, eta)
    return {"average": total / T, "last": prefgame.softmax(log_pi)}


def exact(s: dict, seeds: list[int], device: str) -> Results:
    """From uniform, T updates with the theorem's step eta = sqrt(8 ln K / T); a seed is a game.

    Rows: the duality gap for every K and T.
    """
    rows = []
    for K in s["K"]:
        P = np.stack([prefgame.make_game(s["kind"], K, seed) for seed in seeds])  # (S, K, K)
        for T in s["T"]:
            found = self_play(P, np.zeros((len(seeds), K)), np.sqrt(8 * np.log(K) / T), T)
            gaps = prefgame.gap(P, found[s["iterate"]])
            rows += [{"seed": seed, "K": K, "T": T, "gap": g} for seed, g in zip(seeds, gaps.tolist(), strict=True)]
    return Results(rows)


# Prompts and a network, sampled updates. w and l: log-ratios of the chosen and the rejected response to the
# round's first policy; p_w and p_l: their win rates among the sampled; s: the settings with the temperature.

LOSSES: dict[str, Callable[..., "Tensor"]] = {
    "sppo": lambda w, l, p_w, p_l, s: preference_losses.sppo(w, l, p_w, p_l, eta=s["eta"]),
    "dpo": lambda w, l, p_w, p_l, s: preference_losses.dpo(w, l, beta=s["beta"]),
    "ipo": lambda w, l, p_w, p_l, s: preference_losses.ipo(w, l, tau=s["tau"]),
    # SPPO's targets, but asked of the difference of the two responses only
    "sppo-difference": lambda w, l, p_w, p_l, s: (w - l - s["eta"] * (p_w - p_l)) ** 2,
}
LABELS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "win rates": lambda p, rng: p,
    "shuffled win rates": lambda p, rng: rng.permuted(p, axis=-1),
}


def best_and_worst(
    P: np.ndarray, pi: np.ndarray, k: int, draws: list[int], labels: str = "win rates"
) -> tuple[np.ndarray, np.ndarray]:
    """Of k responses sampled a prompt, those of the highest and the lowest win rate among the k, and these rates.

    Args:
        P: (n, R, R).
        pi: (n, R), what the responses are drawn from.
        draws: seed of the draws; the labels have a generator of their own.

    Returns:
        y, p: (n, 2) both, chosen first.
    """
    # a last number that isn't 0, since numpy can't tell [a, b] from [a, b, 0, 0]
    y = testbed.sample(pi, k, np.random.default_rng([*draws, 1]))  # (n, k)
    p = LABELS[labels](testbed.sampled_win_rates(P, y), np.random.default_rng([*draws, 2]))
    ends = p.argsort(axis=-1, kind="stable")[:, [-1, 0]]
    return np.take_along_axis(y, ends, -1), np.take_along_axis(p, ends, -1)


def best_of_k(P: np.ndarray, pi: np.ndarray, k: int, seed: int, times: int = 256) -> np.ndarray:
    """How often each response is the best of k sampled from pi, (n, R), counted in ``times`` draws."""
    counts, n = np.zeros_like(pi), np.arange(len(pi))
    for i in range(times):
        y, _ = best_and_worst(P, pi, k, [seed, 2, i])
        counts[n, y[:, 0]] += 1
    return counts / times


DECODE: dict[str, Callable[..., np.ndarray]] = {"sampling": lambda P, pi, k, seed: pi, "best of k": best_of_k}


def one_round(
    s: dict, t: int, seeds: list[int], prompts: list[testbed.Prompts], x: "Tensor", policy: testbed.Policy
) -> tuple[testbed.Policy, np.ndarray, list[Row]]:
    """Sample from the policy, label, and fit the loss to it, starting there.

    Args:
        prompts: each seed's n of this round.
        x: (S, n, R, 16) their features.

    Returns:
        the new policy; the change of both responses' log-probability (S, n, 2); the mean of it during training.
    """
    log_ref = testbed.log_policy(policy, x)  # (S, n, R)
    pairs = [
        best_and_worst(own.P, pi, s["k"], [seed, 1, t], s["labels"])
        for seed, own, pi in zip(seeds, prompts, log_ref.exp().cpu().numpy(), strict=True)
    ]
    y, p = (testbed.to_tensor(np.stack(part), x.device.type) for part in zip(*pairs, strict=True))  # (S, n, 2)
    every = slice(None)

    def log_ratio(log_pi: "Tensor", rows: slice) -> "Tensor":
        return (log_pi - log_ref[:, rows]).gather(-1, y[:, rows])  # (S, batch, 2)

    def loss(log_pi: "Tensor", rows: slice) -> "Tensor":
        return LOSSES[s["loss"]](*log_ratio(log_pi, rows).unbind(-1), *p[:, rows].unbind(-1), s)  # (S, batch)

    traces = []

    def watch(step: int, policy: testbed.Policy) -> None:
        if step % s["watch"] == 0:
            means = log_ratio(testbed.log_policy(policy, x).detach(), every).mean(1).tolist()
            traces.extend(
                {"seed": seed, "T": t + 1, "step": step, "chosen": c, "rejected": r}
                for seed, (c, r) in zip(seeds, means, strict=True)
            )

    policy = testbed.train_round(
        policy, loss, x, steps=s["steps"] // s["rounds"], lr=s["lr"], batch=s["batch"], watch=watch
    )
    return policy, log_ratio(testbed.log_policy(policy, x), every).cpu().numpy(), traces


def likelihood(chosen: np.ndarray, rejected: np.ndarray) -> Row:
    """Fractions that moved the right way and mean changes, from the changes (n,) of the log-probabilities."""
    up, down = (chosen > 0).mean(), (rejected < 0).mean()
    return {"up": float(up), "down": float(down), "d_c": float(chosen.mean()), "d_r": float(rejected.mean())}


def contextual(s: dict, seeds: list[int], device: str) -> Results:
    """Train a network for some rounds of self-play from a random reference, and hold it against the reference.

    Rows: win rates on validation and test prompts; of the last round's training prompts the fraction whose chosen
    response became likelier (up) and whose rejected one became less likely (down), and the mean changes of the
    log-probabilities (d_c, d_r). The state keeps, for each seed and its validation and test prompts, the policy and
    P(y > policy), (n, R) both: P(policy A > policy B) is then the sum over y of A(y) P(y > B).
    """
    sizes = {name: s[f"n_{name}"] for name in ("train", "val", "test")}
    games = [testbed.contextual(s["kind"], sizes, seed, s["responses"]) for seed in seeds]
    x = {name: testbed.stack([game[name] for game in games], device) for name in sizes}  # (S, n, R, 16)
    reference = testbed.init_policy(seeds, s["hidden"], device)

    policy, traces, changes = reference, [], [{} for _ in seeds]
    n = s["n_train"] // max(s["rounds"], 1)
    for t in range(s["rounds"]):
        part = slice(t * n, (t + 1) * n)  # fresh prompts every round
        prompts = [game["train"][part] for game in games]
        policy, change, trace = one_round(s, t, seeds, prompts, x["train"][:, part], policy)
        changes = [likelihood(*own.T) for own in change]
        traces += trace

    rows = [
        {"seed": seed, "K": s["responses"], "T": s["rounds"]} | own for seed, own in zip(seeds, changes, strict=True)
    ]
    state = {}
    for name in ("val", "test"):
        pi, ref = (testbed.probabilities(p, x[name]) for p in (policy, reference))  # (S, n, R)
        for i, row in enumerate(rows):
            P = games[i][name].P
            deployed = DECODE[s["decode"]](P, pi[i], s["k"], row["seed"])
            row[f"win_{name}"] = float(prefgame.win_rate(P, deployed, ref[i]).mean())
            kept = {"policy": deployed, "against": prefgame.against(P, deployed)}
            state |= {f"{name}.{key}.{row['seed']}": a.astype(np.float32) for key, a in kept.items()}
    return Results(rows, traces=traces, state=state)
