"""One step rule for stochastic, adversarial and mixed losses: optimistic online mirror descent (Euclidean).

In round t the player moves from xhat_t by a guess M_t of the coming gradient, sees f_t, and moves xhat by its gradient:

    x_t = Proj(xhat_t - eta_t M_t),    xhat_{t+1} = Proj(xhat_t - eta_t grad f_t(x_t)),    M_t = grad f_{t-1}(x_{t-1}).

What the guess misses, Vbar_t = sum ||grad f_s(x_s) - M_s||^2, sets the step; in expectation it is at most of the order
of sigma^2_{1:T} + Sigma^2_{1:T}, and so is the square of the regret.

Source: arXiv 2302.04552 (steps for convex, strongly convex and exp-concave losses); optimistic FTRL for the same
losses, arXiv 2202.06544; AdaGrad-norm, arXiv 1806.01811.

Players are coroutines: they yield x_t and are sent its gradient. Points are (..., *lanes, d), as in the testbed.
"""

from collections.abc import Callable, Collection, Generator, Iterator
from itertools import count

import numpy as np

from papertrial.engine.results import Inputs, Results, Row
from papertrial.testbeds.online_convex import (
    Classification,
    IndefiniteQuadratics,
    Stream,
    ball,
    burst,
    fading_noise,
    rotating,
    stationary,
)

Player = Generator[np.ndarray, np.ndarray, None]
Step = Callable[[int, np.ndarray], np.ndarray | float]  # round t and Vbar_{t-1} -> eta_t


# ---- step rules


def convex(stream: Stream) -> Step:
    """eta_t = D / sqrt(delta + 4 G^2 + Vbar_{t-1}), delta = 10 D^2 L^2."""
    D = 2 * stream.radius
    return lambda t, V: D / np.sqrt(10 * D**2 * stream.L**2 + 4 * stream.G**2 + V)


def nearly_free(stream: Stream) -> Step:
    """The same with 0.1 for the constants, where G is as small as 1/sqrt(T)."""
    return lambda t, V: 2 * stream.radius / np.sqrt(0.1 + V)


def strongly_convex(stream: Stream) -> Step:
    """eta_t = 2 / (lambda t)"""
    return lambda t, V: 2 / (stream.strong * t)


STEPS: dict[str, Callable[[Stream], Step]] = {
    "convex": convex,
    "nearly-free": nearly_free,
    "strongly-convex": strongly_convex,
}


# ---- players


def optimistic_omd(
    x0: np.ndarray, radius: float, step: Step, guess: Callable[[np.ndarray], np.ndarray] = lambda g: g
) -> Player:
    """M_t is the guess from the last gradient, which is 0 before the first round."""
    xhat, last, V = x0, np.zeros_like(x0), np.zeros(x0.shape[:-1])
    for t in count(1):
        eta = np.asarray(step(t, V))[..., None]
        g = yield ball(xhat - eta * guess(last), radius)
        xhat = ball(xhat - eta * g, radius)
        V = V + ((g - last) ** 2).sum(axis=-1)
        last = g


def stale_omd(x0: np.ndarray, radius: float, step: Step) -> Player:
    """The control of c1: M_t = -grad f_{t-1}(x_{t-1}), with the same steps."""
    return optimistic_omd(x0, radius, step, guess=np.negative)


def optimistic_ftrl(x0: np.ndarray, radius: float, step: Step) -> Player:
    """x_t = Proj(x_0 - eta_t (sum of all gradients + M_t)), with the same M_t and steps."""
    total, last, V = np.zeros_like(x0), np.zeros_like(x0), np.zeros(x0.shape[:-1])
    for t in count(1):
        g = yield ball(x0 - np.asarray(step(t, V))[..., None] * (total + last), radius)
        total, V = total + g, V + ((g - last) ** 2).sum(axis=-1)
        last = g


def ogd(x0: np.ndarray, radius: float, eta: Callable[[int], np.ndarray | float]) -> Player:
    x = x0
    for t in count(1):
        g = yield x
        x = ball(x - eta(t) * g, radius)


def adagrad_norm(x0: np.ndarray, radius: float) -> Player:
    """eta_t = D / sqrt(sum_{s<=t} ||g_s||^2)"""
    x, S = x0, np.zeros(x0.shape[:-1])
    while True:
        g = yield x
        S = S + (g**2).sum(axis=-1)
        x = ball(x - 2 * radius * g / np.sqrt(np.maximum(S, 1e-300))[..., None], radius)


def optimistic_newton(x0: np.ndarray, radius: float, beta: float) -> Player:
    """Exp-concave losses: the metric A_t = I + (beta/2) sum_{s<t} g_s g_s^T in place of I/eta_t."""
    xhat, last = x0, np.zeros_like(x0)
    A = np.broadcast_to(np.eye(x0.shape[-1]), (*x0.shape, x0.shape[-1])).copy()
    while True:
        solve = lambda v, A=A: np.linalg.solve(A, v[..., None])[..., 0]  # noqa: E731
        g = yield ball_in_metric(xhat - solve(last), A, radius)
        xhat = ball_in_metric(xhat - solve(g), A, radius)
        A = A + beta / 2 * g[..., :, None] * g[..., None, :]
        last = g


def ball_in_metric(y: np.ndarray, A: np.ndarray, radius: float) -> np.ndarray:
    """argmin (x - y)^T A (x - y) over the ball: x = (A + nu I)^-1 A y, nu by bisection."""
    values, Q = np.linalg.eigh(A)
    c = values * np.einsum("...ji,...j->...i", Q, y)
    low, high = np.zeros(y.shape[:-1]), np.linalg.norm(c, axis=-1) / radius
    for _ in range(60):
        nu = (low + high) / 2
        outside = ((c / (values + nu[..., None])) ** 2).sum(axis=-1) > radius**2
        low, high = np.where(outside, nu, low), np.where(outside, high, nu)
    inside = np.linalg.norm(y, axis=-1) <= radius
    x = np.einsum("...ij,...j->...i", Q, c / (values + high[..., None]))
    return np.where(inside[..., None], y, x)


# ---- methods: a player for a stream


def start(stream: Stream) -> np.ndarray:
    return np.zeros((*stream.lanes, stream.d))


def with_factors(power: float) -> Callable[..., Player]:
    """OGD with eta_t = c D / (G t^power T^(1/2 - power)), one leading lane for each c of ``factors``."""

    def make(stream: Stream, step: Step, factors: list[float]) -> Player:
        c = np.reshape(factors, (-1, *[1] * (len(stream.lanes) + 1)))
        longest = 2 * stream.radius / (stream.G * stream.T ** (0.5 - power))
        return ogd(np.zeros((len(factors), *stream.lanes, stream.d)), stream.radius, lambda t: c * longest / t**power)

    return make


METHODS: dict[str, Callable[..., Player]] = {
    "omd": lambda stream, step: optimistic_omd(start(stream), stream.radius, step),
    "omd-stale": lambda stream, step: stale_omd(start(stream), stream.radius, step),
    "oftrl": lambda stream, step: optimistic_ftrl(start(stream), stream.radius, step),
    "ogd": with_factors(0.5),
    "ogd-constant": with_factors(0.0),
    "adagrad": lambda stream, step: adagrad_norm(start(stream), stream.radius),
    "newton": lambda stream, step: optimistic_newton(start(stream), stream.radius, 1 / (16 * stream.G * stream.radius)),
}
METHODS["omd-even-noise"] = METHODS["omd-endless-burst"] = METHODS["omd"]  # controls that change the noise


def play(stream: Stream, player: Player, rounds: Collection[int]) -> Iterator[np.ndarray]:
    """The regret after each of the rounds, (factors or 1, *lanes)."""
    x, loss = next(player), 0.0
    for t in range(1, max(rounds) + 1):
        loss = loss + stream.value(t, x)
        if t in rounds:
            regret = loss - stream.best(t)
            yield regret.reshape(-1, *stream.lanes)
        x = player.send(stream.gradient(t, x))


# ---- games: the rows of one problem; a factor c of OGD's steps has columns of its own, that of c = 1 without a suffix

Make = Callable[[Stream], Player]


def by_factor(name: str, values: np.ndarray, factors: list[float]) -> Row:
    return {name if c == 1 else f"{name}@{c:g}": float(v) for c, v in zip(factors, values, strict=True)}


def bounded(stream: Stream, regret: np.ndarray) -> np.ndarray:
    """rho = max(Reg_T, 0) / (D (sqrt(sigma^2_{1:T}) + sqrt(Sigma^2_{1:T})) + D G)"""
    sigma2, Sigma2 = stream.variation()
    return np.maximum(regret, 0) / (2 * stream.radius * (np.sqrt(sigma2) + np.sqrt(Sigma2) + stream.G))


def rotation(problem: dict, make: Make, factors: list[float], seeds: list[int], inputs: Inputs) -> list[Row]:
    periods, sigmas = problem["periods"], problem["sigmas"]
    stream = rotating(seeds, problem["T"], periods, sigmas)
    (regret,) = play(stream, make(stream), [stream.T])  # (factors, periods, sigmas, seeds)
    rho = bounded(stream, regret)
    return [
        {"seed": seed, "T": stream.T, "period": P, "sigma": sigma, "regret": float(regret[factors.index(1), i, j, s])}
        | by_factor("rho", rho[:, i, j, s], factors)
        for i, P in enumerate(periods)
        for j, sigma in enumerate(sigmas)
        for s, seed in enumerate(seeds)
    ]


def fading(problem: dict, make: Make, factors: list[float], seeds: list[int], inputs: Inputs) -> list[Row]:
    rows = []
    for T in problem["horizons"]:
        stream = fading_noise(seeds, T, problem["power"])
        (regret,) = play(stream, make(stream), [T])
        rows += [
            {"seed": seed, "T": T, **by_factor("regret", r, factors)} for seed, r in zip(seeds, regret.T, strict=True)
        ]
    return rows


def indefinite(problem: dict, make: Make, factors: list[float], seeds: list[int], inputs: Inputs) -> list[Row]:
    stream = IndefiniteQuadratics(seeds, problem["T"], problem["scales"])
    (regret,) = play(stream, make(stream), [stream.T])
    rho, share = bounded(stream, regret), stream.indefinite()
    return [
        {"seed": seed, "T": stream.T, "scale": scale, "indefinite": float(share[i, s])}
        | by_factor("rho", rho[:, i, s], factors)
        for i, scale in enumerate(problem["scales"])
        for s, seed in enumerate(seeds)
    ]


def targets(problem: dict, make: Make, factors: list[float], seeds: list[int], inputs: Inputs) -> list[Row]:
    stream = {"burst": burst, "stationary": stationary}[problem["noise"]](seeds, problem["T"], problem["sd"])
    first, last, points = problem["rounds"]  # the first and the last as shares of T
    rounds = [round(share * stream.T) for share in np.linspace(first, last, points)]
    return [
        {"seed": seed, "t": t, **by_factor("regret", r, factors)}
        for t, regret in zip(rounds, play(stream, make(stream), rounds), strict=True)
        for seed, r in zip(seeds, regret.T, strict=True)
    ]


def cancer(problem: dict, make: Make, factors: list[float], seeds: list[int], inputs: Inputs) -> list[Row]:
    """Benign or malignant, each example once: shuffled, sorted by class, or shuffled for one half, then sorted."""
    x, y = inputs.datasets["breast_cancer"]["x"], 2 * inputs.datasets["breast_cancer"]["y"] - 1
    x = np.column_stack([(x - x.mean(axis=0)) / x.std(axis=0), np.ones(len(x))])
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    orders = np.stack([np.random.default_rng(seed).permutation(len(y)) for seed in seeds])
    by_class = lambda order: order[np.argsort(y[order], kind="stable")]  # noqa: E731
    half = len(y) // 2
    arranged = {
        "shuffled": orders,
        "sorted": np.stack([by_class(o) for o in orders]),
        "mixed": np.stack([np.concatenate([o[:half], by_class(o[half:])]) for o in orders]),
    }
    rows = []
    for name, order in arranged.items():
        stream = Classification(x, y, order, problem["radius"])
        (regret,) = play(stream, make(stream), [stream.T])
        rows += [
            {"seed": seed, "order": name, **by_factor("regret", r, factors)}
            for seed, r in zip(seeds, regret.T, strict=True)
        ]
    return rows


GAMES: dict[str, Callable[..., list[Row]]] = {
    "rotation": rotation,
    "fading": fading,
    "indefinite": indefinite,
    "targets": targets,
    "cancer": cancer,
}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """Regrets, one row a seed and a cell of the problem. A control may put its own noise ``instead``."""
    problem = {**problem, **settings.get("instead", {})}
    tuned = {"factors": settings["factors"]} if "factors" in settings else {}

    def make(stream: Stream) -> Player:
        return METHODS[method](stream, STEPS[problem["step"]](stream), **tuned)

    return Results(GAMES[problem["game"]](problem, make, settings.get("factors", [1]), seeds, inputs))
