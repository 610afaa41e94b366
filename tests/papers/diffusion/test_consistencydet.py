"""ConsistencyDet's parametrisation, training levels and inference, and the judging of its claims on made-up tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.methods.noise_levels import grid
from papertrial.models import scenes48
from papertrial.models.arrays import seeded
from papertrial.models.fcos import DenseHead
from papertrial.papers.diffusion.consistencydet import evidence
from papertrial.papers.diffusion.consistencydet.head import S_MAX, S_MIN, BoxHead, S, cosine_levels, looked_at
from papertrial.papers.diffusion.consistencydet.inference import ddim_levels, detect, karras_levels
from papertrial.papers.diffusion.consistencydet.method import run as run_method
from papertrial.papers.diffusion.consistencydet.method import self_consistency, trained, weights
from papertrial.papers.diffusion.consistencydet.training import (
    denoising_loss,
    farthest,
    one_time,
    proposals,
    two_levels,
)
from papertrial.testbeds.detection import clip_boxes, scale_boxes, unscale_boxes

CONFIG = Path(__file__).parents[3] / "config"
PROBLEM = {"name": "scenes", "batch": 4, "updates": 2, "lr": 1e-3, "lr_times": 1.0, "warmup": 0, "decay": 1.0}
PROBLEM |= {"narrow": 4, "width": 8, "proposals": 8, "boxes": 10, "k": [1, 2], "renew": [0.1, 0.5], "tune_k": 2}
PROBLEM |= {"tune_n": 3, "trajectory": 3, "ema": 0.9, "consistency": 1.0, "s_train": 10.0}
SETTINGS = {"consistencydet": {}, "near-only": {"s_train": 0.3}, "diffusiondet": {"consistency": 0.0}}
SETTINGS |= {"one-shot": {"consistency": 0.0, "k": [1]}, "fcos": {"consistency": 0.0}}


def made_up() -> dict:
    """Rectangles of noise in the shape of Fashion-MNIST."""
    rng = np.random.default_rng(0)
    data = {}
    for part, n in (("train", 45050), ("test", 100)):
        few = np.zeros((50, 28, 28), np.uint8)
        for picture in few:
            height, width = rng.integers(10, 25, 2)
            picture[2 : 2 + height, 2 : 2 + width] = rng.integers(150, 256, (height, width))
        data[f"x_{part}"], data[f"y_{part}"] = few[np.arange(n) % 50], np.arange(n) % 10
    return data


SCENES = {"scenes": {"backbone": 8, "train": 24, "validation": 6, "test": 6}, "channels": [4, 8, 8, 8], "width": 8}
SCENES |= {"steps": 2, "batch": 4, "lr": 1e-3, "ema": 0.9}


def small_scenes(**changed) -> dict:
    """The state of scenes48, on a miniature."""
    return scenes48.train("0", {**SCENES, **changed}, Inputs({"fashion_mnist": made_up()}), "cpu", None).state


@pytest.fixture(scope="module")
def inputs():
    return Inputs({}, {"scenes48": {"0": small_scenes()}})


@pytest.fixture(scope="module")
def split(inputs):
    return scenes48.load(inputs.models["scenes48"]["0"], "train")


def random_head(output="consistency", inner=8):
    """Untrained, but with an output that depends on its input."""
    head = seeded(lambda: BoxHead(inner, 4, 16, output), 1000)
    torch.nn.init.normal_(head.last.weight, std=0.3, generator=torch.Generator().manual_seed(1000))
    return head


def run(method, seeds, inputs, **changed):
    return run_method(PROBLEM, method, {**SETTINGS[method], **changed}, seeds, inputs, "cpu")


def test_the_head_is_the_identity_at_the_lowest_level(split):
    noisy = 3 * torch.randn(len(split.boxes), 7, 4, generator=torch.Generator().manual_seed(1000))
    _, found = random_head()(split.features, noisy, torch.full(noisy.shape[:2], S_MIN))
    assert torch.equal(found, noisy)
    _, elsewhere = random_head()(split.features, noisy, torch.full(noisy.shape[:2], 1.0))
    assert (elsewhere - noisy).abs().max() > 0.1


def test_the_head_forgets_the_box_at_high_levels():
    """c_skip s falls to 0, so of what is predicted at s nothing is left of the noise: f = c_out F up to s_min."""
    skip = lambda s: 1 / ((s - S_MIN) ** 2 + 1)  # noqa: E731
    assert skip(S_MAX) * S_MAX < 0.11 and skip(1e4) * 1e4 < 1e-3


def test_boxes_are_looked_at_where_they_would_be_with_unit_variance():
    b = scale_boxes(torch.tensor([[0.4, 0.6, 0.3, 0.2]]), S)
    for s in (0.01, 1.0, 10.0):
        z = torch.randn(2000, 4, generator=torch.Generator().manual_seed(1000))
        seen = looked_at(b + s * z, torch.full((2000, 1), s))
        assert seen.abs().max() <= S and (unscale_boxes(seen, S)[:, 2:] >= 1 / 48 - 1e-6).all()
    free = (b + s * z) / np.sqrt(1 + s**2)
    inside = (unscale_boxes(free, S) == clip_boxes(unscale_boxes(free, S))).all(dim=1)
    assert inside.float().mean() > 0.5  # a merely clipped box at s = 10 would be a corner
    assert torch.allclose(seen[inside], free[inside], atol=1e-5)


@pytest.mark.parametrize("output", ["consistency", "offset"])
def test_heads_start_by_giving_back_what_they_look_at(output, split):
    head = seeded(lambda: BoxHead(8, 4, 16, output), 1000)
    b = scale_boxes(split.boxes[:, :1], S)
    for s in (0.1, 1.0, 10.0):
        noisy, at = 0.5 * np.sqrt(1 + s**2) * b, torch.full(b.shape[:2], s)
        seen = looked_at(noisy, at[..., None])
        _, found = head(split.features, noisy, at)
        unclipped = (seen - 0.5 * b).abs().amax(dim=-1) < 1e-5
        assert unclipped.any() and torch.allclose(found[unclipped], seen[unclipped], atol=0.02)


def test_box_scaling_and_clipping(split):
    assert torch.allclose(unscale_boxes(scale_boxes(split.boxes, S), S), split.boxes, atol=1e-6)
    wild = clip_boxes(unscale_boxes(10 * torch.randn(500, 4), S))
    assert (wild[:, 2:] > 0).all() and (wild <= 1).all() and (wild >= 0).all()


def test_proposals_are_the_truths_and_random_boxes(split):
    b = proposals(split.boxes, split.labels, 8, torch.Generator().manual_seed(1000))
    there = split.labels >= 0
    assert torch.allclose(unscale_boxes(b[:, :5], S)[there], split.boxes[there], atol=1e-6)
    random = unscale_boxes(b, S)[:, 5:]
    assert random.mean().item() == pytest.approx(0.5, abs=0.03) and random.std().item() == pytest.approx(
        1 / 6, abs=0.03
    )
    assert torch.allclose(clip_boxes(unscale_boxes(b, S)), unscale_boxes(b, S), atol=1e-6)


def test_training_levels():
    generator, levels = torch.Generator().manual_seed(1000), grid("karras", 39, S_MAX, S_MIN)[::-1]
    pairs = two_levels({"s_train": 10.0}, "cpu")(4000, generator).double().numpy()
    place = np.abs(np.log(pairs[..., None] / levels)).argmin(axis=-1)
    assert np.allclose(levels[place], pairs, rtol=1e-5) and (np.diff(place) == 1).all()
    assert len(np.unique(place[:, 0])) == 39
    near = two_levels({"s_train": 0.3}, "cpu")(1000, generator)
    assert 0.2 < near.max() <= 0.3  # the control never sees more
    assert (farthest({}, "cpu")(3, generator) == S_MAX).all()
    assert one_time({}, "cpu")(5, generator).shape == (5, 1)


def test_cosine_schedule():
    s = cosine_levels().double()
    assert (s.diff() > 0).all() and len(s) == 1000
    alpha_bar = 1 / (1 + s**2)
    exact = lambda t: np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
    assert alpha_bar[499].item() == pytest.approx(exact(500) / exact(0), rel=1e-5)


def test_levels_of_inference():
    assert karras_levels(1) == [S_MAX] and len(karras_levels(8)) == 8
    assert np.allclose(karras_levels(4), grid("karras", 4, S_MAX, S_MIN)[:4])
    s = cosine_levels().tolist()
    assert ddim_levels(1) == [s[999]] and ddim_levels(2) == [s[999], s[499]]
    for k in (2, 4, 8):
        assert (np.diff(karras_levels(k)) < 0).all() and (np.diff(ddim_levels(k)) < 0).all()


class Oracle:
    """Knows the box and finds it at every level, with a score of its own for each proposal."""

    def __init__(self, truth, logits):
        self.truth, self.logits, self.asked = truth, logits, []

    def __call__(self, features, noisy, s):
        self.asked.append((noisy.clone(), s[0, 0].item()))
        return self.logits[: len(noisy)], self.truth.expand_as(noisy)


def test_kept_boxes_take_an_euler_step_and_others_start_anew():
    truth = torch.tensor([0.4, -0.2, -1.0, -1.2])
    logits = torch.full((1, 3, 10), -9.0)
    logits[0, 0, 4] = 9.0  # only the first proposal found something
    z = torch.randn(3, 1, 3, 4, generator=torch.Generator().manual_seed(1000))
    draws, head = iter(z), Oracle(truth, logits)
    boxes, scores, labels = detect(head, torch.zeros(1, 1), [10.0, 2.0, 0.5], 0.5, lambda: next(draws))
    (first, s), (second, s_next), (third, s_last) = head.asked
    assert (s, s_next, s_last) == (10.0, 2.0, 0.5) and torch.equal(first, 10 * z[0])
    euler = first[0, 0] + (first[0, 0] - truth) * (s_next - s) / s
    assert torch.allclose(second[0, 0], euler, atol=1e-5)
    assert torch.equal(second[0, 1:], 2 * z[1][0, 1:]) and torch.equal(third[0, 1:], 0.5 * z[2][0, 1:])
    assert boxes.shape == (1, 9, 4) and scores.shape == (1, 9)  # the detections of all steps
    assert labels[0].tolist()[::3] == [4, 4, 4]
    assert torch.allclose(boxes, unscale_boxes(truth, S).expand_as(boxes))


def test_the_euler_step_is_ddim():
    """For x = alpha (b + s z): alpha' x0 + sigma' eps, back in the coordinates b + s z."""
    s, s_next, b, x0 = 3.0, 0.7, torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    alpha, alpha_next = (1 + s**2) ** -0.5, (1 + s_next**2) ** -0.5
    eps = (alpha * b - alpha * x0) / (alpha * s)
    ddim = (alpha_next * x0 + alpha_next * s_next * eps) / alpha_next
    assert torch.allclose(s_next / s * b + (1 - s_next / s) * x0, ddim)


def test_the_consistency_term_is_the_distance_of_two_levels_and_holds_the_lower_one(split):
    head = random_head()
    losses = {
        w: denoising_loss(split, {**PROBLEM, "consistency": w}, two_levels(PROBLEM, "cpu"))(
            head, None, 0, torch.Generator().manual_seed(1000)
        )
        for w in (0.0, 1.0, 2.0)
    }
    term = losses[1.0] - losses[0.0]
    assert term > 0 and torch.allclose(losses[2.0] - losses[0.0], 2 * term, rtol=1e-3)

    class AtOneLevel(torch.nn.Module):
        """Every box is one number for the lower level and another for the upper one."""

        def __init__(self):
            super().__init__()
            self.lower, self.upper = (torch.nn.Parameter(torch.tensor(x)) for x in (0.1, 0.5))

        def forward(self, features, noisy, s):
            lower = (s == s.min(dim=1, keepdim=True).values)[..., None]
            return torch.zeros(*noisy.shape[:2], 10), torch.where(lower, self.lower, self.upper).expand_as(noisy)

    given = [AtOneLevel() for _ in range(2)]
    for w, model in zip((0.0, 1.0), given, strict=True):
        draw = two_levels(PROBLEM, "cpu")
        denoising_loss(split, {**PROBLEM, "consistency": w}, draw)(
            model, None, 0, torch.Generator().manual_seed(1000)
        ).backward()
    # |(.5 + 2)/4 - (.1 + 2)/4| in shares of the side, times 4 coordinates: slope 1 for the upper level, 0 for the lower
    assert torch.allclose(given[1].upper.grad - given[0].upper.grad, torch.tensor(1.0), atol=1e-5)
    assert torch.equal(given[1].lower.grad, given[0].lower.grad)


@pytest.mark.slow
def test_true_boxes_at_a_low_level_stay_where_they_are_after_training():
    sizes = {"backbone": 200, "train": 200, "validation": 2, "test": 100}
    state = small_scenes(scenes=sizes, channels=[8, 16, 16, 16], width=16, steps=300, batch=8, lr=2e-3, ema=0.98)
    train, test = (scenes48.load(state, name) for name in ("train", "test"))
    p = {**PROBLEM, "batch": 8, "updates": 800, "lr": 4e-3, "narrow": 8, "width": 64, "ema": 0.99, "proposals": 20}
    loss = denoising_loss(train, p, two_levels(p, "cpu"))
    head = trained(lambda: BoxHead(16, 8, 64, "consistency"), loss, p, 1000, train)
    assert self_consistency(head, test, p, 1000)["kept_iou"] >= 0.8


def test_an_untrained_head_keeps_true_boxes_near(split):
    """c_skip(.3) = .92, so even F = 0 leaves most of a box; the identity leaves all of it."""
    head = seeded(lambda: BoxHead(8, 4, 16, "consistency"), 1000)
    found = self_consistency(head, split, PROBLEM, 1000)
    assert 0.6 < found["kept_iou"] < 1
    blind = random_head("offset")
    blind.output = lambda noisy, seen, answer, s: torch.zeros_like(noisy)  # ignores the box
    assert self_consistency(blind, split, PROBLEM, 1000)["self_iou"] == pytest.approx(1)


def test_heads_have_equal_weights_to_a_tenth():
    card = yaml.safe_load((CONFIG / "papers/diffusion/consistencydet.yaml").read_text())
    p, inner = card["problems"]["scenes"]["settings"], 48
    ours = weights(BoxHead(inner, p["narrow"], p["width"], "consistency"))
    assert weights(DenseHead(inner, card["methods"]["fcos"]["settings"]["width"])) == pytest.approx(ours, rel=0.1)
    at_paper = card["scales"]["paper"]["settings"]
    with torch.device("meta"):
        assert weights(BoxHead(1024, at_paper["narrow"], at_paper["width"], "consistency")) > 1e7


@pytest.mark.parametrize("method", SETTINGS)
def test_splitting_the_seeds_changes_nothing(method, inputs):
    whole, *parts = (run(method, seeds, inputs) for seeds in ([1000, 1001], [1000], [1001]))
    tables = [pd.DataFrame(rows) for rows in (whole.rows, parts[0].rows + parts[1].rows)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-6)
    assert not tables[0].duplicated(["seed", "steps"]).any()
    assert set(whole.state) == set(parts[0].state) | set(parts[1].state)


def test_renewal_is_tuned_on_validation(inputs):
    found = run("consistencydet", [1000], inputs)
    tried = {row["renew"]: row["val_ap"] for row in found.traces}
    assert set(tried) == {0.1, 0.5} and found.rows[0]["renew"] == max(tried, key=tried.get)
    assert 0 < len(found.state["found-1000"]) <= len(found.state["truths"])


# Judging.


def table(**of):
    """{method: [(steps, ap, further columns), ...]} for five seeds."""
    rows = []
    for method, cells in of.items():
        for seed in range(5):
            for steps, ap, *more in cells:
                row = {"problem": "scenes", "method": method.replace("_", "-"), "seed": seed, "steps": steps}
                rows.append({**row, "ap": ap * (1 + 0.001 * seed), **(more[0] if more else {})})
    return Evidence(pd.DataFrame(rows))


def test_c1_is_judged_as_the_card_says():
    def judged(cons, diff, near=(0.0, 0.0)):
        curves = {"consistencydet": cons, "diffusiondet": diff, "near_only": near}
        return table(**{m: [(1, a), (8, b)] for m, (a, b) in curves.items()})

    good = judged((0.30, 0.31), (0.25, 0.32), near=(0.01, 0.2))
    assert verdict(evidence.one_step_is_enough(good)) == "replicated"
    assert verdict(evidence.one_step_is_enough(good.standing_in("near-only", "consistencydet"))) == "not replicated"
    assert verdict(evidence.one_step_is_enough(judged((0.28, 0.30), (0.25, 0.3)))) == "not replicated"
    assert verdict(evidence.one_step_is_enough(judged((0.30, 0.30), (0.31, 0.32)))) == "not replicated"
    nothing = judged((0.0, 0.0), (0.1, 0.1))
    assert verdict(evidence.one_step_is_enough(nothing)) == "not replicated"


def test_c2_is_judged_as_the_card_says():
    def judged(cons, diff, fcos):
        return table(consistencydet=[(1, 0.1), (2, cons)], diffusiondet=[(1, 0.1), (8, diff)], fcos=[(1, fcos)])

    assert verdict(evidence.surpasses_other_detectors(judged(0.30, 0.29, 0.305))) == "replicated"
    assert verdict(evidence.surpasses_other_detectors(judged(0.30, 0.31, 0.2))) == "not replicated"
    assert verdict(evidence.surpasses_other_detectors(judged(0.30, 0.29, 0.315))) == "not replicated"


def test_c3_is_judged_as_the_card_says():
    def judged(cons, diff):
        rest = {"truth_iou": 0.5, "kept_iou": 0.9}
        of = {"consistencydet": cons, "diffusiondet": diff}
        return table(**{m: [(1, 0.3, {"self_iou": x, **rest}), (2, 0.3)] for m, x in of.items()})

    assert verdict(evidence.self_consistent(judged(0.6, 0.5))) == "replicated"
    assert verdict(evidence.self_consistent(judged(0.5, 0.6))) == "not replicated"


def test_c4_is_judged_as_the_card_says():
    def judged(cons, diff):
        of = {"consistencydet": cons, "diffusiondet": diff}
        return table(**{m: list(zip((1, 2, 4, 8), aps, strict=True)) for m, aps in of.items()})

    for cons, diff, expected in (
        ((0.30, 0.3, 0.3, 0.3), (0.2, 0.25, 0.295, 0.30), 4),  # within 98% at 1 and at 4
        ((0.20, 0.30, 0.3, 0.3), (0.2, 0.25, 0.295, 0.30), 2),
        ((0.30, 0.3, 0.3, 0.3), (0.299, 0.25, 0.295, 0.30), 1),
        ((0.10, 0.1, 0.1, 0.1), (0.2, 0.25, 0.295, 0.30), 0),
    ):
        (criterion,) = evidence.cheaper_at_equal_accuracy(judged(cons, diff))
        assert criterion.estimate == expected and criterion.passed == (expected >= 2)
