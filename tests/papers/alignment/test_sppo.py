"""Self-Play Preference Optimization: the update's mathematics, the losses, and what its evidence makes of a table."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import NOT_REPLICATED, REPLICATED, verdict
from papertrial.methods import preference_losses
from papertrial.papers.alignment.sppo import evidence, method
from papertrial.testbeds import prefgame

TINY = {
    "mode": "contextual", "kind": "blade", "rounds": 2, "k": 5, "responses": 8, "hidden": 6, "batch": 4, "steps": 12,
    "n_train": 16, "n_val": 3, "n_test": 4, "watch": 3, "labels": "win rates", "decode": "sampling",
}  # fmt: skip
SETTINGS = {
    "sppo": {"loss": "sppo", "eta": 3.0, "lr": 0.01},
    "dpo": {"loss": "dpo", "beta": 0.3, "lr": 0.01},
    "ipo": {"loss": "ipo", "tau": 0.3, "lr": 0.01},
    "sppo-difference": {"loss": "sppo-difference", "eta": 3.0, "lr": 0.01},
    "sppo-shuffled": {"loss": "sppo", "labels": "shuffled win rates", "eta": 3.0, "lr": 0.01},
    "best-of-5": {"rounds": 0, "decode": "best of k"},
    "reference": {"rounds": 0},
}


def play(name, seeds, problem=TINY, **changes):
    return method.run(problem, name, {**SETTINGS[name], **changes}, seeds, Inputs(), "cpu")


# The update


def test_eta_zero_leaves_the_policy_unchanged():
    P = prefgame.make_game("blade", 7, seed=1000)
    log_pi = np.random.default_rng(1000).standard_normal(7)
    np.testing.assert_array_equal(method.multiplicative_update(log_pi, P, 0.0), log_pi)
    trained, untouched = play("sppo", [1000], eta=0.0), play("reference", [1000])
    np.testing.assert_array_equal(trained.state["test.policy.1000"], untouched.state["test.policy.1000"])


@pytest.mark.parametrize("eta", [0.5, 5.0])
def test_the_minimiser_of_the_population_loss_is_the_multiplicative_update(eta):
    """Least squares over tabular logits, every response weighted by pi_t, with the exact log-partition."""
    from scipy.optimize import least_squares

    P = prefgame.make_game("blade", 6, seed=1000)
    log_pi = np.log(np.random.default_rng(1000).dirichlet(np.ones(6)))
    pi, win = np.exp(log_pi), prefgame.against(P, np.exp(log_pi))
    log_Z = np.log(pi @ np.exp(eta * win))

    def residuals(logits):
        log_ratio = np.log(prefgame.softmax(logits)) - log_pi
        return np.sqrt(pi) * (log_ratio - (eta * win - log_Z))

    found = least_squares(residuals, np.zeros(6), xtol=1e-15, ftol=1e-15, gtol=1e-15).x
    expected = prefgame.softmax(method.multiplicative_update(log_pi, P, eta))
    np.testing.assert_allclose(prefgame.softmax(found), expected, atol=1e-8)


def test_on_rock_paper_scissors_the_average_settles_while_the_last_iterate_circles():
    P = prefgame.make_game("rps", 3, seed=0, strength=1.0)
    start = np.log([0.6, 0.3, 0.1])
    averages = []
    for T in (400, 1600, 6400, 25_600):
        found = method.self_play(P, start, np.sqrt(8 * np.log(3) / T), T)
        averages.append(np.abs(found["average"] - 1 / 3).max())
    assert averages[-1] < 0.002 and averages == sorted(averages, reverse=True)
    log_pi, distances = start, []
    for _ in range(3000):
        log_pi = method.multiplicative_update(log_pi, P, 0.05)
        distances.append(np.abs(prefgame.softmax(log_pi) - 1 / 3).max())
    assert min(distances) > 0.1


def test_a_constant_added_to_all_win_rates_changes_nothing():
    P = prefgame.make_game("rand", 8, seed=1000)
    log_pi = np.random.default_rng(1000).standard_normal(8)
    plain, shifted = (prefgame.softmax(method.multiplicative_update(log_pi, Q, 2.0)) for Q in (P, P + 0.7))
    np.testing.assert_allclose(plain, shifted, atol=1e-15)


@pytest.mark.parametrize("kind", ["rps", "blade"])
def test_the_gap_of_the_average_keeps_the_theorems_bound(kind):
    problem = {"mode": "exact", "kind": kind, "K": [5, 6], "T": [50, 200], "iterate": "average"}
    rows = pd.DataFrame(method.run(problem, "sppo", {}, [1000, 1001], Inputs(), "cpu").rows)
    assert (rows["gap"] <= evidence.bound(rows["K"], rows["T"]) * 1.000001).all()
    assert (rows["gap"] > 0).all() and len(rows) == 8


# The losses


def test_gradient_of_the_practical_loss_equals_finite_differences():
    """For every loss, through the softmax and the network down to each weight matrix."""
    torch = pytest.importorskip("torch")
    from papertrial.testbeds import prefgame_contextual as testbed

    game = testbed.contextual("blade", {"train": 5}, 1000, responses=6)["train"]
    x = testbed.stack([game])
    log_ref = testbed.log_policy(testbed.init_policy([1001], 4), x)
    y, p = method.best_and_worst(game.P, log_ref[0].exp().numpy(), 5, [1000, 1, 0])
    y, p = torch.as_tensor(y)[None], torch.as_tensor(p)[None]
    policy = testbed.init_policy([1000], 4)

    for name in ("sppo", "dpo", "ipo", "sppo-difference"):

        def loss(weights, name=name):
            w, l = (testbed.log_policy(weights, x) - log_ref).gather(-1, y).unbind(-1)
            return method.LOSSES[name](w, l, *p.unbind(-1), SETTINGS[name]).mean()

        weights = {key: w.clone().requires_grad_() for key, w in policy.items()}
        loss(weights).backward()
        for key, w in policy.items():
            direction = torch.as_tensor(np.random.default_rng(1000).standard_normal(w.shape))
            h = 1e-5
            ends = [loss({**policy, key: w + sign * h * direction}).item() for sign in (1, -1)]
            slope = (weights[key].grad * direction).sum().item()
            assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(slope, rel=1e-6, abs=1e-6)


def test_only_sppo_fixes_the_two_log_ratios_apart():
    """Both log-ratios raised alike leave every loss on the difference as it is, and change SPPO's."""
    torch = pytest.importorskip("torch")
    w, l, p_w, p_l = torch.tensor([0.4, -0.2, 0.7, 0.3], dtype=torch.float64)
    for name in ("sppo", "dpo", "ipo", "sppo-difference"):
        here, raised = (method.LOSSES[name](w + c, l + c, p_w, p_l, SETTINGS[name]).item() for c in (0, 2))
        assert (here == pytest.approx(raised)) == (name != "sppo")
    # each is least where its target is met: SPPO's two targets, and 1/(2 tau) for IPO's difference
    assert preference_losses.sppo(3 * (p_w - 0.5), 3 * (p_l - 0.5), p_w, p_l, eta=3).item() == 0
    assert preference_losses.ipo(w + 1 / (2 * 0.3), w, tau=0.3).item() == pytest.approx(0)


@pytest.mark.slow
def test_losses_agree_with_trl():
    torch = pytest.importorskip("torch")
    trl = pytest.importorskip("trl")
    from collections import defaultdict
    from unittest.mock import MagicMock

    rng = np.random.default_rng(1000)
    log_p, log_ref = torch.as_tensor(-rng.exponential(2, (2, 8, 1)))  # 4 pairs, chosen first; one token each
    blank = torch.zeros(8, 1)

    def model(log_probs):
        return lambda **_: SimpleNamespace(
            log_probs=log_probs, entropy=blank, mean_logits=blank, is_top1=torch.zeros(8, 1, dtype=torch.bool)
        )

    inputs = {
        "input_ids": torch.zeros(8, 2, dtype=torch.long),
        "attention_mask": torch.ones(8, 2, dtype=torch.long),
        "completion_mask": torch.tensor([[0, 1]] * 8),
    }
    w, l = (log_p - log_ref)[:, 0].chunk(2)
    ours = {
        "sigmoid": preference_losses.dpo(w, l, beta=0.3),
        "ipo": preference_losses.ipo(w, l, tau=0.3),
        "sppo_hard": preference_losses.sppo(w, l, torch.tensor(1.0), torch.tensor(0.0), eta=1 / 0.3),
    }
    for loss_type, values in ours.items():
        trainer = MagicMock(
            loss_types=[loss_type], loss_weights=[1.0], beta=0.3, f_divergence_type="reverse_kl", ld_alpha=None,
            precompute_ref_logps=False, aux_loss_enabled=False, use_weighting=False, label_smoothing=0.0,
            ref_model=model(log_ref), _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0,
            _tp_size=1, args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        )  # fmt: skip
        trainer.accelerator.gather_for_metrics = trainer.accelerator.gather = lambda value: value
        trainer.accelerator.device = "cpu"
        theirs = trl.DPOTrainer._compute_loss(trainer, model(log_p), inputs, False)
        assert theirs.item() == pytest.approx(values.mean().item(), rel=1e-6)


# The rounds


def test_pairs_are_the_best_and_worst_and_the_same_for_all_losses():
    P = prefgame.make_game("blade", 9, seed=1000)[None]
    pi = np.full((1, 9), 1 / 9)
    (w, l), (p_w, p_l) = (a[0] for a in method.best_and_worst(P, pi, 5, [1000, 1, 0]))
    assert p_w >= 0.5 >= p_l and w != l
    shuffled, _ = method.best_and_worst(P.repeat(300, 0), pi.repeat(300, 0), 5, [1000, 1, 0], "shuffled win rates")
    won = P[0][shuffled[:, 0], shuffled[:, 1]]
    honest, _ = method.best_and_worst(P.repeat(300, 0), pi.repeat(300, 0), 5, [1000, 1, 0])
    assert P[0][honest[:, 0], honest[:, 1]].mean() > 0.7 and abs(won.mean() - 0.5) < 0.1
    firsts = [[t for t in play(m, [1000]).traces if t["T"] == 1 and t["step"] == 0] for m in ("sppo", "dpo", "ipo")]
    assert firsts[0] == firsts[1] == firsts[2]


def test_splitting_the_seeds_changes_nothing():
    for name in ("sppo", "best-of-5"):
        both, parts = play(name, [1000, 1001]), [play(name, [s]) for s in (1000, 1001)]
        for row, part in zip(both.rows, parts, strict=True):
            assert row == pytest.approx(part.rows[0], rel=1e-9, abs=1e-12)
            for key, array in part.state.items():
                np.testing.assert_allclose(both.state[key], array, rtol=1e-5, atol=1e-7)
    problem = {"mode": "exact", "kind": "rps", "K": [5], "T": [30], "iterate": "last"}
    both = method.run(problem, "sppo-last", {}, [1000, 1001], Inputs(), "cpu").rows
    alone = method.run(problem, "sppo-last", {}, [1001], Inputs(), "cpu").rows
    assert both[1] == pytest.approx(alone[0], rel=1e-12)


def test_untrained_policies_and_what_the_state_keeps():
    best, reference, trained = (play(m, [1000], n_test=60) for m in ("best-of-5", "reference", "sppo"))
    assert reference.rows[0]["win_test"] == pytest.approx(0.5)
    assert best.rows[0]["win_test"] > 0.55
    for result in (best, trained):  # P(policy > reference), from the two states
        wins = result.state["test.policy.1000"] * reference.state["test.against.1000"]
        assert wins.sum(-1).mean() == pytest.approx(result.rows[0]["win_test"], abs=1e-6)


def test_one_shot_training_sees_as_many_prompts_and_steps():
    """With all prompts in one round the rows say one round; the budget is the problem's."""
    once, thrice = play("dpo", [1000], rounds=1), play("dpo", [1000], rounds=2)
    assert (once.rows[0]["T"], thrice.rows[0]["T"]) == (1, 2)
    assert max(t["step"] for t in once.traces) == 2 * max(t["step"] for t in thrice.traces) == TINY["steps"]


# The evidence


def games_table(exponent, factor):
    names = ["problem", "K", "T", "seed"]
    rows = pd.DataFrame(product(("rps", "blade"), (5, 20), (400, 1600, 6400), range(3)), columns=names)
    gap = factor * evidence.bound(rows["K"], 400) * (rows["T"] / 400) ** exponent
    return Evidence(rows.assign(method="sppo", gap=gap))


@pytest.mark.parametrize(
    ("exponent", "factor", "expected"),
    [(-0.5, 0.9, REPLICATED), (-0.4, 0.5, NOT_REPLICATED), (-0.5, 1.001, NOT_REPLICATED)],
)
def test_c1_wants_the_slope_and_the_bound(exponent, factor, expected):
    assert verdict(evidence.gap_of_the_average(games_table(exponent, factor))) == expected


def test_c1_of_a_control_on_one_kind_and_on_none():
    results = games_table(-0.5, 0.9)
    one = Evidence(results.rows[results.rows["problem"] == "rps"])
    assert verdict(evidence.gap_of_the_average(one)) == REPLICATED
    with pytest.raises(LookupError):
        evidence.gap_of_the_average(Evidence(results.rows.assign(method="dpo")))


@pytest.mark.parametrize(
    ("up", "d_c", "expected"),
    [(0.8, 0.3, REPLICATED), (0.6, 0.3, NOT_REPLICATED), (0.8, -0.3, NOT_REPLICATED)],
)
def test_c2_compares_with_the_better_of_the_two_seed_by_seed(up, d_c, expected):
    noise = np.linspace(-0.01, 0.01, 8)
    rows = [
        {"problem": "one-round", "method": m, "seed": s, "up": u + noise[s], "d_c": c + noise[s], "d_r": -1 + noise[s]}
        for m, u, c in (("sppo", up, d_c), ("dpo", 0.2, -4), ("ipo", 0.7, 0.1))
        for s in range(8)
    ]
    assert verdict(evidence.likelihoods(Evidence(pd.DataFrame(rows)))) == expected


def test_c3_multiplies_policies_with_what_beats_the_opponent():
    rng = np.random.default_rng(1000)
    P = prefgame.make_game("bt", 4, seed=1000)
    order = prefgame.against(P, np.full(4, 0.25)).argsort()
    rows, state, policies = [], {}, {}
    for name, y in {"sppo": order[3], "dpo": order[1], "ipo": order[0]}.items():
        kept = state["three-rounds", name] = {}
        for s in range(8):
            pi = policies[name, s] = 0.9 * np.eye(4)[[y, y]] + 0.1 * rng.dirichlet(np.ones(4), 2)  # (n, R)
            kept |= {f"test.policy.{s}": pi.astype(np.float32), f"test.against.{s}": prefgame.against(P, pi)}
            rows.append({"problem": "three-rounds", "method": name, "seed": s})
    results = Evidence(pd.DataFrame(rows), state=state)
    expected = [prefgame.win_rate(P, policies["sppo", s], policies["dpo", s]).mean() for s in range(8)]
    np.testing.assert_allclose(evidence.win_rates(results, "sppo", "dpo"), expected, atol=1e-6)
    assert verdict(evidence.preferred(results)) == REPLICATED
    worst_is_proposed = {("three-rounds", m): state["three-rounds", m] for m in ("sppo", "dpo", "ipo")}
    worst_is_proposed["three-rounds", "sppo"] = state["three-rounds", "ipo"]
    assert verdict(evidence.preferred(Evidence(results.rows, state=worst_is_proposed))) == NOT_REPLICATED


def test_the_card_is_valid_and_every_loss_gets_twelve_settings():
    from papertrial.engine.cards import load_card
    from papertrial.engine.evidence import claims_of

    card = load_card(Path(__file__).parents[3] / "config/papers/alignment/sppo.yaml")
    assert set(claims_of(evidence)) == {c.id for c in card.claims}
    assert all(card.controls(c.id) for c in card.claims)
    trained = {m for m, own in card.methods.items() if "loss" in own.settings}
    assert trained == set(card.tune[0].grids) and card.tune[0].trials == 12
