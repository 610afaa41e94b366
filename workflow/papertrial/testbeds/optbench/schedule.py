"""Learning-rate schedules: the factor on the peak rate at update k = 0 .. steps - 1."""

import math
from collections.abc import Callable

Schedule = Callable[[int, int], float]


def warmup_cosine(k: int, steps: int, warmup: float = 0.05, floor: float = 0.1) -> float:
    """Linear up to the peak over the first 5% of the updates, then a half cosine down to 10% at the last one."""
    rise = max(1, round(warmup * steps))
    if k < rise:
        return (k + 1) / rise
    return floor + (1 - floor) * _half_cosine(k - rise, steps - rise)


def hold_cosine(k: int, steps: int, floor: float = 0.01) -> float:
    """The peak for the first half of the updates, then a half cosine down to ``floor`` at the last one."""
    held = steps // 2
    return 1.0 if k < held else floor + (1 - floor) * _half_cosine(k - held, steps - held)


def _half_cosine(k: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * k / max(1, steps - 1)))
