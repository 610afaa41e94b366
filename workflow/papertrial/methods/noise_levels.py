"""Noise levels of diffusion samplers: where along the way from noise to data a network is evaluated.

Every schedule is one and the same path in s = sigma/alpha (or lam = log(alpha/sigma) = -log s), so a sampler's grid
is a falling list of levels s. The VP-linear schedule gives these levels a time t in [0, 1].

Source: Karras et al. 2022 (arXiv 2206.00364) for ``karras``; Song et al. 2021 (arXiv 2011.13456) for VP-linear.
"""

from collections.abc import Callable

import numpy as np

S_MAX, S_MIN = 20.0, 0.02  # the levels that the image networks were trained for
BETA_MIN, BETA_MAX = 0.1, 20.0  # VP-linear


def vp_log_alpha(t: float | np.ndarray) -> float | np.ndarray:
    """log alpha of the VP-linear schedule at time t; sigma^2 = 1 - alpha^2."""
    return -0.25 * (BETA_MAX - BETA_MIN) * np.square(t) - 0.5 * BETA_MIN * np.asarray(t)


def vp_level(t: float | np.ndarray) -> float | np.ndarray:
    """The level s = sigma/alpha at VP time t."""
    return np.sqrt(np.expm1(-2 * vp_log_alpha(t)))


def vp_time(s: float | np.ndarray) -> float | np.ndarray:
    """The VP time of level s: the root of a t^2 + b t = log(1 + s^2)/2, in the form that keeps small t exact."""
    c = 0.5 * np.log1p(np.square(s))
    b = 0.5 * BETA_MIN
    return 2 * c / (b + np.sqrt(b * b + (BETA_MAX - BETA_MIN) * c))


def index_level(i: int | np.ndarray, count: int = 1000) -> float | np.ndarray:
    """The level of a discrete-time network's index i in 1..count: indices are equally spaced VP times."""
    first, last = vp_time(S_MIN), vp_time(S_MAX)
    return vp_level(first + (np.asarray(i) - 1) / (count - 1) * (last - first))


def _spaced(to: Callable, back: Callable) -> Callable[[int, float, float], np.ndarray]:
    def levels(steps: int, s_max: float, s_min: float) -> np.ndarray:
        u = back(np.linspace(to(s_max), to(s_min), steps + 1))
        u[0], u[-1] = s_max, s_min
        return u

    return levels


GRIDS = {
    "log": _spaced(np.log, np.exp),
    "karras": _spaced(lambda s: s ** (1 / 7), lambda u: u**7),
    "time": _spaced(vp_time, vp_level),
    "quad": _spaced(lambda s: np.sqrt(vp_time(s)), lambda u: vp_level(u**2)),
}


def grid(name: str, steps: int, s_max: float = S_MAX, s_min: float = S_MIN) -> np.ndarray:
    """The steps + 1 falling levels from s_max to s_min.

    Args:
        name: ``log`` (uniform in lam), ``karras`` (uniform in s^(1/7)), ``time`` (uniform in VP time) or ``quad``
            (uniform in its square root).
        steps: 0 gives s_max alone, from which one evaluation denoises.
    """
    return GRIDS[name](steps, s_max, s_min) if steps else np.array([s_max])
