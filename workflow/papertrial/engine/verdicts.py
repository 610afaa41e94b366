"""From criteria to a verdict, by the statistic the card names.

A criterion holds one number against one threshold of the card:

- ``interval``: the card asks for a bound or an interval. It passes if the whole 95% percentile bootstrap
  interval lies beyond the threshold, fails if all of it lies on the other side, else it is undecided.
- ``point``: the card asks for a mean, a median, a slope, a count or an exact check. The estimate decides.
- ``at_least``: k of n criteria; passes with k passes, fails with more than n - k failures, else undecided.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature

import numpy as np

RESAMPLES = 10_000
AXIS_WISE = (np.mean, np.median, np.min, np.max)
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}

REPLICATED = "replicated"
NOT_REPLICATED = "not replicated"
INCONCLUSIVE = "inconclusive"
VACUOUS = "vacuous"
NOT_MEASURED = "not measured"
VERDICTS = (REPLICATED, NOT_REPLICATED, INCONCLUSIVE, VACUOUS, NOT_MEASURED)

Statistic = Callable[..., float]
Samples = np.ndarray | Sequence[float] | Sequence[np.ndarray]


@dataclass(frozen=True)
class Criterion:
    """One number held against one threshold; ``passed`` is None where it is undecided."""

    name: str
    estimate: float
    low: float | None
    high: float | None
    op: str
    threshold: float
    n: int
    passed: bool | None
    kind: str
    further: int | None = None  # how many more samples would settle it, where it is undecided and that can be said


def bootstrap(samples: Samples, statistic: Statistic | None = None) -> tuple[float, float, float]:
    """Estimate and two-sided 95% percentile bootstrap interval (10,000 resamples, seed 0).

    Args:
        samples: (n, ...) array, resampled along its first axis, so what belongs together (a seed's values on
            both sides of a difference) stays together; or a list of such arrays, the strata, each
            resampled by itself.
        statistic: of the (n, ...) array, or of the list of strata; the mean of all values by default.

    Returns:
        estimate, low, high; low and high are NaN where a stratum has fewer than two samples.
    """
    strata = _strata(samples)
    whole = strata if isinstance(samples, list | tuple) and np.ndim(samples[0]) else strata[0]
    estimate = float(np.concatenate([s.ravel() for s in strata]).mean() if statistic is None else statistic(whole))
    if min(map(len, strata)) < 2 or not math.isfinite(estimate):
        return estimate, math.nan, math.nan

    if statistic in AXIS_WISE and len(strata) == 1 and strata[0].ndim == 1:  # all resamples in one call

        def value(index: np.ndarray, axis: int) -> np.ndarray:
            return statistic(strata[0][index], axis=axis)

    elif statistic is None:

        def value(*index: np.ndarray, axis: int) -> np.ndarray:  # index: (..., n) a stratum
            drawn = [s.reshape(len(s), -1).mean(axis=1)[i] for s, i in zip(strata, index, strict=True)]
            return np.concatenate(drawn, axis=axis).mean(axis=axis)

    else:

        def value(*index: np.ndarray) -> float:
            drawn = [s[i] for s, i in zip(strata, index, strict=True)]
            return statistic(drawn if whole is strata else drawn[0])

    from scipy import stats  # half a second, and only judging needs it

    bounds = stats.bootstrap(
        [np.arange(len(s)) for s in strata],
        value,
        vectorized="axis" in signature(value).parameters,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return estimate, float(bounds.low), float(bounds.high)


def _strata(samples: Samples) -> list[np.ndarray]:
    if isinstance(samples, list | tuple) and np.ndim(samples[0]):
        return [np.asarray(s, dtype=float) for s in samples]
    return [np.asarray(samples, dtype=float)]


def interval(
    name: str,
    samples: Samples,
    op: str,
    threshold: float,
    statistic: Statistic | None = None,
    *,
    limits: tuple[float, float] | None = None,
) -> Criterion:
    """The card asks that a bound or an interval lies beyond the threshold.

    Args:
        name: what the number is, in a few words.
        samples: as for ``bootstrap``; a single sample leaves the criterion undecided.
        op: one of > >= < <=.
        threshold: the card's.
        statistic: as for ``bootstrap``.
        limits: another interval that the card names (Wilson's, say) instead of the bootstrap's.
    """
    if limits is None:
        estimate, low, high = bootstrap(samples, statistic)
    else:
        estimate, (low, high) = float(np.mean(samples) if statistic is None else statistic(samples)), limits
    compare = OPERATORS[op]
    near, far = (low, high) if op in (">", ">=") else (high, low)
    if math.isnan(near):
        passed = None
    elif compare(near, threshold):
        passed = True
    else:
        passed = None if compare(far, threshold) else False
    n = sum(map(len, _strata(samples)))
    edge = low if estimate > threshold else high
    further = _further(estimate, edge, threshold, n) if passed is None else None
    return Criterion(name, estimate, _real(low), _real(high), op, threshold, n, passed, "interval", further)


def point(
    name: str,
    samples: Samples | float,
    op: str,
    threshold: float,
    statistic: Statistic | None = None,
) -> Criterion:
    """The card asks about the estimate itself; its interval is printed where there is one.

    A bare number is a count, a slope or an exact check that has no samples of its own (n = 1).
    """
    if not isinstance(samples, list | tuple) and np.ndim(samples) == 0:
        estimate, low, high, n = float(samples), math.nan, math.nan, 1
    else:
        estimate, low, high = bootstrap(samples, statistic)
        n = sum(map(len, _strata(samples)))
    passed = bool(OPERATORS[op](estimate, threshold))
    return Criterion(name, estimate, _real(low), _real(high), op, threshold, n, passed, "point")


def at_least(name: str, k: int, parts: Sequence[Criterion]) -> Criterion:
    """k of the parts must pass."""
    passes = sum(p.passed is True for p in parts)
    failures = sum(p.passed is False for p in parts)
    passed = True if passes >= k else False if failures > len(parts) - k else None
    broken = any(not math.isfinite(p.estimate) for p in parts)
    estimate = math.nan if broken else float(passes)
    # the cheapest way to k passes
    open_parts = sorted(p.further for p in parts if p.passed is None and p.further is not None)
    further = open_parts[k - passes - 1] if passed is None and 0 < k - passes <= len(open_parts) else None
    return Criterion(name, estimate, passes, len(parts) - failures, ">=", k, len(parts), passed, "count", further)


def verdict(criteria: Sequence[Criterion]) -> str:
    """All pass: replicated. Any fails: not replicated. Else inconclusive. NaN or nothing: not measured."""
    if not criteria or any(not math.isfinite(c.estimate) for c in criteria):
        return NOT_MEASURED
    if any(c.passed is False for c in criteria):
        return NOT_REPLICATED
    return REPLICATED if all(c.passed for c in criteria) else INCONCLUSIVE


def _further(estimate: float, edge: float, threshold: float, n: int) -> int | None:
    """How many more samples would settle an interval, if the estimate stayed where it is.

    Its half-width shrinks like 1/sqrt(n). None where the estimate is the threshold.
    """
    distance, reach = abs(estimate - threshold), abs(estimate - edge)
    if distance == 0 or not math.isfinite(reach):
        return None
    return max(1, math.ceil(n * (reach / distance) ** 2) - n)


def with_control(proposed: str, control: str) -> str:
    """The verdict on the claim, given what the control came to under the same criteria."""
    return VACUOUS if proposed == control == REPLICATED else proposed


def _real(x: float) -> float | None:
    return None if math.isnan(x) else float(x)
