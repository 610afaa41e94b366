"""Verdicts: known intervals, the three kinds of criteria, and what they come to."""

import math

import numpy as np
import pytest

from papertrial.engine.verdicts import (
    INCONCLUSIVE,
    NOT_MEASURED,
    NOT_REPLICATED,
    REPLICATED,
    VACUOUS,
    at_least,
    bootstrap,
    interval,
    point,
    verdict,
    with_control,
)

NORMAL = np.random.default_rng(1000).normal(1.0, 2.0, 400)


def test_bootstrap_of_a_mean_is_close_to_the_normal_interval():
    estimate, low, high = bootstrap(NORMAL)
    half = 1.96 * NORMAL.std(ddof=1) / 20
    assert estimate == pytest.approx(NORMAL.mean())
    assert low == pytest.approx(estimate - half, abs=0.1 * half)
    assert high == pytest.approx(estimate + half, abs=0.1 * half)


def test_bootstrap_is_the_same_every_time():
    assert bootstrap(NORMAL) == bootstrap(NORMAL)
    assert bootstrap(NORMAL[:20], np.median) == bootstrap(NORMAL[:20], np.median)


def test_bootstrap_keeps_rows_together():
    """The difference of two columns that differ by a constant has no spread."""
    pairs = np.stack([NORMAL, NORMAL + 3], axis=1)
    _, low, high = bootstrap(pairs, lambda p: p[:, 1].mean() - p[:, 0].mean())
    assert low == pytest.approx(3) and high == pytest.approx(3)


def test_strata_are_resampled_by_themselves():
    """Two constant strata leave the pooled mean without spread; as one sample it has some."""
    strata = [np.zeros(10), np.ones(10)]
    assert bootstrap(strata) == (0.5, 0.5, 0.5)
    _, low, high = bootstrap(np.concatenate(strata))
    assert low < 0.4 and high > 0.6


@pytest.mark.parametrize(
    ("samples", "op", "threshold", "passed"),
    [
        (NORMAL, ">", 0.0, True),
        (NORMAL, ">", 1.0, None),
        (NORMAL, ">", 3.0, False),
        (NORMAL, "<", 3.0, True),
        (NORMAL, "<", 0.0, False),
        (NORMAL, "<=", 1.0, None),
        ([0.0, 0.0, 0.0], ">=", 0.0, True),
        ([0.0, 0.0, 0.0], ">", 0.0, False),
        ([5.0], ">", 0.0, None),
    ],
)
def test_an_interval_passes_fails_or_stays_open(samples, op, threshold, passed):
    assert interval("x", samples, op, threshold).passed is passed


def test_an_interval_of_the_cards_own_kind():
    assert interval("Wilson", [0.0, 1.0], "<", 0.9, limits=(0.1, 0.8)).passed is True
    assert interval("Wilson", [0.0, 1.0], "<", 0.7, limits=(0.1, 0.8)).passed is None


def test_a_point_is_decided_by_its_estimate():
    assert point("median", [1.0, 2.0, 9.0], ">=", 2.0, np.median).passed is True
    assert point("median", [1.0, 2.0, 9.0], ">", 2.0, np.median).passed is False
    bare = point("count", 7, "<=", 7)
    assert (bare.passed, bare.n, bare.low) == (True, 1, None)


def test_at_least_k_of_n():
    yes, no, open_ = point("a", 1, ">", 0), point("b", -1, ">", 0), interval("c", NORMAL, ">", 1.0)
    assert at_least("2 of 3", 2, [yes, yes, no]).passed is True
    assert at_least("2 of 3", 2, [yes, no, no]).passed is False
    assert at_least("2 of 3", 2, [yes, open_, no]).passed is None


def test_verdicts():
    yes, no, open_ = point("a", 1, ">", 0), point("b", -1, ">", 0), interval("c", NORMAL, ">", 1.0)
    assert verdict([yes, yes]) == REPLICATED
    assert verdict([yes, open_, no]) == NOT_REPLICATED
    assert verdict([yes, open_]) == INCONCLUSIVE
    assert verdict([]) == NOT_MEASURED
    assert verdict([yes, point("nan", math.nan, ">", 0)]) == NOT_MEASURED
    assert verdict([yes, no, at_least("k", 1, [point("nan", math.nan, ">", 0)])]) == NOT_MEASURED


def test_a_control_that_passes_too_makes_the_test_vacuous():
    assert with_control(REPLICATED, REPLICATED) == VACUOUS
    assert with_control(REPLICATED, NOT_REPLICATED) == REPLICATED
    assert with_control(REPLICATED, INCONCLUSIVE) == REPLICATED
    assert with_control(NOT_REPLICATED, REPLICATED) == NOT_REPLICATED


def test_further_samples_shrink_the_interval_to_the_threshold():
    """With n + further samples of the same spread the interval just clears the threshold."""
    few = NORMAL[:25]
    threshold = few.mean() - 0.5 * (few.mean() - bootstrap(few)[1])
    undecided = interval("x", few, ">", threshold)
    assert undecided.further == pytest.approx(3 * 25, abs=2)
    assert interval("x", NORMAL, ">", 0.0).further is None
    yes, no = point("a", 1, ">", 0), point("b", -1, ">", 0)
    assert at_least("2 of 3", 2, [yes, undecided, no]).further == undecided.further
    assert at_least("1 of 2", 1, [yes, undecided]).further is None
