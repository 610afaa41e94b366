import numpy as np
import pytest

from papertrial.testbeds.fair_tabular import RECIPES, dp_gap, load, stream, to_unit, trade_off


def made_up(name: str, n: int = 300) -> dict[str, np.ndarray]:
    """Arrays like the data set's, filled at random within the public ranges."""
    rng = np.random.default_rng(1000)
    schema = RECIPES[name].schema
    whole = {
        "numeric": np.column_stack([rng.uniform(*span, size=n) for span in schema.NUMERIC.values()]),
        "categorical": np.column_stack([rng.integers(len(known), size=n) for known in schema.CATEGORICAL.values()]),
        "label": rng.integers(2, size=n),
    }
    if name != "adult":
        return whole
    return {f"{key}_{part}": array[i::2] for key, array in whole.items() for i, part in enumerate(("train", "test"))}


@pytest.mark.parametrize("name", RECIPES)
def test_tables_are_one_hot_and_within_the_public_ranges(name):
    table = load(name, {name: made_up(name)})
    assert table.x.shape == (len(table.y), len(table.names))
    assert np.abs(table.x).max() <= 1
    assert set(np.unique(table.a)) == set(np.unique(table.y)) == {0, 1}
    attributes = {n.partition("=")[0] for n in table.names if "=" in n}
    for attribute in attributes:
        columns = [i for i, n in enumerate(table.names) if n.startswith(attribute + "=")]
        np.testing.assert_array_equal(table.x[:, columns].sum(axis=1), 1)
    assert RECIPES[name].attribute not in attributes


def test_only_the_two_groups_fixed_in_advance_are_kept():
    arrays = made_up("compas")
    table = load("compas", {"compas": arrays})
    schema = RECIPES["compas"].schema
    race = arrays["categorical"][:, list(schema.CATEGORICAL).index("race")]
    one, zero = (schema.CATEGORICAL["race"].index(r) for r in ("African-American", "Caucasian"))
    kept = np.isin(race, (one, zero))
    assert 0 < kept.sum() < len(race)
    np.testing.assert_array_equal(table.a, race[kept] == one)
    np.testing.assert_array_equal(table.y, arrays["label"][kept])


def test_ranges_map_to_their_ends_and_clip_outside():
    np.testing.assert_allclose(to_unit(np.array([17.0, 53.5, 90, 200]), (17, 90)), [-1, 0, 1, 1])
    np.testing.assert_allclose(to_unit(np.array([0, 9, 99.0]), (0, 99), logarithmic=True), [-1, 0, 1])


def test_streams_are_shuffles_and_a_shorter_one_is_a_prefix():
    order = stream(50, 3)
    np.testing.assert_array_equal(np.sort(order), np.arange(50))
    np.testing.assert_array_equal(stream(50, 3, 20), order[:20])
    assert (stream(50, 4) != order).any()


def test_gap_of_known_decisions_and_of_constants():
    a = np.array([1, 1, 1, 1, 0, 0])
    assert dp_gap(np.array([1, 1, 1, 0, 1, 0]), a) == 0.25
    decisions = np.array([[1, 1, 1, 1, 0, 0], [1] * 6, [0] * 6])
    np.testing.assert_array_equal(dp_gap(decisions, a), [1, 0, 0])
    np.testing.assert_array_equal(dp_gap(decisions, 1 - a), [1, 0, 0])
    assert dp_gap(np.array([1, 0]), np.array([1, 1])) == 0


def test_gap_is_fairlearns():
    metrics = pytest.importorskip("fairlearn.metrics")
    rng = np.random.default_rng(1000)
    for _ in range(3):
        decisions, a = rng.integers(2, size=(2, 400))
        peer = metrics.demographic_parity_difference(a, decisions, sensitive_features=a)
        assert abs(dp_gap(decisions, a) - peer) < 1e-12


def test_trade_off_takes_the_best_within_each_gap_or_the_majority():
    accuracy, gap = [0.9, 0.8, 0.7], [0.2, 0.06, 0.03]
    assert trade_off(accuracy, gap, floor=0.6) == pytest.approx((0.6 + 0.7 + 0.8) / 3)
    assert trade_off(accuracy, [0.0, 0, 0], floor=0.6) == pytest.approx(0.9)
    assert trade_off(accuracy, [1, 1, 1], floor=0.6) == pytest.approx(0.6)
    assert trade_off(accuracy, gap, floor=0.6, levels=(0.06,)) == pytest.approx(0.8)  # a gap of exactly g is allowed
