"""Masks, costs and errors of latent masking diffusion, and the judging of its claims on made-up tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.models import lmd28, lmd28_ddpm
from papertrial.models.arrays import seeded
from papertrial.papers.diffusion.latent_masking_diffusion import evidence
from papertrial.papers.diffusion.latent_masking_diffusion.autoencoder import MaskedAutoencoder, Size, at
from papertrial.papers.diffusion.latent_masking_diffusion.bench import Bench, View, reconstruct, standardised
from papertrial.papers.diffusion.latent_masking_diffusion.inpainting import (
    hidden_by_hole,
    hole_of,
    nearest_picture,
    put_back,
)
from papertrial.papers.diffusion.latent_masking_diffusion.masking import (
    SCHEDULES,
    from_tokens,
    pixels_of,
    places,
    split,
    to_tokens,
    whole_blocks,
)
from papertrial.papers.diffusion.latent_masking_diffusion.method import (
    hidden_error,
    logistic_regression,
    masking_loss,
    run,
)

CONFIG = Path(__file__).parents[3] / "config"
SMALL = {"dim": 8, "layers": 1, "heads": 2, "mlp": 2}
PROBLEM = {"name": "fashion", "part": "fashion", "images": 60, "validation": 8, "batch": 4, "updates": 4, "every": 2}
PROBLEM |= {"lr": 1e-3, "warmup": 0, "decay": 0.5, "ema": 0.9, "encoder": SMALL, "decoder": SMALL}
PROBLEM |= {"probe": 40, "inpaint": 6}
LMD = {"space": "latent", "side": 2, "schedules": ["linear"], "roll": 0}
MAE = {"space": "pixel", "side": 4, "schedules": ["fixed"], "roll": 0}


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    data = {f"x_{part}": rng.integers(0, 256, (120, 28, 28), dtype=np.uint8) for part in ("train", "test")}
    data |= {f"y_{part}": np.arange(120) % 10 for part in ("train", "test")}
    given = Inputs({"fashion_mnist": data, "mnist": {"x": data["x_test"], "y": data["y_test"]}})
    settings = {"images": 60, "encoder": [4, 8], "decoder": [8, 8, 4], "steps": 2, "batch": 8, "lr": 1e-3}
    parts = ("fashion", "mnist")
    vae = {p: lmd28.train(p, {**settings, "kl_weight": 1e-4}, given, "cpu", None).state for p in parts}
    unet = {"channels": [4, 4, 4], "blocks": 1, "middle": 1, "width": 8, "groups": 2}
    settings = {"images": 60, "unet": unet, "sigma_data": 0.7, "steps": 1, "batch": 4, "lr": 1e-3}
    ddpm = lmd28_ddpm.train("0", {**settings, "log_mean": -1.0, "log_sd": 1.3}, given, "cpu", None).state
    models = {"lmd28": vae, "lmd28-ddpm": {"0": ddpm}}
    whole = {m: {p: {k: np.atleast_1d(v) for k, v in s.items()} for p, s in of.items()} for m, of in models.items()}
    return Inputs(given.datasets, whole)


@pytest.fixture(scope="module")
def bench(inputs):
    return Bench.of(PROBLEM, inputs, "cpu")


def network(tokens=16, features=16):
    return seeded(lambda: MaskedAutoencoder(tokens, features, SMALL, SMALL), 1000)


@pytest.mark.parametrize("per", [1, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_masks_have_the_share_asked_for_and_partition_the_tokens(schedule, per):
    generator = torch.Generator().manual_seed(1000)
    for u in np.linspace(0, 1, 21):
        m = SCHEDULES[schedule](u, 0.3)
        blocks = split(5, whole_blocks(m), generator)
        visible, hidden = (places(b, per) for b in blocks)
        assert hidden.shape[1] == per * int(np.round(16 * m)) or abs(16 * m % 1 - 0.5) < 1e-9
        both = torch.cat([visible, hidden], dim=1).sort(dim=1).values
        assert torch.equal(both, torch.arange(16 * per).expand(5, -1))


def test_schedules_start_and_end_where_they_should_and_are_monotone():
    u = np.linspace(0, 1, 1000)
    for name in ("linear", "cosine", "piecewise"):
        m = np.array([SCHEDULES[name](x, 0.0) for x in u])
        assert m[0] == pytest.approx(0.15) and m[-1] == pytest.approx(0.75) and (np.diff(m) >= 0).all()
        backwards = [SCHEDULES["reversed"](x, 0.0) for x in u]
        if name == "linear":
            assert np.allclose(backwards, m[::-1])
    assert {SCHEDULES["fixed"](x, 0.0) for x in u} == {0.75}
    assert len({SCHEDULES["piecewise"](x, 0.0) for x in u}) == 5
    assert SCHEDULES["random"](0.5, 0.0) == pytest.approx(0.15) and SCHEDULES["random"](0, 1.0) == pytest.approx(0.9)
    assert whole_blocks(0.15) == 2 and whole_blocks(0.75) == 12


@pytest.mark.parametrize("visible", [2, 4, 14])
def test_multiply_adds_counted_are_the_formula(visible):
    sizes = ({"dim": 96, "layers": 4, "heads": 4, "mlp": 2}, {"dim": 64, "layers": 2, "heads": 4, "mlp": 2})
    model = MaskedAutoencoder(16, 16, *sizes)
    index = torch.arange(16)[None]
    x = torch.randn(1, 16, 16)

    def counted(f, *arguments):
        with (
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            torch.no_grad(),
            FlopCounterMode(display=False) as counter,
        ):
            f(*arguments)
        return counter.get_total_flops() / 2

    assert counted(model, x, index[:, :visible], index[:, visible:]) == model.macs(visible, 16 - visible)
    assert counted(model.encode, x, index[:, :visible]) == model.encoding_macs(visible)
    # The encoder pays for what is visible: twice the tokens, twice the products and four times the attention.
    attention = 2 * 4 * 96 * visible**2
    assert model.encoding_macs(2 * visible) == 2 * model.encoding_macs(visible) + 2 * attention


def test_loss_ignores_the_target_at_visible_places():
    x, model = torch.randn(3, 16, 16), network()
    visible, hidden = split(3, 12, torch.Generator().manual_seed(1000))
    predicted = model(x, visible, hidden)
    at_visible = x.scatter(1, visible[..., None].expand(-1, -1, 16), 99.0)
    at_hidden = x.scatter(1, hidden[..., None].expand(-1, -1, 16), 99.0)
    loss = hidden_error(predicted, x, hidden)
    assert torch.equal(hidden_error(predicted, at_visible, hidden), loss)
    assert hidden_error(predicted, at_hidden, hidden) > 100 * loss
    # and the prediction ignores what is hidden, whatever the order of the places
    assert torch.allclose(model(at_hidden, visible, hidden), predicted, atol=1e-6)
    assert torch.allclose(model(x, visible.flip(1), hidden.flip(1)).flip(1), predicted, atol=1e-5)


def test_latents_passed_through_unmasked_give_the_round_trip_exactly(bench):
    view, x = bench.view("latent", 2), bench.held_out
    everything, nothing = torch.arange(16).expand(len(x), -1), torch.zeros(len(x), 0, dtype=torch.long)
    found = reconstruct(network(), view, x, everything, nothing)
    assert torch.equal(found, bench.vae.decode(bench.vae.encode(x)))
    pixels = View(standardised(bench.train), 4)
    everything, nothing = torch.arange(64).expand(len(x), -1), torch.zeros(len(x), 0, dtype=torch.long)
    assert torch.allclose(reconstruct(network(64), pixels, x, everything, nothing), x, atol=1e-6)


@pytest.mark.parametrize(("channels", "size", "side"), [(1, 32, 4), (1, 32, 8), (4, 8, 2), (4, 8, 1)])
def test_tokens_lie_block_by_block(channels, size, side):
    x = torch.randn(3, channels, size, size)
    tokens = to_tokens(x, side)
    assert torch.equal(from_tokens(tokens, side), x)
    block = size // 4  # block 6 is in row 1, column 2
    per = len(tokens[0]) // 16
    inside = tokens[:, 6 * per : 7 * per].flatten(1).sort(dim=1).values
    assert torch.equal(inside, x[:, :, block : 2 * block, 2 * block : 3 * block].flatten(1).sort(dim=1).values)
    assert (
        pixels_of(torch.tensor([[6]]), 32)[0, 0, 8:16, 16:24].all() and pixels_of(torch.tensor([[6]]), 32).sum() == 64
    )


def test_the_hole_takes_four_blocks_of_latents_and_nine_patches_of_pixels(bench):
    assert hole_of(bench.test).sum() == 144
    assert hidden_by_hole(bench.view("latent", 2), bench.test).nonzero()[:, 0].tolist() == [5, 6, 9, 10]
    lost = hidden_by_hole(bench.view("pixel", 4), bench.test)
    assert lost.sum() == 9
    square = from_tokens(lost[None, :, None].expand(1, -1, 16).float(), 4).bool()
    assert torch.equal(square, hole_of(bench.test))


def test_progressive_unmasking_in_one_pass_is_one_pass(bench):
    view, x, model = bench.view("latent", 2), bench.held_out, network()
    visible, hidden = split(len(x), 8, torch.Generator().manual_seed(1000))
    z = view.tokens(x)
    first = model(z, visible, hidden)
    z = z.scatter(1, hidden[..., None].expand_as(first), first)
    second = model(z, torch.cat([visible, hidden[:, :4]], dim=1), hidden[:, 4:])
    z = z.scatter(1, hidden[:, 4:, None].expand_as(second), second)
    assert torch.allclose(reconstruct(model, view, x, visible, hidden, 2), view.pictures(z), atol=1e-6)
    assert not torch.allclose(
        reconstruct(model, view, x, visible, hidden, 2), reconstruct(model, view, x, visible, hidden)
    )


def test_control_differs_in_its_targets_only():
    z, spent = torch.randn(50, 16, 16), []
    losses = [
        masking_loss(z, {**PROBLEM, "roll": roll}, "fixed", 1, lambda *n: spent.append(n))(
            network(), None, 0, torch.Generator().manual_seed(1000)
        )
        for roll in (0, 4, 1)  # a batch of 4 rolled by 4 is itself
    ]
    assert losses[0] == losses[1] != losses[2] and spent == [(4, 12)] * 3


def test_known_pixels_are_put_back_at_every_level():
    x0, known = torch.randn(2, 1, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    known[..., :2] = True
    rule = put_back(lambda flow, x, lam, lam_t, memory: x + 7, known, x0, lambda: torch.ones_like(x0))
    x = rule(None, torch.zeros_like(x0), 0.0, np.log(4.0), {})
    assert torch.allclose(x[..., :2], x0[..., :2] + 0.25) and (x[..., 2:] == 7).all()


def test_nearest_picture_ignores_the_hole(bench):
    hole = hole_of(bench.train)
    damaged = torch.where(hole, torch.rand_like(bench.train), bench.train)[5:9]
    found = nearest_picture(Bench(bench.train, bench.held_out, damaged, bench.vae))
    assert torch.equal(found, bench.train[5:9])


def test_logistic_regression_is_at_its_minimum():
    generator = torch.Generator().manual_seed(1000)
    x, y = torch.randn(300, 4, generator=generator), torch.randint(10, (300,), generator=generator)
    weights = logistic_regression(x, y, penalty=0.1).requires_grad_()
    loss = torch.nn.functional.cross_entropy(x @ weights[1:] + weights[0], y) + 0.05 * weights[1:].square().sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    assert gradient.abs().max() < 1e-3


def test_the_diffusion_model_gets_one_autoencoders_multiply_adds():
    settings = yaml.safe_load((CONFIG / "models/lmd28-ddpm.yaml").read_text())["settings"]
    training = yaml.safe_load((CONFIG / "papers/diffusion/latent-masking-diffusion.yaml").read_text())
    p = training["problems"]["fashion"]["settings"]
    mae = p["updates"] * p["batch"] * MaskedAutoencoder(64, 16, p["encoder"], p["decoder"]).macs(16, 48)
    ddpm = settings["steps"] * settings["batch"] * lmd28_ddpm.macs(lmd28_ddpm.build(settings))
    assert ddpm == pytest.approx(mae, rel=0.01)


def test_paper_scale_can_be_built():
    card = yaml.safe_load((CONFIG / "papers/diffusion/latent-masking-diffusion.yaml").read_text())
    settings = card["scales"]["paper"]["settings"]
    with torch.device("meta"):
        model = MaskedAutoencoder(64, 16, settings["encoder"], settings["decoder"])
    assert sum(p.numel() for p in model.parameters()) > 1e8
    assert Size(**settings["encoder"]).macs(16) > 1e9


CASES = {
    "lmd": ("lmd", LMD),
    "mae": ("mae", MAE),
    "schedules": ("lmd", {**LMD, "schedules": ["cosine", "random"], "probe": 0, "inpaint": 0}),
    "mnist": ("mae", {**MAE, "part": "mnist", "probe": 0, "inpaint": 0}),
    "ddpm": ("ddpm", {"evaluations": 3}),
    "nearest": ("nearest", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_splitting_the_seeds_changes_nothing(case, inputs):
    method, settings = CASES[case]
    whole, *parts = (run(PROBLEM, method, settings, s, inputs, "cpu") for s in ([1000, 1001], [1000], [1001]))
    key = ["seed", "schedule", "updates"]
    tables = [
        pd.DataFrame(rows).sort_values(key, ignore_index=True) for rows in (whole.rows, parts[0].rows + parts[1].rows)
    ]
    pd.testing.assert_frame_equal(*tables, rtol=1e-5)
    assert not tables[0].duplicated(key).any()
    assert set(whole.state) == set(parts[0].state) | set(parts[1].state)


def test_updates_are_charged_three_passes_and_one_encoding(inputs):
    rows = run({**PROBLEM, "probe": 0, "inpaint": 0}, "mae", MAE, [1000], inputs, "cpu").rows
    update = 4 * 3 * network(64).macs(16, 48) / 1e9
    assert [row["gmacs"] for row in rows] == pytest.approx([2 * update, 4 * update])
    rows = run(
        {**PROBLEM, "probe": 0, "inpaint": 0}, "lmd", {**LMD, "schedules": ["fixed"]}, [1000], inputs, "cpu"
    ).rows
    encoding, _ = lmd28.VAE((4, 8), (8, 8, 4)).macs()
    assert rows[0]["gmacs"] == pytest.approx(2 * 4 * (3 * network().macs(4, 12) + encoding) / 1e9)


def test_at_takes_each_sequences_own_places():
    x = torch.arange(12).view(2, 3, 2)
    assert at(x, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


# Judging.


def table(*rows):
    return Evidence(pd.DataFrame(rows))


def curve(method, seed, errors, cost, problem="fashion", **last):
    rows = [
        {"problem": problem, "method": method, "seed": seed, "schedule": "-", "updates": u, "err": e, "gmacs": cost * u}
        for u, e in zip(range(100, 100 * len(errors) + 1, 100), errors, strict=True)
    ]
    rows[-1] |= last
    return rows


def test_c1_is_judged_as_the_card_says():
    falling = [4, 3, 2.5, 2.2, 2.1, 2.05, 2.02, 2.01, 2.005, 2.0]  # median of 3 is within 2.1 at the sixth

    def judged(lmd, cost):
        rows = [r for s in range(3) for r in curve("mae", s, falling, 3.0) + curve("lmd", s, lmd, cost)]
        rows += [r for s in range(3) for r in curve("rolled", s, [9] * 10, cost)]
        return table(*rows)

    same = judged(falling, 1.0)
    (criterion,) = evidence.cost_to_a_given_quality(same)
    assert criterion.estimate == pytest.approx(3) and verdict([criterion]) == "replicated"
    assert verdict(evidence.cost_to_a_given_quality(judged(falling, 1.01))) == "not replicated"
    (never,) = evidence.cost_to_a_given_quality(same.standing_in("rolled", "lmd"))
    assert never.estimate == 0 and never.passed is False
    spike = judged([1, 9, 9, 9, 9, 9, 9, 9, 9, 9], 1.0)  # the first evaluation alone is its own median
    assert evidence.cost_ratio(spike) == pytest.approx([18, 18, 18])
    late = judged([9, 9, 1, 9, 9, 9, 9, 9, 9, 1], 1.0)  # one good evaluation among bad ones doesn't count
    assert evidence.cost_ratio(late).tolist() == [0, 0, 0]


def test_c2_is_judged_as_the_card_says():
    def judged(err, accuracy):
        rows = [r for s in range(3) for r in curve("mae", s, [1.0], 1.0, accuracy=0.8)]
        return table(*rows, *[r for s in range(3) for r in curve("lmd", s, [err], 1.0, accuracy=0.8 + accuracy)])

    for err, accuracy, expected in (
        (1.09, -0.019, "replicated"),
        (1.11, 0.1, "not replicated"),
        (0.9, -0.021, "not replicated"),
    ):
        assert verdict(evidence.accuracy_suffers_little(judged(err, accuracy))) == expected


def test_c3_is_judged_as_the_card_says():
    def judged(at_500, at_1000):
        cell = lambda s, m, name, u, e: {  # noqa: E731
            "problem": "schedules", "method": m, "seed": s, "schedule": name, "updates": u, "err": e * (1 + 0.001 * s),
        }  # fmt: skip
        rows = []
        for s in range(5):
            rows += [cell(s, "latent-mae", "fixed", u, 1.0 + 0.001 * (s % 2)) for u in (250, 500, 1000)]
            for name, e in zip(("linear", "cosine", "piecewise"), at_500, strict=True):
                rows += [
                    cell(s, "lmd", name, 250, 2.0),
                    cell(s, "lmd", name, 500, e),
                    cell(s, "lmd", name, 1000, at_1000),
                ]
            rows += [cell(s, "reversed", "reversed", u, e) for u, e in ((250, 0.9), (500, 0.9), (1000, 1.2))]
        return table(*rows)

    good = judged((0.8, 0.9, 1.1), 1.02)  # the mean over schedules counts at 500
    assert verdict(evidence.progressive_beats_fixed(good)) == "replicated"
    assert len(evidence.progressive_beats_fixed(good)) == 4
    assert verdict(evidence.progressive_beats_fixed(good.standing_in("reversed", "lmd"))) == "not replicated"
    assert verdict(evidence.progressive_beats_fixed(judged((1.1, 1.1, 1.1), 0.9))) == "not replicated"
    assert verdict(evidence.progressive_beats_fixed(judged((0.8, 0.8, 0.8), 1.04))) == "not replicated"
    with pytest.raises(LookupError):
        evidence.progressive_beats_fixed(table({"problem": "schedules", "method": "random", "seed": 0}))


def test_c4_is_judged_as_the_card_says():
    def judged(ddpm, mae, rms):
        cost = {"lmd": (1.0, rms), "mae": (mae, 1.0), "ddpm": (ddpm, 1.0)}
        return table(
            *[
                {
                    "problem": "fashion",
                    "method": m,
                    "seed": s,
                    "schedule": "-",
                    "updates": 0,
                    "hole_gmacs": g,
                    "hole_rms": r,
                }
                for m, (g, r) in cost.items()
                for s in range(3)
            ]
        )

    for ddpm, mae, rms, expected in (
        (20, 1.5, 1.09, "replicated"),
        (19, 1.5, 1.0, "not replicated"),
        (40, 1.4, 1.0, "not replicated"),
        (40, 2.0, 1.2, "not replicated"),
    ):
        assert verdict(evidence.cheap_inference(judged(ddpm, mae, rms))) == expected
