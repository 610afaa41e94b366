"""Bilevel optimisation with m lower-level problems, of which an iteration meets I, with B samples each.

The hyper-gradient of block i is grad_x f_i - grad_xy g_i [grad_yy g_i]^-1 grad_y f_i at y_i*(x). All that a block needs
(its gradient, its Hessian or a Hessian-vector product) is tracked by a blockwise variance-reduced estimator (MSVR):

    s_i <- (1 - a) s_i + a h_i(w_t) + c (h_i(w_t) - h_i(w_{t-1})),     c = (m - I) / (I (1 - a)) + (1 - a),

for the sampled blocks, with the same samples at both points; c makes up for the rounds in which a block isn't met.
BSVRB-v1 tracks Hessians and inverts them, BSVRB-v2 tracks v_i = [grad_yy g_i]^-1 grad_y f_i by Hessian-vector products.

Source: Hu, Qiu, Guo, Zhang, Yang, ICML 2023.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import numpy as np

from papertrial.papers.convex.multi_block_bilevel.families import Family, Quadratic, pick, put

Array = np.ndarray
Path = Iterator[Array]  # x (C, S, p) after every iteration
RADIUS = 100.0  # of the ball that holds every v_i


def correction(a: Array, m: int, I: int) -> Array:
    return (1 - a) + (0 if m == I else (m - I) / (I * (1 - a)))


def no_correction(a: Array, m: int, I: int) -> Array:
    return 0 * a


def msvr(s: Array, new: Array, old: Array, a: Array, c: Array) -> Array:
    return (1 - a) * s + a * new + c * (new - old)


def project(v: Array) -> Array:
    return v * np.minimum(1, RADIUS / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-300))


def zeros(family: Family, C: int, *shape: int) -> Array:
    return np.zeros((C, len(family.seeds), family.m, *shape))


def begin(family: Family, C: int) -> Array:
    return np.broadcast_to(family.start, (C, *family.start.shape))


# Step lengths are arrays (C, 1, 1): one a configuration, for x; ``block`` adds an axis, for the blocks' variables.


def block(step: Array) -> Array:
    return step[..., None]


def bsvrb_v2(
    family: Family,
    I: int,
    B: int,
    *,
    a: Array,
    b: Array,
    tau: Array,
    eta: Array,
    c: Callable[[Array, int, int], Array] = correction,
    tau_v: float = 1.0,
) -> Path:
    """Algorithm 2; tau_v scales the step of v, in units of tau."""
    a, tau, c = block(a), block(tau) / family.L, block(c(a, family.m, I))
    x, y = begin(family, len(a)), zeros(family, len(a), family.q)
    v, s, u = y, y, y
    before, z = None, None
    for d in family.draws(I, B):
        now = x, pick(y, d.idx), pick(v, d.idx)
        old = now if before is None else (before[0], pick(before[1], d.idx), pick(before[2], d.idx))
        (h, w, G), (h_old, w_old, G_old) = (
            (family.grad_y_g(x, y, d), family.hvp(x, y, v, d) - family.grad_y_f(x, y, d), family.reduced(x, y, v, d))
            for x, y, v in (now, old)
        )
        s_i = msvr(pick(s, d.idx), h, h_old, a, c)
        u_i = msvr(pick(u, d.idx), w, w_old, a, c)
        z = G if z is None else G + (1 - b) * (z - G_old)
        before = x, y, v
        s, u = put(s, d.idx, s_i), put(u, d.idx, u_i)
        y, v = put(y, d.idx, now[1] - tau * s_i), put(v, d.idx, project(now[2] - tau_v * tau * u_i))
        x = x - eta * z
        yield x


def inverse_product(H: Array, r: Array) -> Array:
    return np.linalg.solve(H, r[..., None])[..., 0]


def at_least(H: Array, smallest: float) -> Array:
    """The nearest symmetric matrices whose eigenvalues are no less."""
    values, vectors = np.linalg.eigh(np.where(np.isfinite(H), H, 0))
    return (vectors * np.maximum(values, smallest)[..., None, :]) @ vectors.swapaxes(-1, -2)


def bsvrb_v1(family: Family, I: int, B: int, *, a: Array, b: Array, tau: Array, eta: Array) -> Path:
    """Algorithm 1."""
    c = correction(a, family.m, I)
    a_H, c_H = a[..., None, None], c[..., None, None]
    a, tau, c = block(a), block(tau) / family.L, block(c)
    x, y = begin(family, len(a)), zeros(family, len(a), family.q)
    s, H = y, zeros(family, len(a), family.q, family.q) + np.eye(family.q)
    before, z = None, None
    for d in family.draws(I, B):
        now = x, pick(y, d.idx), pick(H, d.idx)
        old = now if before is None else (before[0], pick(before[1], d.idx), pick(before[2], d.idx))
        (h, K, G), (h_old, K_old, G_old) = (
            (
                family.grad_y_g(x, y, d),
                family.hess(x, y, d),
                family.reduced(x, y, inverse_product(H, family.grad_y_f(x, y, d)), d),
            )
            for x, y, H in (now, old)
        )
        s_i = msvr(pick(s, d.idx), h, h_old, a, c)
        H_i = at_least(msvr(now[2], K, K_old, a_H, c_H), family.smallest)
        z = G if z is None else G + (1 - b) * (z - G_old)
        before = x, y, H
        s, H = put(s, d.idx, s_i), put(H, d.idx, H_i)
        y = put(y, d.idx, now[1] - tau * s_i)
        x = x - eta * z
        yield x


def moving_average(family: Family, I: int, B: int, *, a: Array, b: Array, tau: Array, eta: Array) -> Path:
    """SOX-like: s, u and z are moving averages of plain mini-batch values, each sample used at one point."""
    a, tau = block(a), block(tau) / family.L
    x, y = begin(family, len(a)), zeros(family, len(a), family.q)
    v, s, u, z = y, y, y, None
    for d in family.draws(I, B):
        y_i, v_i = pick(y, d.idx), pick(v, d.idx)
        s_i = (1 - a) * pick(s, d.idx) + a * family.grad_y_g(x, y_i, d)
        u_i = (1 - a) * pick(u, d.idx) + a * (family.hvp(x, y_i, v_i, d) - family.grad_y_f(x, y_i, d))
        G = family.reduced(x, y_i, v_i, d)
        z = G if z is None else (1 - b) * z + b * G
        s, u = put(s, d.idx, s_i), put(u, d.idx, u_i)
        y, v = put(y, d.idx, y_i - tau * s_i), put(v, d.idx, project(v_i - tau * u_i))
        x = x - eta * z
        yield x


def rsvrb(family: Family, I: int, B: int, *, a: Array, b: Array, tau: Array, eta: Array) -> Path:
    """RSVRB-like: STORM on all blocks at once, with m / I times what the sampled ones say; all blocks move."""
    a, tau = block(a), block(tau) / family.L
    x, y = begin(family, len(a)), zeros(family, len(a), family.q)
    v, s, u, before, z = y, y, y, None, None
    more = family.m / I
    for d in family.draws(I, B):
        now = x, pick(y, d.idx), pick(v, d.idx)
        old = now if before is None else (before[0], pick(before[1], d.idx), pick(before[2], d.idx))
        (h, w, G), (h_old, w_old, G_old) = (
            (family.grad_y_g(x, y, d), family.hvp(x, y, v, d) - family.grad_y_f(x, y, d), family.reduced(x, y, v, d))
            for x, y, v in (now, old)
        )
        s = put((1 - a) * s, d.idx, (1 - a) * pick(s, d.idx) + more * (h - (1 - a) * h_old))
        u = put((1 - a) * u, d.idx, (1 - a) * pick(u, d.idx) + more * (w - (1 - a) * w_old))
        z = G if z is None else G + (1 - b) * (z - G_old)
        before = x, y, v
        y, v, x = y - tau * s, project(v - tau * u), x - eta * z
        yield x


INNER = 4


def double_loop(family: Quadratic, I: int, B: int, *, a: Array, b: Array, tau: Array, eta: Array) -> Path:
    """BSA-like, for the quadratic family: INNER plain steps in y and v of the sampled blocks, with fresh samples each,
    then one in x; a scales the step of v."""
    tau, a = block(tau) / family.L, block(a)
    x, y = begin(family, len(a)), zeros(family, len(a), family.q)
    v, z = y, None
    draws = family.draws(I, B)
    for d in draws:
        y_i, v_i = pick(y, d.idx), pick(v, d.idx)
        for again in islice(draws, INNER):
            again = again._replace(idx=d.idx)
            y_i, v_i = (
                y_i - tau * family.grad_y_g(x, y_i, again),
                project(v_i - a * tau * (family.hvp(x, y_i, v_i, again) - family.grad_y_f(x, y_i, again))),
            )
        G = family.reduced(x, y_i, v_i, d)
        z = G if z is None else (1 - b) * z + b * G
        y, v = put(y, d.idx, y_i), put(v, d.idx, v_i)
        x = x - eta * z
        yield x


def copies(family: Family, I: int, B: int, **steps: Array) -> Path:
    """The control: B samples that are copies of one, of I blocks that are copies of one."""
    return bsvrb_v2(family, 1, 1, **steps)


# The algorithms, and how many times an iteration uses each of its I B samples.
ALGORITHMS: dict[str, tuple[Callable[..., Path], int]] = {
    "v1": (bsvrb_v1, 2),
    "v2": (bsvrb_v2, 2),
    "moving_average": (moving_average, 1),
    "rsvrb": (rsvrb, 2),
    "double_loop": (double_loop, INNER + 1),
    "copies": (copies, 2),
    "no_correction": (partial(bsvrb_v2, c=no_correction), 2),
    "no_second_order": (partial(bsvrb_v2, tau_v=0.0), 2),
}
