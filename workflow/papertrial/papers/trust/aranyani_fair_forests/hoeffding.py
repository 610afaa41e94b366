"""A Hoeffding adaptive tree, and thresholds that make its decisions equally frequent in both groups.

The tree is river's; it grows from a stream by Hoeffding's bound on the gain of a split and replaces branches whose
error drifts. River is imported on use only: nothing else needs it.

Source: Bifet and Gavalda, Adaptive Learning from Evolving Data Streams (2009).
"""

import numpy as np

BINS = 200


def tree_scores(x: np.ndarray, y: np.ndarray, names: list[str], delta: float) -> np.ndarray:
    """P(y = 1) that the tree gave to each example before it learnt it: (n,).

    Args:
        x: (n, d) with columns `names`; what is one-hot, 'race=White', goes in as one nominal attribute.
        y: (n,) of 0 and 1.
        delta: how often a split may be the wrong one.
    """
    from river.tree import HoeffdingAdaptiveTreeClassifier

    columns, nominal = attributes(x, names)
    tree = HoeffdingAdaptiveTreeClassifier(delta=delta, nominal_attributes=nominal, seed=0)
    scores = np.zeros(len(y))
    for t, (values, label) in enumerate(zip(zip(*columns.values(), strict=True), y.tolist(), strict=True)):
        example = dict(zip(columns, values, strict=True))
        scores[t] = tree.predict_proba_one(example).get(1, 0.0)
        tree.learn_one(example, label)
    return scores


def attributes(x: np.ndarray, names: list[str]) -> tuple[dict[str, list], list[str]]:
    """The columns by attribute, one-hot ones joined to the place of their 1; and the names of the joined ones."""
    groups: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        groups.setdefault(name.partition("=")[0], []).append(column)
    nominal = [name for name, columns in groups.items() if len(columns) > 1]
    joined = {
        name: (x[:, columns].argmax(axis=1) if name in nominal else x[:, columns[0]]).tolist()
        for name, columns in groups.items()
    }
    return joined, nominal


def corrected(scores: np.ndarray, a: np.ndarray, strengths: list[float], rng: np.random.Generator) -> np.ndarray:
    """Decisions (len(strengths), n) with a threshold per group, t = (1 - s) / 2 + s q_a.

    q_a is the quantile of the past scores of group a above which lies the share of all past scores that exceed 1/2:
    strength 0 leaves the tree as it is, strength 1 lets both groups pass equally often. Histograms of BINS bins keep
    the storage constant; scores of a tree come in ties, which a jitter of one bin breaks.
    """
    s = np.asarray(strengths)
    histogram = np.zeros((2, BINS))
    above = 0
    decisions = np.zeros((len(s), len(scores)), dtype=bool)
    jittered = np.clip(scores + (rng.random(len(scores)) - 0.5) / BINS, 0, 1)
    for t, (score, group) in enumerate(zip(jittered, a, strict=True)):
        past = histogram[group]
        quantile = 0.5
        if t and past.sum():
            upper = np.cumsum(past[::-1])[::-1]  # how many scores lie in this bin or above
            quantile = np.count_nonzero(upper > past.sum() * above / t) / BINS
        limit = (1 - s) / 2 + s * quantile
        decisions[:, t] = np.where(s > 0, score, scores[t]) > limit
        past[min(int(score * BINS), BINS - 1)] += 1
        above += scores[t] > 0.5
    return decisions
