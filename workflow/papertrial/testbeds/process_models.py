"""Two small models of chemical processes, cheap enough to sample by the thousand: settings in [0, 1], outputs O(1).

They stand for the simulators that networks are trained to replace; their constants are made up.
"""

import numpy as np

PROCESS = (
    "temperature 1", "temperature 2", "temperature 3", "time 1", "time 2", "time 3", "catalyst", "feed", "bypass",
    "separation",
)  # fmt: skip
PROCESS_OUTPUTS = ("product", "by-product", "energy", "unreacted")

KINETICS = ("temperature", "time", "methanol", "catalyst", "oil", "water")
KINETICS_OUTPUTS = ("ester", "impurities", "cost", "oil left")


def reactor_chain(x: np.ndarray) -> np.ndarray:
    """A -> B -> C in three stirred tanks in series, first order; B is wanted.

    Args:
        x: (B, 10) settings PROCESS. Hotter tanks are faster, the second reaction gains more by it.

    Returns:
        (B, 4) PROCESS_OUTPUTS: B recovered, C, energy spent, A left.
    """
    t, time = x[:, :3], 0.2 + 3 * x[:, 3:6]
    catalyst, feed, bypass, separation = 0.5 + x[:, 6], 0.5 + x[:, 7], 0.5 * x[:, 8], x[:, 9]
    k1 = 0.5 * np.exp(3 * (t - 0.5)) * catalyst[:, None]
    k2 = 0.1 * np.exp(5 * (t - 0.5))
    a, b, c = feed * (1 - bypass), np.zeros(len(x)), np.zeros(len(x))
    for i in range(3):
        if i == 1:
            a = a + feed * bypass  # what went round the first tank
        a_out = a / (1 + k1[:, i] * time[:, i])
        b_out = (b + a - a_out) / (1 + k2[:, i] * time[:, i])
        a, b, c = a_out, b_out, a + b + c - a_out - b_out
    recovered = b * (0.6 + 0.4 * (1 - np.exp(-3 * separation)))
    energy = 0.3 * (time * (0.3 + t**2)).sum(axis=1) + 0.6 * separation**2 + 0.2 * catalyst
    return np.stack([recovered, c, energy, a], axis=1)


def transesterification(x: np.ndarray, steps: int = 60) -> np.ndarray:
    """Oil + methanol <-> ester, in three reversible steps over di- and monoglyceride; water turns ester into soap.

    Args:
        x: (B, 6) settings KINETICS.
        steps: of the fourth-order Runge-Kutta method.

    Returns:
        (B, 4) KINETICS_OUTPUTS: ester over the most there can be, di- and monoglyceride and soap over the oil, cost,
        and the share of oil left.
    """
    t, time, methanol, catalyst = x[:, 0], 0.2 + 0.8 * x[:, 1], 3 + 6 * x[:, 2], 0.2 + 0.8 * x[:, 3]
    oil, water = 0.8 + 0.4 * x[:, 4], x[:, 5]
    active = catalyst * (1 - 0.5 * water)
    forward = [k * np.exp(e * (t - 0.5)) * active for k, e in ((1.2, 1.5), (1.8, 1.2), (2.4, 0.8))]
    backward = [k * np.exp(e * (t - 0.5)) * active for k, e in ((0.8, 1.0), (1.2, 1.0), (0.2, 1.2))]
    spoil = 0.4 * np.exp(2 * (t - 0.5)) * catalyst * water

    def rate(s: np.ndarray) -> np.ndarray:
        """s: (6, B) oil, di-, monoglyceride, methanol, ester, soap."""
        r = [
            forward[i] * s[i] * s[3] - backward[i] * below * s[4]
            for i, below in enumerate((s[1], s[2], oil - s[0] - s[1] - s[2]))  # glycerol is what is left
        ]
        soap = spoil * s[4]
        return np.stack([-r[0], r[0] - r[1], r[1] - r[2], -sum(r), sum(r) - soap, soap])

    zero = np.zeros(len(x))
    s, h = np.stack([oil, zero, zero, oil * methanol, zero, zero]), time / steps
    for _ in range(steps):
        q1 = rate(s)
        q2 = rate(s + h / 2 * q1)
        q3 = rate(s + h / 2 * q2)
        q4 = rate(s + h * q3)
        s = s + h / 6 * (q1 + 2 * q2 + 2 * q3 + q4)
    cost = 0.08 * methanol + 0.5 * catalyst + 0.4 * t + 0.4 * time - 0.2 * water
    return np.stack([s[4] / (3 * oil), (s[1] + s[2] + s[5]) / oil, cost, s[0] / oil], axis=1)
