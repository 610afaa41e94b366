"""The tuning rule: equally many learning rates for every optimizer, one more where the best is on the edge."""

import math
from collections.abc import Callable, Sequence


def tune(attempt: Callable[[float], float], grid: Sequence[float], edge: bool = True) -> tuple[float, list[tuple]]:
    """The learning rate with the lowest loss, and all trials as (rate, loss).

    Args:
        attempt: learning rate -> final validation loss; what diverges (not finite) counts as +inf.
        grid: rates in ascending order.
        edge: try one more point outwards, by the ratio of the last two, if the best one is at an end.
    """

    def trial(lr: float) -> tuple[float, float]:
        loss = attempt(lr)
        return lr, loss if math.isfinite(loss) else math.inf

    trials = [trial(lr) for lr in grid]
    best = _best(trials)
    if edge and best in (grid[0], grid[-1]):
        inner = grid[1] if best == grid[0] else grid[-2]
        trials.append(trial(best * best / inner))
    return _best(trials), trials


def _best(trials: list[tuple]) -> float:
    return min(trials, key=lambda trial: trial[1])[0]
